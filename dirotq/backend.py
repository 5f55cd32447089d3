"""Which kernels compute a quantized model.

The simulated layer (`dirotq.linear`, "reference") is the definition. Others match it within the rounding of 16-bit
numbers: "fp8", the whole layer as one FP8 product (`dirotq_kernels.fp8_layout`); "weight_only", 4-bit weights beside a
16-bit input; and "dequantized", a 16-bit product, for all that these two do not take (`dirotq.dequantized`). They infer
only: no gradient flows through them.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dirotq import graphs
from dirotq.dequantized import (
    Dequantized,
    DequantizedInput,
    factors_of,
    tensors_of,
    unfit_for_decoding,
    unfit_for_hadamard,
)
from dirotq.formats import FP4H, FP8, FP8x2
from dirotq.linear import QuantInput, QuantLinear
from dirotq.sharing import Shared
from dirotq.storage import FixedDtype
from dirotq.transforms import Compact, Hadamard, Identity

BACKENDS = ("reference", "auto", "triton")
_FEW_ROWS = 16  # up to so many a product with 4-bit weights is bound by their bytes
_CAPABILITIES = {"fp8": (8, 9), "weight_only": (8, 0), "dequantized": (8, 0)}


def set_backend(model: nn.Module, backend: str = "auto") -> dict[str, str]:
    """Choose what computes each quantized linear of `model`, in place; to be called once the model is on its device.

    backend: "reference", the simulated layers; "triton", products of packed weights for every layer; "auto", these
    where they fit, and on a GPU 16-bit products of decoded numbers for the others.
    Returns for each quantized linear, by name, "fp8", "weight_only", or "dequantized" or "reference" and why. The
    checkpoint does not change. To be called again after new numbers were loaded into quantized linears: kernels keep
    what they make of scales. Raises ValueError for an unknown backend, and with "triton" for the first layer that no
    kernel fits; the model is then as it was.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend}, allowed are {', '.join(BACKENDS)}")
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    chosen: dict[str, str] = {}
    for name, layer in layers.items():
        chosen[name] = "reference: asked for" if backend == "reference" else _choice(layer)
        choice, _, why = chosen[name].partition(": ")
        if why and backend == "triton":
            raise ValueError(f"backend=triton: layer {name}: {why}; by auto it is {choice}")
    # All of them, before the first one is put in place: whatever fails, the model is as it was.
    kernels = _kernels(layers, chosen)
    for name, layer in layers.items():
        layer.kernel = kernels[name]
    graphs.forget(model)
    return chosen


def _kernels(
    layers: Mapping[str, QuantLinear], chosen: Mapping[str, str]
) -> dict[str, nn.Module | None]:
    """What computes each layer; None for the simulated ones."""
    kinds = {name: text.partition(":")[0] for name, text in chosen.items()}
    readers = Counter((kinds[name], layer.input) for name, layer in layers.items())
    inputs = {source: FP8Input(source, n) for (kind, source), n in readers.items() if kind == "fp8"}
    others = {
        source: DequantizedInput(source, number)
        for (kind, source), number in readers.items()
        if kind == "dequantized"
    }
    # The largest is a bound for each. torch.compile would make a graph for every number.
    slack = max((source.slack for source in inputs.values()), default=0.0)
    for source in inputs.values():
        source.slack = slack
    found: dict[str, nn.Module | None] = {}
    for name, layer in layers.items():
        if kinds[name] == "fp8":
            found[name] = FP8Linear(layer, inputs[layer.input])
        elif kinds[name] == "dequantized":
            found[name] = Dequantized(others[layer.input])
        else:
            found[name] = WeightOnly() if kinds[name] == "weight_only" else None
    return found


def _choice(layer: QuantLinear) -> str:
    """What computes this layer by "auto", and why nothing better does."""
    if layer.format is None:
        return "reference: its weight is not quantized"
    device = layer.codes.device
    if nothing := _unfit_device(device, "dequantized"):
        return f"reference: {nothing}"
    kind = "weight_only" if layer.input.act is None else "fp8"
    why = _unfit_weight_only(layer) if kind == "weight_only" else _unfit_fp8(layer)
    why = why or _unfit_device(device, kind)
    return f"dequantized: {why}" if why else kind


def _unfit_weight_only(layer: QuantLinear) -> str | None:
    if not isinstance(layer.input.transform, Identity):
        return f"a 16-bit input behind a {layer.input.transform.kind} transform"
    assert layer.format is not None, "an unquantized weight was refused before"
    return unfit_for_decoding(layer.format, layer.in_features)


def _unfit_fp8(layer: QuantLinear) -> str | None:
    source, transform = layer.input, layer.input.transform
    if layer.format != FP4H(group=32):
        return f"weights in {layer.format}, an FP8 product needs {FP4H(group=32)}"
    if source.act not in (FP4H(group=32), FP8(group=None, power=True)):
        return f"activations in {source.act}, an FP8 product needs {FP4H(group=32)} or FP8 with power=True"
    if source.shift:
        return "a shifted input"
    if not isinstance(transform, Identity | Compact) and (why := unfit_for_hadamard(transform)):
        return why
    if transform.high and layer.protect != FP8x2(group=None):
        return f"protected coordinates in {layer.protect or 'bfloat16'}, an FP8 product needs fp8x2"
    low, high = transform.low_width, transform.high
    if low % 32 or high % 16 or layer.out_features % 16:
        return (
            f"{low} low and {high} protected coordinates and {layer.out_features} outputs, an FP8 "
            "product needs multiples of 32, 16 and 16"
        )
    if not all(_powers_of_two(scales) for scales in (layer.base, layer.high_scales)):
        return "rows over scales that are no powers of two, as earlier versions made them"
    return None


def _powers_of_two(scales: Tensor | None) -> bool:
    return scales is None or bool((torch.frexp(scales.float()).mantissa == 0.5).all())


def _unfit_device(device: torch.device, kind: str) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if device.type != "cuda":
        from dirotq_kernels.fp8_layout import interpreted

        return None if interpreted() else f"it is on {device}, kernels need a GPU"
    capability, least = torch.cuda.get_device_capability(device), _CAPABILITIES[kind]
    if capability < least:
        name, numbers = torch.cuda.get_device_name(device), "FP8" if kind == "fp8" else "bfloat16"
        has, needs = (".".join(map(str, version)) for version in (capability, least))
        return f"{name} has compute capability {has}, {numbers} products need {needs}"
    return None


class FP8Input(Shared):
    """The left operand of the FP8 products of the linears that read one input, made once for `readers` of them."""

    source: QuantInput
    factors: Tensor | None

    def __init__(self, source: QuantInput, readers: int) -> None:
        super().__init__(readers)
        from dirotq_kernels.transform_slack import transform_slack

        # Not registered: the first linear holds the input.
        object.__setattr__(self, "source", source)
        transform = source.transform
        self.kind = "fp4h" if isinstance(source.act, FP4H) else "fp8"
        self.slack = transform_slack(transform) if isinstance(transform, Compact) else 0.0
        self.register_buffer("factors", factors_of(transform), persistent=False)

    def compute(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`x` [..., K] -> operand [M, K'] float8_e4m3fn and its scales [M, 1] float32."""
        from dirotq_kernels.hadamard import hadamard_quantize
        from dirotq_kernels.quantize_rows import quantize_rows
        from dirotq_kernels.rotate_quantize import rotate_quantize

        transform = self.source.transform
        x = x.reshape(-1, x.shape[-1])
        made: tuple[Tensor, Tensor]
        if isinstance(transform, Compact):
            tensors = tensors_of(transform)
            made = rotate_quantize(x, *tensors, self.slack, transform.block, self.kind)
        elif isinstance(transform, Hadamard) and self.factors is not None:
            orders = list(transform.orders)
            made = hadamard_quantize(x, transform.signs, self.factors, orders, self.kind)
        else:
            made = quantize_rows(x, self.kind)
        return made


class FP8Linear(FixedDtype):
    """A quantized linear as one FP8 product; its weight is unpacked to E4M3 for every call, and nothing of it kept."""

    row_scales: Tensor
    source: FP8Input

    def __init__(self, layer: QuantLinear, source: FP8Input) -> None:
        super().__init__()
        from dirotq_kernels.fp8_layout import pack_scale

        object.__setattr__(self, "source", source)
        assert layer.base is not None, "fp4h has a base a row"
        scale = pack_scale(layer.base, layer.high_scales, layer.codes, layer.high)
        self.register_buffer("row_scales", scale, persistent=False)

    def forward(self, layer: QuantLinear, x: Tensor) -> Tensor:
        """`x` [..., K] -> [..., N] in its own dtype."""
        from dirotq_kernels.fp8_linear import packed_fp8_linear

        a, scales = self.source(x)
        parts = (layer.codes, layer.scales, layer.base, layer.high, layer.high_scales)
        y: Tensor = packed_fp8_linear(a, scales, *parts, self.row_scales, layer.bias)
        return y.view(*x.shape[:-1], layer.out_features).to(x.dtype)


class WeightOnly(nn.Module):
    """A linear with 4-bit weights and a 16-bit input: read once for a few rows, else decoded for cuBLAS."""

    def forward(self, layer: QuantLinear, x: Tensor) -> Tensor:
        """`x` [..., K] -> [..., N] in its own dtype."""
        from dirotq_kernels.decode import decode
        from dirotq_kernels.weight_only import weight_only_linear

        fmt = layer.format
        assert fmt is not None, "a 16-bit weight needs no kernel"
        y: Tensor
        half = x if x.dtype in (torch.bfloat16, torch.float16) else x.bfloat16()
        parts = (layer.codes, layer.scales, layer.base)
        group = fmt.group or layer.in_features
        if half.numel() <= _FEW_ROWS * layer.in_features:
            flat = half.reshape(-1, layer.in_features)
            y = weight_only_linear(flat, *parts, layer.bias, fmt.kind, group)
            y = y.view(*x.shape[:-1], layer.out_features)
        else:
            weight = decode(*parts, fmt.kind, group, layer.in_features).to(half.dtype)
            y = F.linear(half, weight, None if layer.bias is None else layer.bias.to(half.dtype))
        return y.to(x.dtype)
