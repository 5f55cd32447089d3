"""Dot products of a few rows of packed 4-bit codes with a few rows of inputs, for kernels.

A thread has one word of eight codes in each row of the weight at a time, and the eight inputs of each row that belong
to it: what is read from memory lies in the registers where it is used. Products are summed in float32, in an order that
depends on the shapes alone; a group's scale multiplies sums of eight.
"""

# Tuples grow in loops that are unrolled.
# mypy: disable-error-code="assignment, var-annotated"

import triton
import triton.language as tl
from dirotq_kernels.four_bit import e2m1_values, group_scale, integer_parts

# Codes are taken for float32 numbers without any conversion: integers for the lowest bits, which count in 2^-149, E2M1
# for exponents, which begin at 2^-126. Inputs are multiplied by most of what is missing, sums by the rest, so that all
# numbers are normal and lose nothing. Inputs may be as large as 2^30.
_INPUT_EXPONENT = tl.constexpr(96)
_INTEGER_REST = tl.constexpr(2.0 ** (149 - 96))
_E2M1_REST = tl.constexpr(2.0 ** (126 - 96))


@triton.jit
def _load(ptr, inside, EVEN: tl.constexpr):
    if EVEN:
        return tl.load(ptr)
    else:
        return tl.load(ptr, mask=inside, other=0)


@triton.jit
def _inputs(x_ptr, word, inside, KIND: tl.constexpr, EVEN: tl.constexpr, THREADS: tl.constexpr):
    """What the codes of a word are multiplied by, in order, and what their products are added to: nine of [THREADS]."""
    columns = tl.arange(0, 8)
    x = _load(x_ptr + word[:, None] * 8 + columns[None, :], inside[:, None], EVEN).to(tl.float32)
    start = tl.zeros([THREADS], tl.float32)
    exponents = tl.full([8], _INPUT_EXPONENT, tl.int32)
    if KIND == "integer":
        # `integer_parts` are larger by 8, and by 2^4 from place to place.
        start = tl.sum(x, axis=1) * (-8.0 / _INTEGER_REST)
        exponents -= tl.where(columns > 5, 4 * columns - 8, 4 * columns)
    x *= ((127 + exponents) << 23).to(tl.float32, bitcast=True)[None, :]
    even, odd = tl.split(tl.reshape(x, [THREADS, 2, 2, 2]))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x1, x5 = tl.split(x15)
    x2, x6 = tl.split(x26)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7, start


@triton.jit
def _add_chunk(
    totals,
    x_ptr,
    words_ptr,
    scales_ptr,
    last_input,
    last_row,
    word,
    KIND: tl.constexpr,
    WORDS: tl.constexpr,
    WORDS_PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    EVEN: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    THREADS: tl.constexpr,
):
    """`totals`, ROWS * INPUTS of [THREADS], plus the products of each row's words at `word` [THREADS]."""
    inside = word < WORDS
    inputs = ()
    for i in tl.static_range(INPUTS):
        row = i if last_input is None else tl.minimum(i, last_input)
        inputs += (_inputs(x_ptr + row * (WORDS * 8), word, inside, KIND, EVEN, THREADS),)
    words_ptr += word
    scales_ptr += word // WORDS_PER_GROUP
    added = ()
    for j in tl.static_range(ROWS):
        row = j if last_row is None else tl.minimum(j, last_row)
        words = _load(words_ptr + row * WORDS, inside, EVEN).to(tl.uint32, bitcast=True)
        step = group_scale(_load(scales_ptr + row * GROUPS, inside, EVEN), KIND)
        codes = integer_parts(words) if KIND == "integer" else e2m1_values(words)
        for i in tl.static_range(INPUTS):
            products = inputs[i][8]
            for place in tl.static_range(8):
                products += codes[place] * inputs[i][place]
            added += (totals[j * INPUTS + i] + products * step,)
    return added


@triton.jit
def _stack(tensors, FIRST: tl.constexpr, STEP: tl.constexpr, COUNT: tl.constexpr):
    """COUNT tensors [THREADS], every STEP-th from FIRST on, as one [THREADS, COUNT]."""
    THREADS: tl.constexpr = tensors[0].shape[0]
    if COUNT == 1:
        return tl.reshape(tensors[FIRST], [THREADS, 1])
    else:
        even = _stack(tensors, FIRST, 2 * STEP, COUNT // 2)
        odd = _stack(tensors, FIRST + STEP, 2 * STEP, COUNT // 2)
        return tl.reshape(tl.join(even, odd), [THREADS, COUNT])


@triton.jit
def dot_products(
    x_ptr,
    words_ptr,
    scales_ptr,
    last_input,
    last_row,
    first_word,
    KIND: tl.constexpr,
    WORDS: tl.constexpr,  # in a row
    WORDS_PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    EVEN: tl.constexpr,
    CHUNKS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    THREADS: tl.constexpr,
):
    """Sums over CHUNKS * THREADS words of each row from first_word on, [ROWS * INPUTS], without the rows' bases.

    Pointers are to the first rows. last_input, last_row: numbers of the last rows that there are, read again in place
    of others beyond them; None where all are there: distances are constants then, parts of the instructions that load.
    EVEN: all words are there, too.
    """
    totals = ()
    for _ in tl.static_range(ROWS * INPUTS):
        totals += (tl.zeros([THREADS], tl.float32),)
    for chunk in range(CHUNKS):
        totals = _add_chunk(
            totals,
            x_ptr,
            words_ptr,
            scales_ptr,
            last_input,
            last_row,
            first_word + chunk * THREADS + tl.arange(0, THREADS),
            KIND,
            WORDS,
            WORDS_PER_GROUP,
            GROUPS,
            EVEN,
            INPUTS,
            ROWS,
            THREADS,
        )
    sums = tl.sum(_stack(totals, 0, 1, ROWS * INPUTS), axis=0)
    return sums * (_INTEGER_REST if KIND == "integer" else _E2M1_REST)
