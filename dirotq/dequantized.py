"""Quantized linears as 16-bit products of decoded numbers: for what FP8 products do not take.

Both operands are quantized as the definition says (`dirotq.linear`), decoded, rounded to bfloat16 and multiplied by
cuBLAS. That is no faster than a 16-bit layer; but the weights stay in 4 bits, each decoded for its call, and the
definition, which computes in float32, is several times slower. The two roundings cost about what the output's does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dirotq.formats import Format, Integer
from dirotq.linear import QuantInput, QuantLinear
from dirotq.sharing import Shared
from dirotq.transforms import Compact, Hadamard, Transform
from dirotq.transforms.paley import construct

_FLOATS = ("nvfp4", "mxfp4", "fp4h")


def unfit_for_decoding(fmt: Format, width: int) -> str | None:
    """Why kernels do not read 4-bit weights of `width` inputs in this format, or None."""
    whole = isinstance(fmt, Integer) and fmt.bits == 4 and fmt.symmetric and not fmt.unsigned
    if not whole and fmt.kind not in _FLOATS:
        return f"weights in {fmt}"
    if width % 8 or (fmt.group or width) % 8:
        return f"{width} inputs in groups of {fmt.group or width}, the kernel needs multiples of 8"
    return None


def rotates(transform: Compact) -> bool:
    """Whether kernels compute this transform."""
    block = transform.block
    whole = not (transform.low_width % 32 or transform.high % 16)
    return whole and block <= 128 and not block & (block - 1)


def tensors_of(transform: Compact) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor]:
    """What kernels take of a transform: subspace, correction, each with its scales or None, and signs."""
    scaled = transform.bits == 8
    return (
        transform.subspace,
        transform.subspace_scales if scaled else None,
        transform.correction,
        transform.correction_scales if scaled else None,
        transform.signs,
    )


def unfit_for_hadamard(transform: Transform) -> str | None:
    """Why the Hadamard kernel does not compute this transform, or None; Triton is there."""
    from dirotq_kernels.hadamard import unfit

    if not isinstance(transform, Hadamard):
        return f"a {transform.kind} transform"
    why: str | None = unfit(transform.width, list(transform.orders))
    return why


def factors_of(transform: Transform) -> Tensor | None:
    """The matrices of a `Hadamard` as kernels take them, int8, or None where they do not compute it."""
    if not isinstance(transform, Hadamard) or unfit_for_hadamard(transform):
        return None
    matrices = [construct(order).flatten() for order in transform.orders]
    return torch.cat(matrices).to(transform.signs.device)


class DequantizedInput(Shared):
    """Both parts of a quantized input in bfloat16, made once for `readers` linears."""

    source: QuantInput
    factors: Tensor | None

    def __init__(self, source: QuantInput, readers: int) -> None:
        super().__init__(readers)
        # Not registered: the first linear holds the input.
        object.__setattr__(self, "source", source)
        self.register_buffer("factors", factors_of(source.transform), persistent=False)

    def compute(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """`x` [..., K] -> low part [..., low] and high part [..., r] or None, bfloat16."""
        transform = self.source.transform
        if isinstance(transform, Compact) and rotates(transform):
            from dirotq_kernels.rotate import rotate

            parts = rotate(x, *tensors_of(transform), transform.block)
            low, high = self.source.quantized(
                *(part.view(*x.shape[:-1], part.shape[-1]) for part in parts)
            )
        elif isinstance(transform, Hadamard) and self.factors is not None:
            from dirotq_kernels.hadamard import hadamard

            low = hadamard(x, transform.signs, self.factors, list(transform.orders))
            low, high = self.source.quantized(low.view(x.shape), None)
        else:
            low, high = self.source.compute(x)
        return low.bfloat16(), None if high is None else high.bfloat16()


class Dequantized(nn.Module):
    """A quantized linear of any format and transform."""

    source: DequantizedInput

    def __init__(self, source: DequantizedInput) -> None:
        super().__init__()
        object.__setattr__(self, "source", source)

    def forward(self, layer: QuantLinear, x: Tensor) -> Tensor:
        """`x` [..., K] -> [..., N] in its own dtype."""
        low, high = self.source(x)
        bias = None if layer.bias is None else layer.bias.bfloat16()
        weight, protected = _low_weight(layer), layer.high_weight()
        if high is None or protected is None:
            y = F.linear(low, weight, bias)
        else:
            first = F.linear(high, protected.bfloat16(), bias)
            rows = low.reshape(-1, low.shape[-1])
            y = torch.addmm(first.view(len(rows), len(weight)), rows, weight.t()).view(first.shape)
        return y.to(x.dtype)


def _low_weight(layer: QuantLinear) -> Tensor:
    """[N, low] bfloat16, by a kernel where there is one."""
    fmt, width = layer.format, layer.input.transform.low_width
    if fmt is None or unfit_for_decoding(fmt, width):
        return layer.low_weight().bfloat16()
    from dirotq_kernels.decode import decode

    parts = (layer.codes, layer.scales, layer.base)
    weight: Tensor = decode(*parts, fmt.kind, fmt.group or width, width)
    return weight
