"""Products of packed 4-bit weights with up to sixteen rows of bfloat16 inputs, by tensor cores, for kernels.

Columns are multiplied in an order in which a thread decodes what it reads: of the 128 columns of a step, four
neighbouring threads have 32 each, of which a product of sixteen takes four a thread. Inputs are put into that order,
not weights. E2M1 numbers times a group's scale have at most six significant bits and are multiplied as bfloat16,
exactly; integers times theirs have eleven, and are sums of two bfloat16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dirotq_kernels.four_bit import e2m1_values, group_scale, integer_values
from dirotq_kernels.launching import ceil_div
from dirotq_kernels.split_sums import write_sums
from torch import Tensor

INPUTS = 16  # rows of the input, a program
ROWS = 64  # of the weight, a program
_PROGRAMS = 8 * 132  # on an H100: with fewer, sums are split
_MOST_PARTS = 8

STEP = 16  # words of a row at a time
_WORDS = tl.constexpr(STEP)
_THREADS = tl.constexpr(4)  # that share a row's words

# E2M1 codes are taken for float32 numbers, 2^-126 times their values; scales bring them up to 2^-60, sums the rest.
_UP = tl.constexpr(2.0**66)
_REST = tl.constexpr(2.0**60)


@triton.jit
def _in_order(x):
    """Columns [.., 16, 2, 2, 2], of words and of places in them, in the order of products, as the second dimension."""
    LENGTH: tl.constexpr = x.shape[0]
    x = tl.reshape(x, (LENGTH, _THREADS, _WORDS // _THREADS, 2, 2, 2))
    return tl.reshape(tl.permute(x, (0, 2, 3, 4, 1, 5)), (LENGTH, _WORDS * 8))


@triton.jit
def _beside_each_other(values):
    """The eight values of each word, [.., 2, 2, 2]."""
    even = tl.join(tl.join(values[0], values[4]), tl.join(values[2], values[6]))
    odd = tl.join(tl.join(values[1], values[5]), tl.join(values[3], values[7]))
    return tl.join(even, odd)


@triton.jit
def _scales(
    ptr, row, step, WORDS: tl.constexpr, WORDS_PER_GROUP: tl.constexpr, SHARE: tl.constexpr
):
    """Of every SHARE words of a step, as they are stored."""
    word = step * _WORDS + SHARE * tl.arange(0, _WORDS // SHARE)
    group = tl.minimum(word, WORDS - 1) // WORDS_PER_GROUP
    groups: tl.constexpr = (WORDS + WORDS_PER_GROUP - 1) // WORDS_PER_GROUP
    return tl.load(ptr + row * groups + group[None, :])


@triton.jit
def _of_words(scales, KIND: tl.constexpr, SHARE: tl.constexpr):
    """What each word's values are multiplied by, [.., 16, 1, 1, 1]."""
    ROWS: tl.constexpr = scales.shape[0]
    scales = group_scale(scales, KIND)
    if KIND != "integer":
        scales *= _UP
    scales = tl.broadcast_to(scales[:, :, None], (ROWS, _WORDS // SHARE, SHARE))
    return tl.reshape(scales, (ROWS, _WORDS))[:, :, None, None, None]


@triton.jit
def mma_kernel(
    x_ptr,
    words_ptr,
    scales_ptr,
    base_ptr,
    bias_ptr,
    out_ptr,  # as of `weight_only`'s other kernel
    num_inputs,  # M
    num_rows,  # N
    steps,  # of 16 words, a program
    KIND: tl.constexpr,
    WORDS: tl.constexpr,  # in a row
    WORDS_PER_GROUP: tl.constexpr,
    SHARE: tl.constexpr,  # words of a step that have a scale in common
    EVEN: tl.constexpr,  # all words of a step are there
    BASE: tl.constexpr,
    BIAS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    TYPE: tl.constexpr,
):
    """Sums over `steps` of each row's words."""
    inputs = tl.program_id(0) * INPUTS + tl.arange(0, INPUTS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(2)
    # Rows that are not there are read as the last one, and not written.
    row = tl.minimum(rows, num_rows - 1).to(tl.int64)[:, None]
    one = tl.minimum(inputs, num_inputs - 1).to(tl.int64)[:, None]
    first = split * steps
    end = tl.minimum(first + steps, (WORDS + _WORDS - 1) // _WORDS)
    y = tl.zeros((ROWS, INPUTS), tl.float32)
    following = _scales(scales_ptr, row, first, WORDS, WORDS_PER_GROUP, SHARE)
    for step in range(first, end):
        word = step * _WORDS + tl.arange(0, _WORDS)[None, :]
        column = step * (_WORDS * 8) + tl.arange(0, _WORDS * 8)[None, :]
        if EVEN:
            words = tl.load(words_ptr + row * WORDS + word)
            x = tl.load(x_ptr + one * (WORDS * 8) + column)
        else:
            words = tl.load(words_ptr + row * WORDS + word, mask=word < WORDS, other=0)
            x = tl.load(x_ptr + one * (WORDS * 8) + column, mask=column < WORDS * 8, other=0.0)
        words = words.to(tl.uint32, bitcast=True)
        scale = _of_words(following, KIND, SHARE)
        # A step ahead, as no pipeline reads single bytes.
        later = tl.minimum(step + 1, end - 1)
        following = _scales(scales_ptr, row, later, WORDS, WORDS_PER_GROUP, SHARE)
        x = tl.trans(_in_order(tl.reshape(x.to(TYPE), (INPUTS, _WORDS, 2, 2, 2))))
        if KIND == "integer":
            values = _beside_each_other(integer_values(words)) * scale
            leading = (values.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
            y = tl.dot(_in_order(leading.to(TYPE)), x, y)
            y = tl.dot(_in_order((values - leading).to(TYPE)), x, y)
        else:
            values = _beside_each_other(e2m1_values(words)) * scale
            y = tl.dot(_in_order(values.to(TYPE)), x, y)
    if KIND != "integer":
        y *= _REST
    rows, inputs = rows[:, None], inputs[None, :]
    places = (split * num_inputs + inputs).to(tl.int64) * num_rows + rows
    has_row = rows < num_rows
    inside = has_row & (inputs < num_inputs)
    write_sums(y, base_ptr, bias_ptr, out_ptr, places, inside, rows, has_row, BASE, BIAS)


def fits(x: Tensor) -> bool:
    """Whether tensor cores can do it, and have more to do than to read the weights."""
    return x.dtype == torch.bfloat16 and x.shape[0] > 2


def parts_of(num_inputs: int, num_rows: int, words: int) -> int:
    """Parts that the sums are split into, so that programs are enough for the device."""
    programs = ceil_div(num_inputs, INPUTS) * ceil_div(num_rows, ROWS)
    return min(ceil_div(words, STEP), _MOST_PARTS, ceil_div(_PROGRAMS, programs))
