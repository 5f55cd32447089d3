"""How a quantized linear is laid out as one FP8 product, by all who write or read its operands.

    a  [M, low + 3 r]  float8_e4m3fn = [ low codes | a1 | a2 | a1 ]            scale_a [M, 1] float32
    w  [N, low + 3 r]  float8_e4m3fn = [ low codes | w1 | w1 / 16 | w2 / 16 ]  scale_w [N, 1] float32
    y  [M, N] = scale_a * scale_wᵀ * (a wᵀ) + bias

low and r are the widths of the low and of the protected part. All scales are powers of two, one a row, so what is
divided by them loses nothing but at the very bottom of E4M3: there it is rounded to a multiple of 2^-9, ties to even.

    low(x)  = scale_a * low codes                       low(W)  = scale_w * low codes
    high(x) * 2^-HIGH_SHIFT = scale_a * (a1 + a2 / 16)  high(W) * 2^HIGH_SHIFT = scale_w * (w1 + w2 / 16)

[a1 | a2 | a1] [w1 | w1 / 16 | w2 / 16]ᵀ = (a1 + a2 / 16) (w1 + w2 / 16)ᵀ but for a2 w2ᵀ / 256, the product of the
residuals.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

# Protected activations are the largest of their row and protected weights are not: the exponents are moved to where
# there is room, so that neither sets the row's scale.
HIGH_SHIFT = 3


def pack_scale(
    base: Tensor,
    high_scales: Tensor | None,
    codes: Tensor | None = None,
    high: Tensor | None = None,
) -> Tensor:
    """Choose scale_w [N, 1], float32, once, when a layer is loaded: the larger of what its two parts need.

    base float32 [N, 1] of FP4H, high_scales float32 [N, 1] of FP8x2. Given their codes (uint8 [N, low / 2] and int16
    [N, r]), a part that is all zeros has no say: its own scale is 1, which may be far too large for the other.
    Raises ValueError for scales that are not powers of two.
    """
    low = _powers(base, "base")
    if high_scales is None:
        return low
    shifted = _powers(high_scales, "high_scales") * 2.0**HIGH_SHIFT
    larger = torch.maximum(low, shifted)
    if codes is None or high is None:
        return larger
    low_counts = (codes != 0).any(-1, keepdim=True)
    # The highest bits of both bytes are signs, and minus zero is zero.
    high_counts = (high & 0x7F7F != 0).any(-1, keepdim=True)
    one = torch.where(low_counts, low, torch.where(high_counts, shifted, 1.0))
    return torch.where(low_counts & high_counts, larger, one)


def _powers(scales: Tensor, name: str) -> Tensor:
    scales = scales.float().reshape(-1, 1)
    wrong = (torch.frexp(scales).mantissa != 0.5).flatten().nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"pack_scale: {name}[{row}]={float(scales[row])}, allowed are powers of two"
        )
    return scales


@triton.jit
def _probe():
    pass


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, as it does where a kernel's inputs may lie on a CPU."""
    return not isinstance(_probe, triton.JITFunction)
