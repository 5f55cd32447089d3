"""The product of two FP8 operands with a scale for each row of both: `torch._scaled_mm`, as a torch operator.

Operands are laid out as `fp8_layout` says. Accumulation is the tensor core's fast one. Beside the rounding of the
bfloat16 output, 1.7e-3, its error is small up to some 4,000 columns and as large as that at 12,000 (the layers' bench).
"""

from __future__ import annotations

from typing import Any

import torch
from dirotq_kernels.operators import fake_of, operator
from dirotq_kernels.unpack_e4m3 import unpack_e4m3_ref, unpacked
from torch import Tensor


def product(a: Tensor, scale_a: Tensor, w: Tensor, scale_w: Tensor, bias: Tensor | None) -> Tensor:
    """`a` [M, K'] and `w` [N, K'] float8_e4m3fn, `scale_a` [M, 1] and `scale_w` [N, 1] float32 -> bfloat16 [M, N].

    bias: [N], any float dtype, or None. Raises ValueError when widths do not agree or 16 does not divide K' and N.
    """
    if a.shape[1] != w.shape[1] or a.shape[1] % 16 or w.shape[0] % 16:
        raise ValueError(
            f"fp8_linear: operands {tuple(a.shape)} and {tuple(w.shape)}, allowed are [M, K] and [N, K] with K and N "
            "multiples of 16"
        )
    if not a.is_cuda:
        return fp8_linear_ref(a, scale_a, w, scale_w, bias)
    return torch._scaled_mm(
        a,
        w.t(),
        scale_a=scale_a,
        scale_b=scale_w.t(),
        bias=None if bias is None else bias.bfloat16(),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


fp8_linear = operator(product, "fp8_linear")


@operator
def packed_fp8_linear(
    a: Tensor,
    scale_a: Tensor,
    codes: Tensor,
    scales: Tensor,
    base: Tensor,
    high: Tensor | None,
    high_scales: Tensor | None,
    scale_w: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """`fp8_linear` of a weight that `unpack_e4m3` makes of codes in groups of 32, and of which nothing is kept."""
    w = unpacked(codes, scales, base, high, high_scales, scale_w)
    return product(a, scale_a, w, scale_w, bias)


@fake_of(fp8_linear)
@fake_of(packed_fp8_linear)
def _(a: Tensor, scale_a: Tensor, w: Tensor, *_: Tensor | None) -> Tensor:
    # Codes have as many rows as what they are unpacked to.
    return a.new_empty(a.shape[0], w.shape[0], dtype=torch.bfloat16)


def fp8_linear_ref(
    a: Tensor, scale_a: Tensor, w: Tensor, scale_w: Tensor, bias: Tensor | None
) -> Tensor:
    """The same in float32."""
    y = (a.float() @ w.float().T) * scale_a * scale_w.T
    return (y if bias is None else y + bias.float()).bfloat16()


def packed_fp8_linear_ref(a: Tensor, scale_a: Tensor, *weight: Any) -> Tensor:
    """The same of packed weights, all arguments as `packed_fp8_linear` has them."""
    *parts, scale_w, bias = weight
    w = unpack_e4m3_ref(*parts, scale_w)
    return fp8_linear_ref(a, scale_a, w, scale_w, bias)
