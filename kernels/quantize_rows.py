"""Quantize rows to E4M3 numbers over one scale a row: the activations of an FP8 product, where nothing is transformed.

A program reads its row for its scale and, where that is not kept, from the cache once more. Bound: the bytes of one
read and of one write of a byte a value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dirotq_kernels.fp4_quantize import _least_error_ref
from dirotq_kernels.fp4h_codes import (
    fp4h_values,
    inverse_of_power,
    round_to_e4m3,
    row_scale,
    size_bits,
)
from dirotq_kernels.launching import ceil_div, in_rows, power_above, start
from dirotq_kernels.operators import fake_of, operator
from torch import Tensor

# The kinds, and the largest value over the row scale.
_TOPS = {"fp4h": 256.0, "fp8": 448.0}
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_GROUP = 32
# Columns of a tile, and what one of them takes: of several warps less, as more is being read at a time.
_COSTS = {128: 14.5, 256: 12.0, 512: 10.0, 1024: 9.1, 2048: 8.4, 4096: 7.7}
_MOST_COLUMNS = 16384
_PER_WARP = 1024


@triton.jit
def _load(x_ptr, first, width, COLUMNS: tl.constexpr):
    """COLUMNS of a row in groups of 32, float32 [1, COLUMNS / 32, 32]."""
    places = first + tl.arange(0, COLUMNS)
    x = tl.load(x_ptr + places, mask=places < width, other=0.0).to(tl.float32)
    return tl.reshape(x, (1, COLUMNS // 32, 32))


@triton.jit
def _flat(x):
    return tl.reshape(x, (x.shape[1] * 32,))


@triton.jit
def _store(
    codes_ptr, first, width, x, scale, KIND: tl.constexpr, POWER: tl.constexpr, ROUNDS: tl.constexpr
):
    GROUPS: tl.constexpr = x.shape[1]
    if KIND == "fp4h":
        factor = tl.full((1, 1), 1.0, tl.float32) * inverse_of_power(scale)
        values = fp4h_values(x, factor, 1, GROUPS, EXACT=True)
    else:
        scales = tl.zeros((1, GROUPS, 32), tl.float32) + scale
        values = x * inverse_of_power(scales) if POWER else tl.div_rn(x, scales)
        if not ROUNDS:
            values = round_to_e4m3(values)
    places = first + tl.arange(0, 32 * GROUPS)
    codes = tl.reshape(values.to(tl.float8e4nv), (32 * GROUPS,))
    tl.store(codes_ptr + places, codes, mask=places < width)


@triton.jit
def _quantize_rows_kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    width,
    stride,  # from a row of x to the next
    top_inverse,  # a row's scale is its absmax times this, but for rounding up
    KIND: tl.constexpr,
    POWER: tl.constexpr,
    ROUNDS: tl.constexpr,  # a conversion to E4M3 does, as a GPU's, but not the interpreter's
    COLUMNS: tl.constexpr,
    WHOLE: tl.constexpr,  # COLUMNS are not fewer than the width
):
    """One row, which is kept where it is one tile, and else read once more for its codes."""
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * stride
    codes_ptr += row * width
    if WHOLE:
        x = _load(x_ptr, 0, width, COLUMNS)
        scale = row_scale(_flat(size_bits(x)), top_inverse, POWER)
        _store(codes_ptr, 0, width, x, scale, KIND, POWER, ROUNDS)
    else:
        sizes = tl.zeros((1, COLUMNS // 32, 32), tl.int32)
        for first in range(0, width, COLUMNS):
            x = _load(x_ptr, first, width, COLUMNS)
            sizes = tl.maximum(sizes, size_bits(x))
        scale = row_scale(_flat(sizes), top_inverse, POWER)
        for first in range(0, width, COLUMNS):
            x = _load(x_ptr, first, width, COLUMNS)
            _store(codes_ptr, first, width, x, scale, KIND, POWER, ROUNDS)
    tl.store(scale_ptr + row, scale)


def cut(width: int, kind: str) -> tuple[int, int]:
    """Columns of a tile and the warps that hold it: all, where reading takes the time, as little padding as is right.

    Padding costs as much as other columns where three scales are tried for each group.
    """
    columns = max(_GROUP, power_above(width))
    if kind == "fp4h":
        best = min(_COSTS, key=lambda tile: ceil_div(width, tile) * tile * _COSTS[tile])
        columns = min(columns, best)
    columns = min(columns, _MOST_COLUMNS)
    return columns, max(1, columns // _PER_WARP)


def quantized_rows(x: Tensor, kind: str, power: bool = True) -> tuple[Tensor, Tensor]:
    """Quantize the rows of `x` [..., K] to a [M, K] float8_e4m3fn and scale [M, 1] float32, M the number of rows.

    a * scale is bitwise what `quantize(x)` of the format gives, but for the sign of zeros: of FP4H(group=32) for kind
    fp4h, of FP8(group=None, power) for fp8. The scale of a row that is not finite
    is NaN. power: scales of fp8 are rounded up to powers of two, as fp4h's are.
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
    x = in_rows(x)
    rows = x.shape[0]
    a = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    if not rows:
        return a, scale
    columns, warps = cut(width, kind)
    start(
        _quantize_rows_kernel,
        (rows,),
        *(x, a, scale, width, x.stride(0), 1.0 / _TOPS[kind]),
        KIND=kind,
        POWER=power,
        ROUNDS=x.is_cuda,
        COLUMNS=columns,
        WHOLE=columns >= width,
        num_warps=warps,
        enable_fp_fusion=False,
    )
    return a, scale


quantize_rows = operator(quantized_rows, "quantize_rows")


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
    finite = x.isfinite().all(1, keepdim=True)
    scale = torch.where(finite, scale, float("nan"))
    if kind == "fp8":
        return (x / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale
    groups, base = x.unflatten(-1, (-1, _GROUP)), scale[..., None]
    wanted = groups.abs().amax(-1, keepdim=True) * (1.0 / 6.0) / base
    values = _least_error_ref(groups, wanted, base).flatten(-2) / scale
    # What overflows float32 decoded does so again times the scale; infinity itself is no E4M3 number.
    return values.clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale
