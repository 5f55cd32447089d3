"""Steps of FP4H and E4M3 for kernels that write E4M3 numbers over one power-of-two scale a row."""

import triton
import triton.language as tl
from dirotq_kernels.fp4_quantize import _round_to_e4m3, power_of_two

_SIXTH = tl.constexpr(1.0 / 6.0)
_TWO_THIRDS = tl.constexpr(2.0 / 3.0)
_SHIFT = tl.constexpr(2.0**22)
# Bits of float32 numbers: the smallest scale 2^-8, what would come next, 1.5 * 2^-8, and half an octave.
_LEAST = tl.constexpr(0x3B800000)
_LEFT_OUT = tl.constexpr(0x3BC00000)
_HALF_OCTAVE = tl.constexpr(0x400000)


@triton.jit
def inverse_of_power(x):
    """1 / x, exactly, for powers of two from 2^-126 to 2^126."""
    return (0x7F000000 - x.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def signed(size, like):
    """`size` with the signs of `like`, float32."""
    signs = like.to(tl.uint32, bitcast=True) & 0x80000000
    return (size.to(tl.uint32, bitcast=True) | signs).to(tl.float32, bitcast=True)


@triton.jit
def round_to_e4m3(x):
    """Nearest E4M3 numbers, in float32, of any `x`, saturating; ties to even, the sign of zeros is kept."""
    return signed(_round_to_e4m3(tl.minimum(tl.abs(x), 448.0)), x)


@triton.jit
def size_bits(x):
    """Bits of |x|, int32, which are ordered as sizes are, infinity and NaN above all others."""
    return x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def row_scale(sizes, top_inverse, POWER: tl.constexpr):
    """Scales of rows, over the last dimension of their `size_bits`: 1 where all are tiny, NaN where one is not finite.

    A maximum of the numbers themselves would leave NaN out.
    """
    largest = tl.max(sizes, axis=-1)
    scale = largest.to(tl.float32, bitcast=True) * top_inverse
    scale = tl.where(scale < 2.0**-100, 1.0, scale)
    scale = power_of_two(scale) if POWER else scale
    return tl.where(largest < 0x7F800000, scale, float("nan"))


@triton.jit
def _nearest(size, FLOOR: tl.constexpr):
    """Sizes rounded to two significant bits, ties to even, and below FLOOR in the steps that are right there.

    FLOOR = 1.5: E2M1 without its largest number (6, 8, 12, ... above 4). FLOOR = 3: twice that.
    2^22 times a float32 is a multiple of half its exponent's power of two, so the difference is rounded to one. It is
    a difference, because a sum could pass into the next octave, whose steps are too coarse for the product.
    """
    top = tl.maximum(size, FLOOR)
    return tl.fma(top, _SHIFT, tl.fma(top, -_SHIFT, size))


@triton.jit
def _inverse(bits):
    """1 / scale of scales' bits, rounded where it is 2/3 of a power of two.

    x * (2/3) for x / 1.5 changes no code: neither passes over a midpoint, and where x * (2/3) rounds to one (1.25, 2.5
    or 5, from below), the even code is the lower one.
    """
    power = (0x7F000000 - (bits & 0x7F800000)).to(tl.float32, bitcast=True)
    return tl.where((bits & _HALF_OCTAVE) != 0, power * _TWO_THIRDS, power)


@triton.jit
def _error(x, trial, step, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    # Not one fused sum: where the product overflows, as decoding would, the error is infinite.
    error = trial * step[:, :, None] - x
    error = error * error
    for level in tl.static_range(5):
        error = tl.sum(tl.reshape(error, (ROWS, GROUPS, 16 >> level, 2)), axis=3)
    return tl.reshape(error, (ROWS, GROUPS))


@triton.jit
def fp4h_values(x, factor, ROWS: tl.constexpr, GROUPS: tl.constexpr, EXACT: tl.constexpr):
    """FP4H of x * factor, group by group, over a base of 1: float32 [ROWS, GROUPS, 32], each an E4M3 number.

    factor: float32 [ROWS, GROUPS] or [ROWS, 1], positive, so small that no x * factor is above 256.
    EXACT: the scales are chosen bitwise as by the format's definition, for factors that are powers of two and in a
    kernel without fused sums; else by sums in another order, whose rounding counts where two errors are equal to 2^-20.
    """
    size = tl.abs(x)
    wanted = tl.maximum(tl.max(size, axis=2) * factor * _SIXTH, 0.00390625)
    bits = wanted.to(tl.int32, bitcast=True) & -_HALF_OCTAVE
    bits = tl.where(bits == _LEFT_OUT, _LEAST, bits)
    middle_bits = bits + tl.where(bits == _LEAST, 2 * _HALF_OCTAVE, _HALF_OCTAVE)
    # Of three scales the last is twice the first: its codes are found in units of the first.
    first, middle = bits.to(tl.float32, bitcast=True), middle_bits.to(tl.float32, bitcast=True)
    steps = size * (factor * _inverse(bits))[:, :, None]
    middle_steps = size * (factor * _inverse(middle_bits))[:, :, None]
    first_code = tl.minimum(_nearest(steps, 1.5), 6.0)
    middle_code = _nearest(middle_steps, 1.5)
    last_code = _nearest(steps, 3.0)
    if EXACT:
        unit = inverse_of_power(factor)
        first_error = _error(size, first_code, first * unit, ROWS, GROUPS)
        middle_error = _error(size, middle_code, middle * unit, ROWS, GROUPS)
        last_error = _error(size, last_code, first * unit, ROWS, GROUPS)
        # The middle one also where all squares overflow.
        use_middle = (middle_error < first_error) | (first_error == float("inf"))
    else:
        first_error = tl.sum((first_code - steps) * (first_code - steps), axis=2)
        middle_error = tl.sum((middle_code - middle_steps) * (middle_code - middle_steps), axis=2)
        last_error = tl.sum((last_code - steps) * (last_code - steps), axis=2)
        ratio = middle * _inverse(bits)
        middle_error = middle_error * (ratio * ratio)
        use_middle = middle_error < first_error
    use_last = last_error < tl.where(use_middle, middle_error, first_error)
    code = tl.where(use_middle[:, :, None], middle_code, first_code)
    code = tl.where(use_last[:, :, None], last_code, code)
    step = tl.where(use_middle & (use_last == 0), middle, first)
    # Plus zero, because minus zero times a step would be minus zero, which no code decodes to.
    return tl.fma(signed(code, x), step[:, :, None], 0.0)
