"""Accumulate second moments, total += XᵀX: a symmetric product of which only the lower half is computed.

Products of bfloat16 or float16 numbers are exact in the tensor cores; float32 numbers are split into three of bfloat16,
and the six products of theirs that reach float32's precision are taken. Sums are in float32 over at most 8192 rows and
then added to the total in its own dtype, so that they do not grow less precise with the number of calls. Each addition
loses at most 2^-23 of a sum (tensor cores cut off where others round), and no sum is larger than sqrt(S_ii S_jj), S the
moment of these rows. So of n rows added at once

    |error_ij| <= n 2^-23 sqrt(S_ii S_jj),

5e-4 at 4608 rows in the worst of cases; what it is in others, `second_moment_bench` measures. Bound on a GPU: n K²
operations, or one read and one write of half the total.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dirotq_kernels.launching import ceil_div, start
from torch import Tensor

_LONGEST = 8192
_GROUP = 8
_PARTS = tl.constexpr(4)
_MIRROR_BLOCK = 64
_TERMS = {torch.bfloat16: 1, torch.float16: 1, torch.float32: 3}
_TOTALS = (torch.float32, torch.float64)


@triton.jit
def _triangle(index):
    """Row and column of a pair (row >= column), counted row by row."""
    row = ((tl.sqrt((8 * index + 1).to(tl.float32)) - 1.0) * 0.5).to(tl.int32)
    # The root is not exact everywhere.
    row = tl.where(row * (row + 1) // 2 > index, row - 1, row)
    row = tl.where((row + 1) * (row + 2) // 2 <= index, row + 1, row)
    return row, index - row * (row + 1) // 2


@triton.jit
def _grouped(index, tiles, GROUP: tl.constexpr):
    """The same pairs, but GROUP rows at a time column by column: neighbours in time share what they read."""
    first = _triangle(index)[0] // GROUP * GROUP
    rows = tl.minimum(tiles - first, GROUP)
    index = index - first * (first + 1) // 2
    corner, edge = _triangle(tl.maximum(index - first * rows, 0))
    square = index < first * rows
    row = first + tl.where(square, index % rows, corner)
    return row, tl.where(square, index // rows, first + edge)


@triton.jit
def _product(
    total,
    left_ptr,
    right_ptr,
    num_rows,
    width,
    left,
    right,
    DEPTH: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """total += leftᵀ right over all rows, for the columns `left` and `right`."""
    depth = tl.arange(0, DEPTH)
    starts = depth.to(tl.int64)[:, None] * width
    left_ptrs = left_ptr + starts + left[None, :]
    right_ptrs = right_ptr + starts + right[None, :]
    for first in range(0, num_rows, DEPTH):
        inside = (first + depth)[:, None] < num_rows
        a = tl.load(left_ptrs, mask=inside & (left[None, :] < width), other=0.0)
        b = tl.load(right_ptrs, mask=inside & (right[None, :] < width), other=0.0)
        if INTERPRETED:
            # Triton's interpreter cannot multiply bfloat16.
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        total = tl.dot(tl.trans(a), b, total)
        left_ptrs += DEPTH * width
        right_ptrs += DEPTH * width
    return total


@triton.jit
def _add(
    total_ptr,
    width,
    first,
    right,
    tile,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Add a tile, which begins at the row `first`, to the total, some of its rows at a time: registers are few."""
    if PARTS > 1:
        half: tl.constexpr = ROWS // 2
        upper, lower = tl.split(tl.permute(tl.reshape(tile, (2, half, COLUMNS)), (1, 2, 0)))
        _add(total_ptr, width, first, right, upper, half, COLUMNS, PARTS // 2)
        _add(total_ptr, width, first + half, right, lower, half, COLUMNS, PARTS // 2)
    else:
        left = first + tl.arange(0, ROWS)
        offsets = left.to(tl.int64)[:, None] * width + right[None, :]
        inside = (left[:, None] < width) & (left[:, None] >= right[None, :])
        before = tl.load(total_ptr + offsets, mask=inside)
        tl.store(total_ptr + offsets, before + tile.to(before.dtype), mask=inside)


@triton.jit
def _second_moment_kernel(
    total_ptr,
    x_ptr,  # [TERMS, num_rows, width]
    num_rows,
    width,
    tiles,
    TERMS: tl.constexpr,
    ROWS: tl.constexpr,  # of a square tile of the total
    COLUMNS: tl.constexpr,  # of a program's part of it
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    parts: tl.constexpr = ROWS // COLUMNS
    row, column = _grouped(tl.program_id(0) // parts, tiles, GROUP)
    left = row * ROWS + tl.arange(0, ROWS)
    right = column * ROWS + tl.program_id(0) % parts * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    size = tl.cast(num_rows, tl.int64) * width
    # The small products first, while the sum is small.
    for order in tl.static_range(TERMS):
        for first in tl.static_range(TERMS - order):
            left_ptr = x_ptr + first * size
            right_ptr = x_ptr + (TERMS - 1 - order - first) * size
            total = _product(
                total, left_ptr, right_ptr, num_rows, width, left, right, DEPTH, INTERPRETED
            )
    _add(total_ptr, width, row * ROWS, right, total, ROWS, COLUMNS, _PARTS)


@triton.jit
def _mirror_kernel(total_ptr, width, BLOCK: tl.constexpr):
    row, column = _triangle(tl.program_id(0))
    rows = (row * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    columns = (column * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    below = (rows[:, None] < width) & (rows[:, None] > columns[None, :])
    tile = tl.load(total_ptr + rows[:, None] * width + columns[None, :], mask=below)
    above = (rows[None, :] < width) & (rows[None, :] > columns[:, None])
    tl.store(total_ptr + columns[:, None] * width + rows[None, :], tl.trans(tile), mask=above)


def _tile(width: int, terms: int) -> tuple[int, int, int, int, int]:
    """Rows and columns of a program's tile, depth of a step, warps and stages."""
    if terms == 1 and width > 4096:
        return 256, 128, 64, 8, 3
    return 128, 128, 64, 8, 3


@torch.library.custom_op("dirotq::second_moment_", mutates_args=("total",))
def second_moment_(total: Tensor, x: Tensor) -> None:
    """Add XᵀX of `x` [n, K] (bfloat16, float16 or float32) to `total` [K, K] (float32 or float64), in place.

    Only the diagonal and what lies below it: what lies above is not touched before `mirror_`.
    Raises ValueError for other dtypes and shapes, for a total that is not contiguous, and for tensors on two devices.
    """
    _check(total, x)
    for part in x.split(_LONGEST):
        _launch(total, part, *_tile(x.shape[1], _TERMS[x.dtype]))


@second_moment_.register_fake
def _(total: Tensor, x: Tensor) -> None:
    _check(total, x)


@torch.library.custom_op("dirotq::mirror_", mutates_args=("total",))
def mirror_(total: Tensor) -> None:
    """Write what lies below the diagonal of `total` [K, K] (float32 or float64) above it, in place.

    Raises ValueError for another dtype or shape and for a total that is not contiguous.
    """
    _check_total("mirror_", total)
    width = total.shape[0]
    tiles = ceil_div(width, _MIRROR_BLOCK)
    if tiles:
        start(_mirror_kernel, (tiles * (tiles + 1) // 2,), total, width, BLOCK=_MIRROR_BLOCK)


@mirror_.register_fake
def _(total: Tensor) -> None:
    _check_total("mirror_", total)


def second_moment_ref(total: Tensor, x: Tensor) -> None:
    """The definition, in PyTorch: the same in float64, but for the rounding of the total."""
    total += (x.double().T @ x.double()).tril().to(total.dtype)


def _launch(
    total: Tensor, x: Tensor, rows: int, columns: int, depth: int, warps: int, stages: int
) -> None:
    terms, (num_rows, width) = _TERMS[x.dtype], x.shape
    if not x.numel():
        return
    tiles = ceil_div(width, rows)
    start(
        _second_moment_kernel,
        (tiles * (tiles + 1) // 2 * (rows // columns),),
        total,
        x.contiguous() if terms == 1 else _split(x),
        num_rows,
        width,
        tiles,
        TERMS=terms,
        ROWS=rows,
        COLUMNS=columns,
        DEPTH=depth,
        GROUP=_GROUP,
        INTERPRETED=not x.is_cuda,
        num_warps=warps,
        num_stages=stages,
    )


def _split(x: Tensor) -> Tensor:
    """Three bfloat16 numbers [3, n, K] whose sum is `x` to the last bit of float32."""
    terms = torch.empty(3, *x.shape, dtype=torch.bfloat16, device=x.device)
    for term in terms:
        term.copy_(x)
        x = x - term
    return terms


def _check(total: Tensor, x: Tensor) -> None:
    _check_total("second_moment_", total)
    if x.ndim != 2 or x.shape[1] != total.shape[0]:
        raise ValueError(
            f"second_moment_: x {tuple(x.shape)} and total {tuple(total.shape)}, expected [n, K] and [K, K]"
        )
    if x.dtype not in _TERMS:
        raise ValueError(f"second_moment_: x is {x.dtype}, allowed are bfloat16, float16, float32")
    if x.device != total.device:
        raise ValueError(f"second_moment_: x is on {x.device}, the total on {total.device}")


def _check_total(name: str, total: Tensor) -> None:
    if total.ndim != 2 or total.shape[0] != total.shape[1] or not total.is_contiguous():
        raise ValueError(
            f"{name}: total {tuple(total.shape)}, allowed are contiguous square matrices"
        )
    if total.dtype not in _TOTALS:
        raise ValueError(f"{name}: total is {total.dtype}, allowed are float32, float64")
