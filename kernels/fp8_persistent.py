"""The product of two FP8 operands with a scale for each row of both, by a persistent Triton kernel.

As many programs as multiprocessors take tile after tile, and read operands by the tensor memory accelerator, ahead of
the product. Nothing uses it: `torch._scaled_mm`, which `fp8_linear` takes, was quicker at every shape that
`fp8_persistent_bench` compares them at, on an H100, by 2 to 11 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from dirotq_kernels.group_quantize import _round_to_bfloat16
from dirotq_kernels.launching import ceil_div
from dirotq_kernels.rotate_plan import processors
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class Tile:
    """What a program computes at a time: rows and columns of the output, of sums `depth` at a time.

    together: rows of tiles that are taken column by column, so that what they read is in the cache.
    """

    rows: int = 128
    columns: int = 256
    depth: int = 128
    warps: int = 8
    stages: int = 3
    together: int = 8


@triton.jit
def _place(tile, row_tiles, column_tiles, TOGETHER: tl.constexpr):
    """Row and column of a tile."""
    band = tile // (TOGETHER * column_tiles)
    first = band * TOGETHER
    rows = tl.minimum(row_tiles - first, TOGETHER)
    inside = tile % (TOGETHER * column_tiles)
    return first + inside % rows, inside // rows


@triton.jit
def persistent_kernel(
    a_desc,
    w_desc,
    scale_a_ptr,
    scale_w_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    num_columns,
    width,
    programs,
    BIAS: tl.constexpr,
    ROUNDS: tl.constexpr,  # a conversion to bfloat16 does, as a GPU's, but not the interpreter's
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Every `programs`-th tile of out [num_rows, num_columns], bfloat16."""
    row_tiles, column_tiles = tl.cdiv(num_rows, ROWS), tl.cdiv(num_columns, COLUMNS)
    steps = tl.cdiv(width, DEPTH)
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, programs, flatten=True):
        down, across = _place(tile, row_tiles, column_tiles, TOGETHER)
        y = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(steps):
            a = a_desc.load([down * ROWS, step * DEPTH])
            w = w_desc.load([across * COLUMNS, step * DEPTH])
            y = tl.dot(a, w.T, y)
        rows = down * ROWS + tl.arange(0, ROWS)
        columns = across * COLUMNS + tl.arange(0, COLUMNS)
        scale_a = tl.load(scale_a_ptr + rows, mask=rows < num_rows, other=0.0)
        scale_w = tl.load(scale_w_ptr + columns, mask=columns < num_columns, other=0.0)
        y = y * scale_a[:, None] * scale_w[None, :]
        if BIAS:
            bias = tl.load(bias_ptr + columns, mask=columns < num_columns, other=0.0)
            y += bias.to(tl.float32)[None, :]
        inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        places = rows.to(tl.int64)[:, None] * num_columns + columns[None, :]
        tl.store(out_ptr + places, y if ROUNDS else _round_to_bfloat16(y), mask=inside)


def persistent(
    tile: Tile, a: Tensor, scale_a: Tensor, w: Tensor, scale_w: Tensor, bias: Tensor | None
) -> Tensor:
    """`a` [M, K'] and `w` [N, K'] float8_e4m3fn, `scale_a` [M, 1] and `scale_w` [N, 1] float32 -> bfloat16 [M, N].

    bias: [N], any float dtype, or None. Both operands contiguous, K' a multiple of 16.
    """
    (rows, width), columns = a.shape, w.shape[0]
    out = torch.empty((rows, columns), dtype=torch.bfloat16, device=a.device)
    tiles = ceil_div(rows, tile.rows) * ceil_div(columns, tile.columns)
    programs = min(tiles, processors(a.device))
    if tiles:
        persistent_kernel[(programs,)](
            TensorDescriptor.from_tensor(a, [tile.rows, tile.depth]),
            TensorDescriptor.from_tensor(w, [tile.columns, tile.depth]),
            scale_a,
            scale_w,
            scale_w if bias is None else bias,
            out,
            *(rows, columns, width, programs),
            BIAS=bias is not None,
            ROUNDS=a.is_cuda,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            TOGETHER=tile.together,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out
