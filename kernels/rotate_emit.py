"""The last kernel of `rotate_quantize`: reads x again, a tile at a time, transforms it and writes its codes."""

import triton
import triton.language as tl
from dirotq_kernels.fp4h_codes import fp4h_values, inverse_of_power, round_to_e4m3
from dirotq_kernels.rotate_fold import block_size
from dirotq_kernels.rotate_project import product


@triton.jit
def _norms(first, low, BLOCK: tl.constexpr, GROUPS: tl.constexpr):
    """1 / sqrt(block size), float32, of each group of 32 columns from `first` on."""
    size = block_size(first + 32 * tl.arange(0, GROUPS), low, BLOCK).to(tl.float32)
    exponent = (size.to(tl.int32, bitcast=True) >> 23) - 127
    norm = ((127 - (exponent + 1) // 2) << 23).to(tl.float32, bitcast=True)
    return tl.where(exponent % 2 == 1, norm * 1.4142135623730951, norm)


@triton.jit
def _row_indices(start, num_rows, ROWS: tl.constexpr):
    """Rows from `start` on, int64; the last one again where there are no more, so that loads need no mask."""
    return tl.minimum(start + tl.arange(0, ROWS), num_rows - 1).to(tl.int64)


@triton.jit
def _load_tile(x_ptr, rows, column, stride, low, COLUMNS: tl.constexpr):
    columns = (column + tl.arange(0, COLUMNS))[None, :]
    return tl.load(x_ptr + rows[:, None] * stride + columns, mask=columns < low, other=0.0)


@triton.jit
def _reflected(ptr, rows, ranks, rank, TERM: tl.constexpr, EVEN: tl.constexpr):
    """A term of the coordinates `ranks`, [ROWS, RANKS]."""
    offsets = rows[:, None] * (2 * rank) + (TERM * rank + ranks)[None, :]
    if EVEN:
        return tl.load(ptr + offsets)
    else:
        return tl.load(ptr + offsets, mask=(ranks < rank)[None, :], other=0.0)


@triton.jit
def _tile_ptr(mix_ptr, column, rank, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    # The start is a multiple of COLUMNS already.
    return mix_ptr + column * (COLUMNS + PARTS * rank).to(tl.int64)


@triton.jit
def _hadamard(mix_ptr, column, rank, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    inner = tl.arange(0, COLUMNS)
    tile_ptr = _tile_ptr(mix_ptr, column, rank, COLUMNS, PARTS)
    return tl.load(tile_ptr + inner[:, None] * COLUMNS + inner[None, :])


@triton.jit
def _folded(
    mix_ptr,
    column,
    ranks,
    rank,
    PART: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Rows `ranks` of a tile's folded correction, or of its second part."""
    tile_ptr = _tile_ptr(mix_ptr, column, rank, COLUMNS, PARTS)
    offsets = (COLUMNS + PART * rank + ranks)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    if EVEN:
        return tl.load(tile_ptr + offsets)
    else:
        return tl.load(tile_ptr + offsets, mask=(ranks < rank)[:, None], other=0.0)


@triton.jit
def _ordered(row, ROWS: tl.constexpr):
    """Rows from `row` on, int64, in an order in which a thread holds what it stores, and nothing need be exchanged.

    In the tensor cores' order it has two neighbours of each eight columns, and rows eight apart.
    """
    lane = tl.arange(0, ROWS)
    order = lane % (ROWS // 2) // 8 * 16 + lane // (ROWS // 2) * 8 + lane % 8
    return (row + order).to(tl.int64)


@triton.jit
def _inverse_scales(scale_ptr, rows, num_rows, KIND: tl.constexpr):
    if KIND == "float":
        return rows
    else:
        return inverse_of_power(tl.load(scale_ptr + rows, mask=rows < num_rows, other=1.0))


@triton.jit
def _write(
    sums,
    inverse,
    a_ptr,
    rows,
    column,
    num_rows,
    width,
    rank,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Quantize a tile's products, and store them; where KIND is float, as they are into [num_rows, low]."""
    sums = tl.reshape(sums, (ROWS // 16, 2, 8, COLUMNS // 8, 4, 2))
    sums = tl.reshape(tl.permute(sums, (1, 0, 2, 4, 3, 5)), (ROWS, COLUMNS // 32, 32))
    low = width - rank
    factor = _norms(column, low, BLOCK, COLUMNS // 32)[None, :]
    columns = column + tl.arange(0, COLUMNS)
    inside = (rows < num_rows)[:, None] & (columns < low)[None, :]
    if KIND == "float":
        values = tl.reshape(sums * factor[:, :, None], (ROWS, COLUMNS))
        tl.store(a_ptr + rows[:, None] * low + columns[None, :], values, mask=inside)
        return
    factor = inverse[:, None] * factor
    if KIND == "fp4h":
        values = fp4h_values(sums, factor, ROWS, COLUMNS // 32, EXACT=False)
    else:
        values = sums * factor[:, :, None]
        if tl.float32 == TYPE:
            # A conversion of the GPU does it, but not the interpreter's.
            values = round_to_e4m3(values)
    # Of three dimensions, as loads of the same shape would be laid out like this store, 16 numbers a thread.
    codes = tl.reshape(values.to(tl.float8e4nv), (ROWS, 1, COLUMNS))
    places = rows[:, None, None] * (low + 3 * rank) + columns[None, None, :]
    inside = (rows < num_rows)[:, None, None] & (columns < low)[None, None, :]
    tl.store(a_ptr + places, codes, mask=inside)


@triton.jit
def rotate_kernel(
    x_ptr,
    reflected_ptr,
    reach_ptr,
    mix_ptr,
    folded_ptr,  # the same memory, as the reflected's type
    scale_ptr,
    a_ptr,
    num_rows,
    width,
    stride,  # from a row of x to the next
    rank,
    tiles,  # of a program
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    ACROSS: tl.constexpr,
    RANKS: tl.constexpr,
    WHOLE: tl.constexpr,  # RANKS is not below the rank
    EVEN: tl.constexpr,  # RANKS divides the rank
    PARTS: tl.constexpr,  # of the folded correction
    TERMS: tl.constexpr,
    TYPE: tl.constexpr,
    HALF: tl.constexpr,
):
    """Low codes of a tile of rows in several tiles of columns (ACROSS), or the other way round."""
    ranks = tl.arange(0, RANKS)
    row = tl.program_id(0) * ROWS
    column = tl.program_id(0) * COLUMNS
    rows = _row_indices(row, num_rows, ROWS)
    if ACROSS:
        num_tiles = tl.cdiv(width - rank, COLUMNS)
        first = _reflected(reflected_ptr, rows, ranks, rank, 0, EVEN).to(HALF)
        second = _reflected(reflected_ptr, rows, ranks, rank, 1, EVEN).to(HALF)
        written = _ordered(row, ROWS)
        inverse = _inverse_scales(scale_ptr, written, num_rows, KIND)
        if PARTS == 1:
            reach = tl.load(reach_ptr + rows)[:, None]
    else:
        num_tiles = tl.cdiv(num_rows, ROWS)
        hadamard = _hadamard(mix_ptr, column, rank, COLUMNS, PARTS).to(TYPE)
    start = tl.program_id(1) * tiles
    end = tl.minimum(start + tiles, num_tiles)
    for tile in range(start, end):
        if ACROSS:
            column = tile * COLUMNS
            hadamard = _hadamard(mix_ptr, column, rank, COLUMNS, PARTS).to(TYPE)
        else:
            row = tile * ROWS
            rows = _row_indices(row, num_rows, ROWS)
            written = _ordered(row, ROWS)
            inverse = _inverse_scales(scale_ptr, written, num_rows, KIND)
            if PARTS == 1:
                reach = tl.load(reach_ptr + rows)[:, None]
        x = _load_tile(x_ptr, rows, column, stride, width - rank, COLUMNS)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for part in range(0, 1 if WHOLE else rank, RANKS):
            place = (folded_ptr, column, part + ranks, rank)
            folded = _folded(*place, 0, COLUMNS, PARTS, EVEN).to(HALF)
            if not (ACROSS and WHOLE):
                place_left = (reflected_ptr, rows, part + ranks, rank)
                first = _reflected(*place_left, 0, EVEN).to(HALF)
                second = _reflected(*place_left, 1, EVEN).to(HALF)
            sums = tl.dot(first, folded, sums)
            sums = tl.dot(second, folded, sums)
            if PARTS == 2:
                rest = _folded(*place, 1, COLUMNS, PARTS, EVEN).to(HALF)
                sums = tl.dot(first, rest, sums)
        if PARTS == 1:
            sums *= reach
        sums = product(sums, x, hadamard, TERMS, TYPE)
        target = (inverse, a_ptr, written, column, num_rows, width, rank)
        _write(sums, *target, KIND, BLOCK, COLUMNS, ROWS, TYPE)
