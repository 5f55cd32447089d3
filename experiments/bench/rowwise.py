"""A linear with FP8 weights and activations, a scale for each row of both: what 8 bits give on the same tensor cores.

The arithmetic is that of torchao's Float8DynamicActivationFloat8Weight with PerRow, without its tensor subclasses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dirotq.storage import FixedDtype

_TOP = 448.0
_SMALLEST = 1e-12


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` [M, K] -> E4M3 [M, K] and the scale of each row [M, 1], float32."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=_SMALLEST) / _TOP
    return (x.float() / scale).clamp(-_TOP, _TOP).to(torch.float8_e4m3fn), scale


def rowwise_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`x` [M, K], `weight` E4M3 [N, K] with `scale` [1, N] float32 -> bfloat16 [M, N]. To be compiled."""
    codes, scales = quantize_rows(x)
    return torch._scaled_mm(
        codes,
        weight.T,
        scale_a=scales,
        scale_b=scale,
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


class FP8RowLinear(FixedDtype):
    """A linear [N, K] by `rowwise_linear`."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        codes, scale = quantize_rows(weight)
        self.register_buffer("weight", codes)
        self.register_buffer("scale", scale.T.contiguous())
        self.register_buffer("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        """`input` [..., K] -> [..., N]."""
        flat = input.reshape(-1, input.shape[-1])
        y = rowwise_linear(flat, self.weight, self.scale, self.bias)
        return y.view(*input.shape[:-1], y.shape[-1])
