"""Layers and models with random weights, as wide as the real ones, built without ever holding what they replace.

A model is made on the meta device, which holds no numbers; each quantized linear is put into it with codes of random
weights, rounded to nearest on the GPU, and the rest is filled with random numbers. Times do not depend on the values.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import dirotq
from dirotq.backend import set_backend
from dirotq.calibrate import Members, trace_inputs
from dirotq.formats import FP8x2
from dirotq.linear import InputSpec, QuantLinear, build
from dirotq.methods import DiRotQ
from dirotq.models import Layout, layout_of, rewrite
from dirotq.recipes import Bits
from dirotq.transforms import Compact, Hadamard, Identity, Transform
from experiments.bench.architectures import Architecture
from experiments.bench.rowwise import FP8RowLinear

_HADAMARD = "hadamard"


@dataclass(frozen=True)
class Precision:
    """How the linears of a model or a layer are computed, from its name.

    NAME is `bf16`; `fp8` (rows of weights and activations, `experiments.bench.rowwise`); `torchao`, the same by that
    package; or a file of conf/bits, with `:RANK` for DiRotQ's compact transform and protected coordinates (an integer,
    or a share of the width), with `:hadamard` for a randomized Hadamard transform, without either for no transform.
    """

    name: str
    kind: str
    rank: float = 0.0

    @classmethod
    def of(cls, name: str) -> Precision:
        """Raises ValueError for a name that is none."""
        kind, _, rank = name.partition(":")
        try:
            number = float(rank) if rank and rank != _HADAMARD else 0.0
        except ValueError:
            raise ValueError(
                f"{name}: allowed behind the colon are a number and hadamard"
            ) from None
        if kind in ("bf16", "fp8", "torchao") and not rank:
            return cls(name, kind)
        bits_named(kind)
        return cls(name, "quantized", number)

    @property
    def hadamard(self) -> bool:
        """Whether inputs are behind a randomized Hadamard transform."""
        return self.name.endswith(f":{_HADAMARD}")

    @property
    def bits(self) -> Bits:
        """Formats of a quantized one."""
        return bits_named(self.name.partition(":")[0])

    def coordinates(self, width: int) -> int:
        """Protected coordinates of an input of `width`."""
        return DiRotQ(rank=self.rank).coordinates(width, self.bits.act) if self.rank else 0


@cache
def bits_named(name: str) -> Bits:
    """Formats of a file of conf/bits; raises ValueError for an unknown one."""
    return dirotq.recipe("method=rtn", "rounding=rtn", f"bits={name}").bits


class Source:
    """Random tensors on one device, in bfloat16, the same for every run with one seed."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(
        self, *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16
    ) -> Tensor:
        """Normal numbers of standard deviation `scale`."""
        drawn = torch.randn(*shape, device=self.device, generator=self._generator)
        return drawn.mul_(scale).to(dtype)

    def transform(self, width: int, high: int) -> Transform:
        """A random compact transform with `high` protected coordinates, none without any."""
        if not high:
            return Identity(width)
        subspace = torch.linalg.qr(self.normal(width, high, dtype=torch.float64))[0]
        signs = self.normal(width - high).sign() + 0.5  # zero is positive
        return Compact(width, high, 64, subspace, signs.sign(), 8).to(self.device)

    def quantized(
        self,
        width: int,
        members: Mapping[str, int],
        bias: Mapping[str, bool],
        precision: Precision,
        act: bool,
    ) -> dict[str, QuantLinear]:
        """Quantized layers for the linears of one input: name -> output features. act: whether it is quantized."""
        bits = precision.bits
        act_format = bits.act if act else None
        if precision.hadamard and act_format:
            transform: Transform = Hadamard(width, generator=torch.Generator().manual_seed(0))
            transform = transform.to(self.device)
        else:
            transform = self.transform(width, precision.coordinates(width) if act_format else 0)
        protect = FP8x2(None) if transform.high else None
        spec = InputSpec(tuple(members), transform.to_dict(), bits.weight, act_format, protect)
        layers = build(spec, dict(members), transform)
        for name, layer in layers.items():
            self._fill(layer, bias[name])
        return layers

    def _fill(self, layer: QuantLinear, bias: bool) -> None:
        rows, width = layer.out_features, layer.in_features
        low, high = layer.input.transform.low_width, layer.input.transform.high
        scale = width**-0.5
        fmt = layer.format
        assert fmt is not None, "the formats of a quantized precision round weights"
        weight = self.normal(rows, low, scale=scale, dtype=torch.float32)
        protected = self.normal(rows, high, scale=scale, dtype=torch.float32) if high else None
        layer.store(fmt.encode(weight), protected, self.normal(rows, scale=0.02) if bias else None)

    def linear(self, linear: nn.Linear, kind: str) -> nn.Module:
        """A linear of the same shape with random weights, in bfloat16 or FP8."""
        rows, width = linear.out_features, linear.in_features
        weight = self.normal(rows, width, scale=width**-0.5)
        bias = None if linear.bias is None else self.normal(rows, scale=0.02)
        if kind == "fp8":
            return FP8RowLinear(weight, bias)
        made = nn.Linear(width, rows, bias is not None, device="meta")
        made.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            made.bias = nn.Parameter(bias, requires_grad=False)
        return made

    def materialize(self, model: nn.Module) -> None:
        """Put the whole model on the device, in bfloat16: what has no numbers yet gets random ones."""
        for module in model.modules():
            for leaf, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta:
                    drawn = self._like(leaf, parameter)
                    module._parameters[leaf] = nn.Parameter(drawn, requires_grad=False)
            for leaf, buffer in module._buffers.items():
                if buffer is not None and buffer.is_meta:
                    module._buffers[leaf] = self._like(leaf, buffer)
        model.to(self.device)
        for module in model.modules():
            if not isinstance(module, QuantLinear | FP8RowLinear | Transform):
                for leaf, buffer in module._buffers.items():
                    if buffer is not None and buffer.is_floating_point() and buffer.itemsize > 2:
                        module._buffers[leaf] = buffer.bfloat16()
        model.eval().requires_grad_(False)

    def _like(self, leaf: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return torch.zeros_like(tensor, device=self.device)
        if tensor.ndim < 2:
            # Weights of norms, and biases.
            mean = 1.0 if leaf == "weight" else 0.0
            return self.normal(*tensor.shape, scale=0.02) + mean
        return self.normal(*tensor.shape, scale=math.prod(tensor.shape[1:]) ** -0.5)


def model_of(
    architecture: Architecture, precision: Precision, source: Source
) -> tuple[nn.Module, dict[str, str]]:
    """The model on the device, and what computes each quantized linear (`dirotq.set_backend`); empty for others."""
    with torch.device("meta"):
        model = architecture.instance()
    layout = layout_of(model)
    if precision.kind == "bf16":
        source.materialize(model)
        return model, {}
    if precision.kind == "torchao":
        convert = _torchao(block_linears(model, layout))
        source.materialize(model)
        convert(model)
        return model, {}
    if precision.kind == "fp8":
        for name in block_linears(model, layout):
            linear = model.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            model.set_submodule(name, source.linear(linear, "fp8"))
        source.materialize(model)
        return model, {}
    rewrite.apply(model, layout)
    selected = layout.select(model)
    for members in groups(architecture):
        linears = {name: model.get_submodule(name) for name in members}
        layers = source.quantized(
            int(linears[members[0]].in_features),  # type: ignore[arg-type]
            {name: int(linear.out_features) for name, linear in linears.items()},  # type: ignore[arg-type]
            {name: linear.bias is not None for name, linear in linears.items()},
            precision,
            act=selected[members[0]],
        )
        for name, layer in layers.items():
            model.set_submodule(name, layer)
    source.materialize(model)
    return model, set_backend(model, "auto")


def groups(architecture: Architecture) -> list[Members]:
    """Linears that read one input, by a forward of the model without numbers."""
    with torch.device("meta"):
        model = architecture.instance()
    model.to("meta").eval()
    layout = layout_of(model)
    rewrite.apply(model, layout)
    batch = architecture.batch(1, architecture.smallest, torch.device("meta"), torch.float32)
    return trace_inputs(model, layout.select(model), batch, strict=layout.strict)


def block_linears(model: nn.Module, layout: Layout) -> list[str]:
    """Linears whose activations the layout quantizes, under the model's own names, before it is rewritten."""
    originals = dict(model.named_modules())
    with rewrite.applied(model, layout) as record:
        names = [name for name, acts in layout.select(model).items() if acts]
    found: dict[str, None] = {}
    for name in names:
        owner = next((one for one in record if name.startswith(f"{one}.")), name)
        if isinstance(originals[owner], nn.Linear):
            found[owner] = None
    return list(found)


def _torchao(names: Collection[str]) -> Callable[[nn.Module], None]:
    """What makes the linears `names` of a model torchao's; raises ImportError where the package is not."""
    from torchao.quantization import (  # type: ignore[import-not-found]
        Float8DynamicActivationFloat8WeightConfig,
        PerRow,
        quantize_,
    )

    # Its own settings of inductor would hold for all models after it; `tuned` sets them for all.
    config = Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), set_inductor_config=False
    )

    def convert(model: nn.Module) -> None:
        quantize_(model, config, filter_fn=lambda _, name: name in names)

    return convert


def stored_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers, each counted once."""
    seen: dict[int, int] = {}
    for tensor in _tensors(module):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(seen.values())


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for tensor in [*module.parameters(), *module.buffers()]:
        yield from _inner(tensor)


def _inner(tensor: Tensor) -> Iterator[Tensor]:
    """What a tensor subclass, as torchao's, is made of: it has no memory of its own."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _inner(getattr(tensor, name))


def collect_garbage(device: torch.device) -> int:
    """Free what nothing refers to; bytes that are still allocated on a GPU, 0 elsewhere."""
    gc.collect()
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)
