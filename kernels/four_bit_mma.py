"""Products of packed 4-bit weights with up to sixteen rows of bfloat16 inputs, by tensor cores, for kernels.

Even and odd columns are two products: the two codes of a byte are never put in order. E2M1 numbers times a group's
scale have at most six significant bits and are multiplied as bfloat16, exactly; integers' scales have eight of their
own and multiply the sums of a group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dirotq_kernels.four_bit import group_scale
from dirotq_kernels.launching import ceil_div
from dirotq_kernels.split_sums import write_sums
from torch import Tensor

INPUTS = 16  # rows of the input, a program
ROWS = 64  # of the weight, a program
_DEPTH = 64  # bytes of a row at a time
_LEAST_DEPTH = 16  # of a product
_PROGRAMS = 2 * 132  # on an H100: with fewer, sums are split

# Codes are taken for float32 numbers, 2^-126 times their values; scales bring them up to 2^-60, sums the rest.
_UP = tl.constexpr(2.0**66)
_REST = tl.constexpr(2.0**60)


@triton.jit
def _e2m1(codes, steps, DEPTH: tl.constexpr, GROUP: tl.constexpr, TYPE: tl.constexpr):
    """Codes, int32 in the lowest four bits, [ROWS, DEPTH], times steps [ROWS, DEPTH / GROUP]."""
    bits = ((codes & 7) << 22) | ((codes & 8) << 28)
    values = tl.reshape(bits.to(tl.float32, bitcast=True), (bits.shape[0], DEPTH // GROUP, GROUP))
    return tl.reshape(values * steps[:, :, None], (bits.shape[0], DEPTH)).to(TYPE)


@triton.jit
def _integers(codes, TYPE: tl.constexpr):
    # As the lowest bits of a float32 that counts in ones there.
    bits = ((codes & 15) ^ 8) | 0x4B000000
    return (bits.to(tl.float32, bitcast=True) - (8388608.0 + 8.0)).to(TYPE)


@triton.jit
def mma_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    base_ptr,
    bias_ptr,
    out_ptr,  # as of `weight_only`'s other kernel
    num_inputs,  # M
    num_rows,  # N
    steps,  # of DEPTH bytes, a program
    KIND: tl.constexpr,
    BYTES: tl.constexpr,  # in a row
    GROUP: tl.constexpr,  # bytes
    GROUPS: tl.constexpr,
    BASE: tl.constexpr,
    BIAS: tl.constexpr,
    DEPTH: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Sums over `steps` of each row's bytes."""
    inputs = tl.program_id(0) * INPUTS + tl.arange(0, INPUTS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(2)
    # Rows that are not there are read as the last one, and not written.
    row = tl.minimum(rows, num_rows - 1).to(tl.int64)[:, None]
    one = tl.minimum(inputs, num_inputs - 1).to(tl.int64)[:, None, None]
    y = tl.zeros((ROWS, INPUTS), tl.float32)
    for step in range(split * steps, split * steps + steps):
        byte = step * DEPTH + tl.arange(0, DEPTH)[None, :]
        codes = tl.load(codes_ptr + row * BYTES + byte, mask=byte < BYTES, other=0).to(tl.int32)
        column = 2 * byte[:, :, None] + tl.arange(0, 2)[None, None, :]
        x = tl.load(x_ptr + one * (2 * BYTES) + column, mask=column < 2 * BYTES, other=0.0)
        even, odd = tl.split(x.to(TYPE))
        even, odd = tl.trans(even), tl.trans(odd)
        if KIND == "integer":
            products = tl.dot(_integers(codes, TYPE), even)
            products = tl.dot(_integers(codes >> 4, TYPE), odd, products)
            group = tl.minimum(step * DEPTH // GROUP, GROUPS - 1)
            y += products * group_scale(tl.load(scales_ptr + row * GROUPS + group), KIND)
        else:
            group = step * (DEPTH // GROUP) + tl.arange(0, DEPTH // GROUP)[None, :]
            scale = tl.load(scales_ptr + row * GROUPS + group, mask=group < GROUPS, other=0)
            scale = group_scale(scale, KIND) * _UP
            y = tl.dot(_e2m1(codes, scale, DEPTH, GROUP, TYPE), even, y)
            y = tl.dot(_e2m1(codes >> 4, scale, DEPTH, GROUP, TYPE), odd, y)
    if KIND != "integer":
        y *= _REST
    rows, inputs = rows[:, None], inputs[None, :]
    places = (split * num_inputs + inputs).to(tl.int64) * num_rows + rows
    has_row = rows < num_rows
    inside = has_row & (inputs < num_inputs)
    write_sums(y, base_ptr, bias_ptr, out_ptr, places, inside, rows, has_row, BASE, BIAS)


def fits(x: Tensor, kind: str, group: int) -> bool:
    """Whether tensor cores can do it, and have more to do than to read the weights."""
    power = group & (group - 1) == 0
    if kind == "integer":
        whole = group % (2 * _DEPTH) == 0 or (power and group >= 2 * _LEAST_DEPTH)
    else:
        whole = power and 16 <= group <= 2 * _DEPTH
    return whole and x.dtype == torch.bfloat16 and x.shape[0] > 2


def splits_of(num_inputs: int, num_rows: int, width: int, kind: str, group: int) -> tuple[int, int]:
    """Parts of the sums, and bytes of a row at a time."""
    depth = min(_DEPTH, group // 2) if kind == "integer" else _DEPTH
    steps = ceil_div(width // 2, depth)
    programs = ceil_div(num_inputs, INPUTS) * ceil_div(num_rows, ROWS)
    each = ceil_div(steps, min(steps, ceil_div(_PROGRAMS, programs)))
    return ceil_div(steps, each), depth
