"""Quantize rows to E4M3 numbers over one scale a row: the activations of an FP8 product, where nothing is transformed.

A program reads its rows for their scales and, from the cache, once more, in tiles that fit the width. Bound: the bytes
of one read and of one write of a byte a value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dirotq_kernels.fp4_quantize import _least_error_ref, power_of_two
from dirotq_kernels.fp4h_codes import fp4h_values, inverse_of_power, round_to_e4m3
from dirotq_kernels.launching import ceil_div, power_above, start
from dirotq_kernels.operators import fake_of, operator
from dirotq_kernels.rotate_plan import processors
from torch import Tensor

# The kinds, and the largest value over the row scale.
_TOPS = {"fp4h": 256.0, "fp8": 448.0}
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_GROUP = 32
_COLUMNS = (1024, 512, 256, 128)  # of a tile
_MOST_PADDING = 1 / 16
# Values a warp holds: fewer where too few warps were at work.
_VALUES = (1024, 512, 256)
_WARPS = 24  # a multiprocessor


@triton.jit
def _quantize_rows_kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    num_rows,
    width,
    top_inverse,  # a row's scale is its absmax times this, but for rounding up
    KIND: tl.constexpr,
    POWER: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, GROUPS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    present = (rows < num_rows)[:, None, None]
    begins = rows[:, None, None] * width
    largest = tl.zeros((ROWS, GROUPS, 32), tl.float32)
    for first in range(0, width, 32 * GROUPS):
        places = (first + columns)[None, :, :]
        x = tl.load(x_ptr + begins + places, mask=present & (places < width), other=0.0)
        largest = tl.maximum(largest, tl.abs(x.to(tl.float32)))
    scale = tl.max(tl.max(largest, axis=2), axis=1) * top_inverse  # [ROWS]
    scale = tl.where(scale < 2.0**-100, 1.0, scale)
    if POWER:
        scale = power_of_two(scale)
        factor = inverse_of_power(scale)[:, None]
    for first in range(0, width, 32 * GROUPS):
        places = (first + columns)[None, :, :]
        inside = present & (places < width)
        # Still in the cache.
        x = tl.load(x_ptr + begins + places, mask=inside, other=0.0).to(tl.float32)
        if KIND == "fp4h":
            values = fp4h_values(x, factor, ROWS, GROUPS, EXACT=True)
        elif POWER:
            values = round_to_e4m3(x * factor[:, :, None])
        else:
            steps = tl.div_rn(x, tl.broadcast_to(scale[:, None, None], (ROWS, GROUPS, 32)))
            values = round_to_e4m3(steps)
        tl.store(codes_ptr + begins + places, values.to(tl.float8e4nv), mask=inside)
    tl.store(scale_ptr + rows, scale, mask=rows < num_rows)


def cut(rows: int, width: int, multiprocessors: int) -> tuple[int, int]:
    """Rows and columns of a tile, which one warp holds: little padding, and warps enough."""
    tiles = [columns for columns in _COLUMNS if -width % columns <= width * _MOST_PADDING]
    columns = min(tiles[0] if tiles else _COLUMNS[-1], max(_GROUP, power_above(width)))
    wanted = _WARPS * multiprocessors
    enough = [values for values in _VALUES if rows * columns >= values * wanted]
    return max(1, (enough[0] if enough else _VALUES[-1]) // columns), columns


@operator
def quantize_rows(x: Tensor, kind: str, power: bool = True) -> tuple[Tensor, Tensor]:
    """Quantize the rows of `x` [..., K] to a [M, K] float8_e4m3fn and scale [M, 1] float32, M the number of rows.

    a * scale is bitwise what `quantize(x)` of the format gives, but for the sign of zeros: of FP4H(group=32) for kind
    fp4h, of FP8(group=None, power) for fp8. power: scales of fp8 are rounded up to powers of two, as fp4h's are.
    Raises ValueError for another kind, for float64 and integers, and for fp4h unless 32 divides K.
    """
    if kind not in _TOPS:
        raise ValueError(f"quantize_rows: kind={kind!r}, allowed are {', '.join(_TOPS)}")
    if x.dtype not in _DTYPES:
        raise ValueError(
            f"quantize_rows: x of {x.dtype}, allowed are {', '.join(map(str, _DTYPES))}"
        )
    width = x.shape[-1]
    if kind == "fp4h" and (width % _GROUP or not power):
        raise ValueError(
            f"quantize_rows: fp4h of {width} columns, power={power}, allowed are multiples of 32 with power"
        )
    x = x.reshape(-1, width).contiguous()
    rows = x.shape[0]
    a = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    if not rows:
        return a, scale
    rows_each, columns = cut(rows, width, processors(x.device))
    start(
        _quantize_rows_kernel,
        (ceil_div(rows, rows_each),),
        *(x, a, scale, rows, width, 1.0 / _TOPS[kind]),
        KIND=kind,
        POWER=power,
        ROWS=rows_each,
        GROUPS=columns // _GROUP,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return a, scale


@fake_of(quantize_rows)
def _(x, kind, power=True):
    rows = x.numel() // x.shape[-1]
    a = x.new_empty((rows, x.shape[-1]), dtype=torch.float8_e4m3fn)
    return a, x.new_empty((rows, 1), dtype=torch.float32)


def quantize_rows_ref(x: Tensor, kind: str, power: bool = True) -> tuple[Tensor, Tensor]:
    """The same in PyTorch."""
    x = x.reshape(-1, x.shape[-1]).float()
    scale = x.abs().amax(1, keepdim=True) * (1.0 / _TOPS[kind])
    scale = torch.where(scale < 2.0**-100, 1.0, scale)
    if power:
        mantissa, exponent = torch.frexp(scale)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    if kind == "fp8":
        return (x / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale
    groups, base = x.unflatten(-1, (-1, _GROUP)), scale[..., None]
    wanted = groups.abs().amax(-1, keepdim=True) * (1.0 / 6.0) / base
    values = _least_error_ref(groups, wanted, base).flatten(-2) / scale
    # What overflows float32 decoded does so again times the scale; infinity itself is no E4M3 number.
    return values.clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale
