"""Correction, signs and Hadamard matrix of a compact transform, folded into one matrix a tile of columns."""

import triton
import triton.language as tl
from dirotq_kernels.group_quantize import _round_to_bfloat16


@triton.jit
def block_size(column, low, BLOCK: tl.constexpr):
    """Size of the Hadamard block that holds a column: BLOCK, but in the tail what its binary digits say."""
    full = low // BLOCK * BLOCK
    # The highest digit that a column of the tail does not share with the tail's width is its block's.
    digits = tl.maximum((column - full) ^ (low - full), 1).to(tl.float32)
    exponent = (digits.to(tl.int32, bitcast=True) >> 23) - 127
    return tl.where(column < full, BLOCK, 1 << exponent)


@triton.jit
def operand(stored, TYPE: tl.constexpr):
    """int8 codes, or bfloat16 numbers, as an operand."""
    if stored.dtype == tl.int8:
        # 1.5 * 2^23 and a small integer are added by their bits: conversions are eight times slower.
        bits = stored.to(tl.int32) + 0x4B400000
        stored = bits.to(tl.float32, bitcast=True) - 12582912.0
    return stored.to(TYPE)


@triton.jit
def _signed_hadamard(signs_ptr, tile, low, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of D H, [COLUMNS, COLUMNS]: plus and minus ones, zero outside the blocks.

    Columns are permuted: a thread of the tensor cores holds two neighbours of each eight, and these are what becomes
    COLUMNS / 4 neighbours.
    """
    inner = tl.arange(0, COLUMNS)
    row = (tile * COLUMNS + inner)[:, None]
    column = tile * COLUMNS + inner // 2 % 4 * (COLUMNS // 4) + inner // 8 * 2 + inner % 2
    column = column[None, :]
    size = block_size(column, low, BLOCK)
    # Sylvester's matrix has minus ones where the two indices share an odd number of digits.
    shared = row & column & (size - 1)
    shared = shared ^ (shared >> 4)
    shared = shared ^ (shared >> 2)
    shared = (shared ^ (shared >> 1)) & 1
    same = (row & -size) == (column & -size)
    sign = tl.load(signs_ptr + row, mask=row < low, other=0).to(tl.float32)
    return tl.where(same, 1.0 - 2.0 * shared.to(tl.float32), 0.0) * sign


@triton.jit
def fold(
    tile,
    correction_ptr,
    signs_ptr,
    mix_ptr,
    folded_ptr,
    low,
    rank,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    RANKS: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Write a tile's [COLUMNS + PARTS rank, COLUMNS]: D H, then - C D H, in two parts or as float16."""
    inner = tl.arange(0, COLUMNS)
    columns = tile * COLUMNS + inner
    hadamard = _signed_hadamard(signs_ptr, tile, low, BLOCK, COLUMNS)
    start = tile.to(tl.int64) * (COLUMNS + PARTS * rank) * COLUMNS
    mix_ptr += start
    folded_ptr += start
    tl.store(mix_ptr + inner[:, None] * COLUMNS + inner[None, :], hadamard.to(tl.bfloat16))
    hadamard = hadamard.to(TYPE)
    for start in range(0, rank, RANKS):
        ranks = start + tl.arange(0, RANKS)
        inside = (ranks < rank)[:, None]
        codes = tl.load(
            correction_ptr + ranks[:, None] * low + columns[None, :],
            mask=inside & (columns < low)[None, :],
            other=0,
        )
        folded = tl.dot(operand(codes, TYPE), hadamard)
        target = folded_ptr + (COLUMNS + ranks)[:, None] * COLUMNS + inner[None, :]
        if PARTS == 1:
            # Sums of codes: whole numbers, exact up to 2048, which sums of 64 or 128 hardly ever pass.
            tl.store(target, (-folded).to(tl.float16), mask=inside)
        else:
            leading = _round_to_bfloat16(folded)
            rest = _round_to_bfloat16(folded - leading)
            tl.store(target, (-leading).to(tl.bfloat16), mask=inside)
            tl.store(target + rank * COLUMNS, (-rest).to(tl.bfloat16), mask=inside)
