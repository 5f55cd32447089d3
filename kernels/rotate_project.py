"""The first two kernels of `rotate_quantize`: what does not grow with the product of rows and columns of its output.

`project_kernel` reads x once: partial sums of x times the subspace's codes and of |x|², each over a part of the
columns; beside them it does what `rotate_fold` is. `combine_kernel`
adds the partial sums up and makes of them all that concerns a row: its scale, its protected part, what is reflected.
"""

import triton
import triton.language as tl
from dirotq_kernels.fp4_quantize import power_of_two
from dirotq_kernels.fp4h_codes import inverse_of_power, round_to_e4m3
from dirotq_kernels.group_quantize import _round_to_bfloat16
from dirotq_kernels.rotate_fold import fold, operand

# Below this |x|² a row is taken for zero: squares of smaller numbers would lose what the bound needs.
_NO_ENERGY = tl.constexpr(2.0**-100)


@triton.jit
def product(total, x, right, TERMS: tl.constexpr, TYPE: tl.constexpr):
    """total + x right, `x` split into bfloat16 TERMS: one for bfloat16, two for float16, three for float32."""
    if TERMS == 1:
        total = tl.dot(x.to(TYPE), right, total)
    else:
        rest = x.to(tl.float32)
        for _ in tl.static_range(TERMS):
            # Its leading bits, which bfloat16 holds: exact, and one instruction where rounding takes four.
            part = (rest.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
            rest = rest - part
            total = tl.dot(part.to(TYPE), right, total)
    return total


@triton.jit
def _partial_sums(
    x_ptr,
    subspace_ptr,
    rows,
    ranks,
    num_rows,
    width,
    stride,
    rank,
    first_step,
    steps,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    RANKS: tl.constexpr,
    TERMS: tl.constexpr,
    TYPE: tl.constexpr,
):
    total = tl.zeros((ROWS, RANKS), tl.float32)
    energy = tl.zeros((ROWS, DEPTH), tl.float32)
    for step in range(first_step, tl.minimum(first_step + steps, tl.cdiv(width, DEPTH))):
        columns = step * DEPTH + tl.arange(0, DEPTH)
        inside = columns < width
        here = (rows < num_rows)[:, None] & inside[None, :]
        x = tl.load(x_ptr + rows[:, None] * stride + columns[None, :], mask=here, other=0.0)
        codes = tl.load(
            subspace_ptr + columns[:, None] * rank + ranks[None, :],
            mask=inside[:, None] & (ranks < rank)[None, :],
            other=0,
        )
        wide = x.to(tl.float32)
        energy += wide * wide
        total = product(total, x, operand(codes, TYPE), TERMS, TYPE)
    return total, tl.sum(energy, axis=1)


@triton.jit
def project_kernel(
    x_ptr,
    subspace_ptr,
    correction_ptr,
    signs_ptr,
    sums_ptr,  # float32 [splits, num_rows, rank]
    energy_ptr,  # float32 [splits, num_rows]
    mix_ptr,
    folded_ptr,  # the same memory, as float16 where PARTS is 1
    num_rows,
    width,
    stride,  # from a row of x to the next
    rank,
    splits,
    steps,  # of DEPTH columns, in a split
    fold_tiles,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    RANKS: tl.constexpr,
    TERMS: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Partial sums of a tile of rows, or for the first `fold_tiles` programs `fold`."""
    program, part = tl.program_id(0), tl.program_id(1)
    if program < fold_tiles:
        if part == 0:
            places = (correction_ptr, signs_ptr, mix_ptr, folded_ptr, width - rank, rank)
            fold(program, *places, PARTS, BLOCK, COLUMNS, RANKS, TYPE)
    else:
        program -= fold_tiles
        split = program % splits
        rows = (program // splits * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        ranks = part * RANKS + tl.arange(0, RANKS)
        source = (x_ptr, subspace_ptr, rows, ranks, num_rows, width, stride, rank)
        total, energy = _partial_sums(
            *source, split * steps, steps, ROWS, DEPTH, RANKS, TERMS, TYPE
        )
        present = rows < num_rows
        rows += split.to(tl.int64) * num_rows
        inside = present[:, None] & (ranks < rank)[None, :]
        tl.store(sums_ptr + rows[:, None] * rank + ranks[None, :], total, mask=inside)
        if part == 0:
            tl.store(energy_ptr + rows, energy, mask=present)


@triton.jit
def _load_scales(scales_ptr, ranks, rank):
    return tl.load(scales_ptr + ranks, mask=ranks < rank, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _row_scale(energy, projected, energy_bound, top_inverse, high_factor):
    """The least power of two over which neither the low nor the protected part can saturate."""
    left = energy * energy_bound - tl.sum(projected * projected, axis=1)
    largest = tl.max(tl.abs(projected), axis=1) * high_factor
    scale = tl.maximum(tl.sqrt(tl.maximum(left, 0.0)) * top_inverse, largest * (1.0 / 448.0))
    scale = power_of_two(tl.where(energy < _NO_ENERGY, 1.0, scale))
    # Of rows with infinities, NaN and squares that overflow nothing is left, and nothing must look as if it were.
    return tl.where(energy < float("inf"), scale, float("nan"))


@triton.jit
def _store_terms(target, reach_ptr, values, distance, inside, HALF: tl.constexpr):
    """Two numbers whose sum is the value: to 2^-22 of its row's largest, over a power of two, or bfloat16, to 2^-17."""
    if HALF:
        reach = power_of_two(tl.maximum(tl.max(tl.abs(values), axis=1), 2.0**-100))
        tl.store(reach_ptr, reach, mask=tl.max(inside.to(tl.int32), axis=1) > 0)
        values *= inverse_of_power(reach)[:, None]
        leading = values.to(tl.float16)
        tl.store(target, leading, mask=inside)
        tl.store(target + distance, (values - leading.to(tl.float32)).to(tl.float16), mask=inside)
    else:
        leading = _round_to_bfloat16(values)
        rest = _round_to_bfloat16(values - leading)
        tl.store(target, leading.to(tl.bfloat16), mask=inside)
        tl.store(target + distance, rest.to(tl.bfloat16), mask=inside)


@triton.jit
def _store_protected(target, values, distance, inside):
    """[a1 | a2 | a1] of `dirotq_kernels.fp8_layout`."""
    first = round_to_e4m3(values)
    second = round_to_e4m3((values - first) * 16.0).to(tl.float8e4nv)
    first = first.to(tl.float8e4nv)
    tl.store(target, first, mask=inside)
    tl.store(target + distance, second, mask=inside)
    tl.store(target + 2 * distance, first, mask=inside)


@triton.jit
def combine_kernel(
    x_ptr,
    sums_ptr,
    energy_ptr,
    subspace_scales_ptr,
    correction_scales_ptr,
    reflected_ptr,  # [num_rows, 2 rank], first and second terms
    reach_ptr,  # [num_rows]
    a_ptr,  # where KIND is float, the protected part [num_rows, rank]
    scale_ptr,
    num_rows,
    width,
    stride,
    rank,
    splits,
    energy_bound,  # |low|² + |high|² is at most |x|² times this
    top_inverse,
    high_factor,
    KIND: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
):
    """What concerns whole rows: scales, the protected columns of `a`, and what is reflected, in two parts."""
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    ranks = tl.arange(0, RANKS)
    present = rows < num_rows
    inside = present[:, None] & (ranks < rank)[None, :]
    projected = tl.zeros((ROWS, RANKS), tl.float32)
    energy = tl.zeros((ROWS,), tl.float32)
    for split in range(splits):
        places = rows + tl.cast(split, tl.int64) * num_rows
        projected += tl.load(
            sums_ptr + places[:, None] * rank + ranks[None, :], mask=inside, other=0.0
        )
        energy += tl.load(energy_ptr + places, mask=present, other=0.0)
    low = width - rank
    reflected = tl.load(
        x_ptr + rows[:, None] * stride + (low + ranks)[None, :], mask=inside, other=0.0
    )
    if SCALED:
        projected *= _load_scales(subspace_scales_ptr, ranks, rank)
    reflected = reflected.to(tl.float32) + projected
    if SCALED:
        reflected *= _load_scales(correction_scales_ptr, ranks, rank)
    target = reflected_ptr + rows[:, None] * (2 * rank) + ranks[None, :]
    _store_terms(target, reach_ptr + rows, reflected, rank, inside, SCALED)
    if KIND == "float":
        tl.store(a_ptr + rows[:, None] * rank + ranks[None, :], -projected, mask=inside)
    else:
        scale = _row_scale(energy, projected, energy_bound, top_inverse, high_factor)
        tl.store(scale_ptr + rows, scale, mask=present)
        high = projected * (-high_factor * inverse_of_power(scale))[:, None]
        target = a_ptr + rows[:, None] * (low + 3 * rank) + (low + ranks)[None, :]
        _store_protected(target, high, rank, inside)
