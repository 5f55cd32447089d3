"""Quantize and decode in the FP4 formats `nvfp4` (a base for each row), `mxfp4` and `fp4h` in one pass over memory.

What `quantize` of those formats (`dirotq.formats`) does in dozens of elementwise passes, bitwise the same for finite
values: divisions are correctly rounded, ties go to even, no product is fused into a sum, and the squared errors among
which fp4h chooses are summed by pairs. Bound: the bytes of one read and one write.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dirotq_kernels.launching import ceil_div, power_above, start
from dirotq_kernels.operators import fake_of, operator
from torch import Tensor

_KINDS = ("nvfp4", "mxfp4", "fp4h")
_VALUES_PER_PROGRAM = 2048
_VALUES_PER_WARP = 512
_MOST_WARPS = 16

# Adding and subtracting 1.5 * 2^23 * u rounds a float32 below 2^22 * u to a multiple of u, ties to even.
_ROUNDER = tl.constexpr(1.5 * 2.0**23)
_SIXTH = tl.constexpr(1.0 / 6.0)
_SMALLEST_BASE = tl.constexpr(2.0**-100)
_SMALLEST_SCALE = tl.constexpr(2.0**-9)
# A float32's highest bits are its exponent and the first bit of its mantissa: fp4h's indices but for this, 2 (127 - 8).
_LADDER_BITS = tl.constexpr(238)


@triton.jit
def power_of_two(x):
    """The least powers of two that are not below `x`, normal positive float32."""
    bits = (x.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _round_to_e4m3(x):
    # For 2^-9 to 448; below 2^-6 a multiple of 2^-9. A cast would do on a GPU; Triton's interpreter rounds differently.
    bits = x.to(tl.uint32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & 0xFFF00000
    normal = bits.to(tl.float32, bitcast=True)
    subnormal = (x + _ROUNDER * _SMALLEST_SCALE) - _ROUNDER * _SMALLEST_SCALE
    return tl.where(x < 0.015625, subnormal, normal)


@triton.jit
def _round_to_e2m1(x, step, ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    steps = tl.div_rn(x, tl.broadcast_to(step[:, :, None], (ROWS, GROUPS, WIDTH)))
    size = tl.minimum(tl.abs(steps), 6.0)
    rounder = tl.where(size < 2.0, _ROUNDER * 0.5, tl.where(size < 4.0, _ROUNDER, _ROUNDER * 2.0))
    size = (size + rounder) - rounder
    # A difference, because the negative of zero would be minus zero, which no code decodes to.
    return tl.where(steps < 0.0, 0.0 - size, size) * step[:, :, None]


@triton.jit
def _pair_sum(
    x, ROWS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, LEVELS: tl.constexpr
):
    for level in tl.static_range(LEVELS):
        pairs = tl.reshape(x, (ROWS, GROUPS, WIDTH >> (level + 1), 2))
        even, odd = tl.split(pairs)
        x = even + odd
    return tl.reshape(x, (ROWS, GROUPS))


@triton.jit
def _least_error(
    x,
    wanted,
    base,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    LEVELS: tl.constexpr,
):
    wanted = tl.minimum(tl.maximum(wanted, 0.00390625), 64.0)
    index = (wanted.to(tl.int32, bitcast=True) >> 22) - _LADDER_BITS
    index = tl.where(index == 1, 0, index)
    best = x
    least = tl.full((ROWS, GROUPS), float("inf"), tl.float32)
    for trial in tl.static_range(3):
        near = tl.minimum(index + trial, 28)
        near = tl.where(near == 1, 2, near)
        scale = ((near + _LADDER_BITS) << 22).to(tl.float32, bitcast=True)
        values = _round_to_e2m1(x, scale * base[:, None], ROWS, GROUPS, WIDTH)
        error = values - x
        total = _pair_sum(error * error, ROWS, GROUPS, WIDTH, LEVELS)
        better = total < least
        if trial == 1:
            # The middle one also where all squares overflow.
            better = better | (least == float("inf"))
        best = tl.where(better[:, :, None], values, best)
        least = tl.where(better, total, least)
    return best


@triton.jit
def _fp4_quantize_kernel(
    x_ptr,
    out_ptr,
    num_rows,
    top_inverse,  # a row's base is its absmax times this
    KIND: tl.constexpr,
    NUM_GROUPS: tl.constexpr,  # in a row
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,  # NUM_GROUPS rounded up to a power of two
    WIDTH: tl.constexpr,  # GROUP rounded up to a power of two
    LEVELS: tl.constexpr,  # log2 of WIDTH
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    groups = tl.arange(0, GROUPS)[None, :, None]
    columns = tl.arange(0, WIDTH)[None, None, :]
    offsets = rows[:, None, None] * (NUM_GROUPS * GROUP) + (groups * GROUP + columns)
    inside = (rows[:, None, None] < num_rows) & (groups < NUM_GROUPS) & (columns < GROUP)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)  # [ROWS, GROUPS, WIDTH]
    extent = tl.max(tl.abs(x), axis=2)  # [ROWS, GROUPS]
    if KIND == "mxfp4":
        exponent = tl.maximum((extent.to(tl.int32, bitcast=True) >> 23) - 2, 1)
        step = (exponent << 23).to(tl.float32, bitcast=True)
        values = _round_to_e2m1(x, step, ROWS, GROUPS, WIDTH)
    else:
        base = tl.max(extent, axis=1) * top_inverse  # [ROWS]
        base = tl.where(base < _SMALLEST_BASE, 1.0, base)
        if KIND == "fp4h":
            base = power_of_two(base)
        wanted = tl.div_rn(extent * _SIXTH, tl.broadcast_to(base[:, None], (ROWS, GROUPS)))
        if KIND == "nvfp4":
            scale = _round_to_e4m3(tl.minimum(tl.maximum(wanted, _SMALLEST_SCALE), 448.0))
            values = _round_to_e2m1(x, scale * base[:, None], ROWS, GROUPS, WIDTH)
        else:
            values = _least_error(x, wanted, base, ROWS, GROUPS, WIDTH, LEVELS)
    tl.store(out_ptr + offsets, values, mask=inside)


@operator
def fp4_quantize(x: Tensor, group: int, kind: str) -> Tensor:
    """Quantize `x` [..., K] to FP4 per group of `group` values and decode it: float32 [..., K].

    kind: nvfp4, mxfp4 or fp4h. Raises ValueError for another kind and when `group` does not divide K.
    """
    if kind not in _KINDS:
        raise ValueError(f"fp4_quantize: kind={kind!r}, allowed are {', '.join(_KINDS)}")
    if x.shape[-1] % group:
        raise ValueError(f"fp4_quantize: group={group} does not divide the width {x.shape[-1]}")
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if not x.numel():
        return out
    # Without a base the groups of a row have nothing in common.
    num_groups = 1 if kind == "mxfp4" else x.shape[-1] // group
    num_rows = x.numel() // (num_groups * group)
    groups, width = power_above(num_groups), power_above(group)
    rows = max(1, _VALUES_PER_PROGRAM // (groups * width))
    start(
        _fp4_quantize_kernel,
        (ceil_div(num_rows, rows),),
        x,
        out,
        num_rows,
        _top_inverse(kind),
        KIND=kind,
        NUM_GROUPS=num_groups,
        GROUP=group,
        GROUPS=groups,
        WIDTH=width,
        LEVELS=width.bit_length() - 1,
        ROWS=rows,
        num_warps=min(_MOST_WARPS, rows * groups * width // _VALUES_PER_WARP),
        enable_fp_fusion=False,
    )
    return out


@fake_of(fp4_quantize)
def _(x, group, kind):
    return x.new_empty(x.shape, dtype=torch.float32)


def fp4_quantize_ref(x: Tensor, group: int, kind: str) -> Tensor:
    """The definition, in PyTorch: what `quantize(x)` of the format `kind` computes."""
    groups = x.float().unflatten(-1, (-1, group))
    extent = groups.abs().amax(-1, keepdim=True)
    if kind == "mxfp4":
        exponent = torch.frexp(extent).exponent.clamp(min=-123) - 3
        step = torch.ldexp(torch.ones_like(extent), exponent)
        return _round_to_e2m1_ref(groups, step).flatten(-2)
    base = extent.amax(-2, keepdim=True) * _top_inverse(kind)
    base = torch.where(base < 2.0**-100, 1.0, base)
    if kind == "fp4h":
        mantissa, exponent = torch.frexp(base)
        base = torch.ldexp(torch.ones_like(base), exponent - (mantissa == 0.5).int())
    wanted = extent * (1.0 / 6.0) / base
    if kind == "nvfp4":
        scale = wanted.clamp(2.0**-9, 448.0).to(torch.float8_e4m3fn).float()
        return _round_to_e2m1_ref(groups, scale * base).flatten(-2)
    return _least_error_ref(groups, wanted, base).flatten(-2)


def _top_inverse(kind: str) -> float:
    """Base of a row whose absmax is 1, for fp4h before it is rounded up.

    Over it, absmax is the largest group scale times the largest code, 6, or for fp4h times 4.
    """
    return 1.0 / (6.0 * 448.0 if kind == "nvfp4" else 4.0 * 64.0)


def _round_to_e2m1_ref(groups: Tensor, step: Tensor) -> Tensor:
    steps = groups / step
    size = steps.abs().clamp(max=6.0)
    unit = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    size = (size / unit).round() * unit
    return torch.where((steps < 0) & (size > 0), -size, size) * step


def _least_error_ref(groups: Tensor, wanted: Tensor, base: Tensor) -> Tensor:
    # 2^-7 also where 1.5 x 2^-8 would be.
    ladder = [2.0**-8, 2.0**-7, *(m * 2.0**e for e in range(-7, 6) for m in (1.0, 1.5)), 64.0]
    scales = torch.tensor(ladder, device=groups.device)
    index = torch.searchsorted(scales, wanted.clamp(2.0**-8, 64.0), right=True) - 1
    trials, totals = [], []
    for offset in (0, 1, 2):
        step = scales[(index + offset).clamp(max=len(ladder) - 1)] * base
        trials.append(_round_to_e2m1_ref(groups, step))
        error = (trials[-1] - groups).square()
        error = torch.nn.functional.pad(
            error, (0, power_above(groups.shape[-1]) - groups.shape[-1])
        )
        while error.shape[-1] > 1:
            error = error[..., 0::2] + error[..., 1::2]
        totals.append(error)
    overflow = torch.isinf(torch.stack(totals)).all(0)
    values = torch.where(totals[1] < totals[0], trials[1], trials[0])
    values = torch.where(totals[2] < torch.minimum(totals[0], totals[1]), trials[2], values)
    return torch.where(overflow, trials[1], values)
