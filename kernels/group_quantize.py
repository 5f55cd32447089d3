"""Quantize and decode groups of the last dimension in one pass over memory.

What `dirotq.formats.Integer.quantize` does in a dozen elementwise passes, bitwise the same: scale and zero point are
rounded to bfloat16 before they are used, divisions are correctly rounded, ties go to even. Bound: the bytes of one read
and one write.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dirotq_kernels.launching import ceil_div, power_above, start
from dirotq_kernels.operators import fake_of, operator
from torch import Tensor

_VALUES_PER_PROGRAM = 4096
# Adding and subtracting 1.5 * 2^23 rounds a float32 below 2^22 to an integer, ties to even.
_ROUNDER = 12582912.0


@triton.jit
def _round_to_bfloat16(x):
    # A cast would do on a GPU; Triton's interpreter truncates there.
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _group_quantize_kernel(
    x_ptr,
    out_ptr,
    num_groups,
    inverse_steps,
    code_low,
    code_high,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,  # GROUP rounded up to a power of two
    ROWS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    ROUNDER: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, WIDTH)
    offsets = rows[:, None] * GROUP + columns[None, :]  # [ROWS, WIDTH]
    inside = (rows[:, None] < num_groups) & (columns[None, :] < GROUP)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if SYMMETRIC:
        extent = tl.max(tl.abs(x), axis=1)  # [ROWS]
    else:
        filler = columns[None, :] >= GROUP
        low = tl.min(tl.where(filler, float("inf"), x), axis=1)
        high = tl.max(tl.where(filler, float("-inf"), x), axis=1)
        extent = high - low
    scale = _round_to_bfloat16(extent * inverse_steps)
    scale = tl.where(scale == 0.0, 1.0, scale)
    steps = tl.div_rn(x, tl.broadcast_to(scale[:, None], (ROWS, WIDTH)))
    if not SYMMETRIC:
        zero = _round_to_bfloat16(tl.div_rn(-low, scale))
        steps = steps + zero[:, None]
    # Clamping first keeps the rounding trick in its range and changes no code.
    steps = tl.minimum(tl.maximum(steps, code_low), code_high)
    codes = (steps + ROUNDER) - ROUNDER
    if not SYMMETRIC:
        codes = codes - zero[:, None]
    tl.store(out_ptr + offsets, codes * scale[:, None], mask=inside)


@operator
def group_quantize(
    x: Tensor, group: int, bits: int, symmetric: bool, unsigned: bool = False
) -> Tensor:
    """Quantize `x` [..., K] to `bits` per group of `group` values and decode it: float32 [..., K].

    unsigned, of a symmetric format: codes from 0, for values that are not negative.
    Raises ValueError when `group` does not divide K.
    """
    if x.shape[-1] % group:
        raise ValueError(f"group_quantize: group={group} does not divide the width {x.shape[-1]}")
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    num_groups = x.numel() // group
    if not num_groups:
        return out
    signed = symmetric and not unsigned
    high = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
    width = power_above(group)
    rows = max(1, _VALUES_PER_PROGRAM // width)
    start(
        _group_quantize_kernel,
        (ceil_div(num_groups, rows),),
        x,
        out,
        num_groups,
        1.0 / high,
        float(-high if signed else 0),
        float(high),
        GROUP=group,
        WIDTH=width,
        ROWS=rows,
        SYMMETRIC=symmetric,
        ROUNDER=_ROUNDER,
    )
    return out


@fake_of(group_quantize)
def _(x, group, bits, symmetric, unsigned=False):
    return x.new_empty(x.shape, dtype=torch.float32)


def group_quantize_ref(
    x: Tensor, group: int, bits: int, symmetric: bool, unsigned: bool = False
) -> Tensor:
    """The definition, in PyTorch: `quantize(x)` of `dirotq.formats.Integer(group, bits, symmetric, unsigned)`."""
    groups = x.float().unflatten(-1, (-1, group))
    signed = symmetric and not unsigned
    high = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
    if symmetric:
        extent = groups.abs().amax(-1, keepdim=True)
    else:
        extent = groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)
    scale = (extent * (1.0 / high)).bfloat16().float()
    scale = torch.where(scale == 0, 1.0, scale)
    steps = groups / scale
    if symmetric:
        return (steps.round().clamp(-high if signed else 0, high) * scale).flatten(-2)
    zero = (-groups.amin(-1, keepdim=True) / scale).bfloat16().float()
    return (((steps + zero).round().clamp(0, high) - zero) * scale).flatten(-2)
