"""What 4-bit codes and the scales of their groups are worth, for kernels that read packed weights.

A word is 32 bits, eight codes of one row, the first in the lowest bits (`dirotq.formats.packing`). Codes are taken out
of it as bits of float32 numbers in two or three instructions, without conversions, which are slow on GPUs.
"""

# Tuples grow in loops that are unrolled.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

CODES_PER_WORD = 8

_SCALE_DTYPES = {
    "integer": torch.bfloat16,
    "nvfp4": torch.float8_e4m3fn,
    "mxfp4": torch.uint8,
    "fp4h": torch.uint8,
}
_HAVE_BASE = ("nvfp4", "fp4h")

# A product by it copies nibbles, one in each half of a word, to where bfloat16 has its sign, and to where it has its
# exponent's two lowest bits and its mantissa's highest: E2M1's numbers over 2^126, of which 0.5 is subnormal in both.
_TO_BFLOAT16 = tl.constexpr((1 << 12) + (1 << 6))
_E2M1_BITS = tl.constexpr(0x81C00000)
# E4M3's bits are a float32's from the 20th on, where that one is 2^-120 as large.
_E4M3_ONE = tl.constexpr(2.0**120)
# A float32's highest bits are its exponent and the first bit of its mantissa: fp4h's indices but for this, 2 (127 - 8).
_LADDER_BITS = tl.constexpr(238)


@triton.jit
def e2m1_values(words):
    """The eight codes of each word, uint32, of E2M1: float32, 2^-126 times their values."""
    values = ()
    for place in tl.static_range(8):
        # Most of the work is shared by codes four places apart.
        pair = (words >> (place % 4 // 2 * 8)) & (0xF000F << (place % 2 * 4))
        pair *= _TO_BFLOAT16 >> (place % 2 * 4)
        bits = (pair << (0 if place > 3 else 16)) & _E2M1_BITS
        values += (bits.to(tl.float32, bitcast=True),)
    return values


@triton.jit
def integer_values(words):
    """The eight codes of each word, uint32, of integers: float32."""
    values = ()
    words ^= 0x88888888
    for place in tl.static_range(8):
        # As the lowest bits of numbers that count in ones there; the first five without a shift of their own.
        bits = (words >> (place // 5 * 20)) & (0xF << (place % 5 * 4))
        bits |= (127 + 23 - place % 5 * 4) << 23
        values += (bits.to(tl.float32, bitcast=True) - (2.0 ** (23 - place % 5 * 4) + 8.0),)
    return values


@triton.jit
def integer_parts(words):
    """The eight codes of each word, uint32, of integers, plus 8, as parts of the word: float32, in units of 2^-149.

    One instruction each: float32 counts in 2^-149 up to the 24th bit. The last two are of the word without eight bits.
    """
    values = ()
    words ^= 0x88888888
    for place in tl.static_range(8):
        bits = (words >> (place // 6 * 8)) & (0xF << (place * 4 - place // 6 * 8))
        values += (bits.to(tl.float32, bitcast=True),)
    return values


@triton.jit
def group_scale(scales, KIND: tl.constexpr):
    """Stored scales of groups as float32, to be multiplied by the base where there is one."""
    if KIND == "integer":
        return scales.to(tl.float32)
    elif KIND == "nvfp4":
        return (scales.to(tl.int32) << 20).to(tl.float32, bitcast=True) * _E4M3_ONE
    elif KIND == "mxfp4":
        return (scales.to(tl.int32) << 23).to(tl.float32, bitcast=True)
    else:
        return ((scales.to(tl.int32) + _LADDER_BITS) << 22).to(tl.float32, bitcast=True)


def check_weight(
    op: str,
    codes: Tensor,
    scales: Tensor,
    base: Tensor | None,
    kind: str,
    group: int,
    width: int,
) -> None:
    """Raise ValueError, in the name of `op`, for what is no packed weight [N, width] or not made of whole words.

    codes uint8 [N, width / 2]; scales [N, ceil(width / group)] and base ([N, 1], [] or None) as `kind` has them.
    """
    if kind not in _SCALE_DTYPES:
        raise ValueError(f"{op}: kind={kind!r}, allowed are {', '.join(_SCALE_DTYPES)}")
    if width % CODES_PER_WORD or group < 1 or group % CODES_PER_WORD:
        raise ValueError(
            f"{op}: width={width}, group={group}; allowed are multiples of 8, whole words"
        )
    rows = codes.shape[0]
    if codes.dtype != torch.uint8 or codes.shape != (rows, width // 2):
        raise ValueError(
            f"{op}: codes are {codes.dtype} {tuple(codes.shape)}, allowed is torch.uint8 {(rows, width // 2)}"
        )
    wanted = (rows, -(-width // group))
    if scales.dtype != _SCALE_DTYPES[kind] or scales.shape != wanted:
        raise ValueError(
            f"{op}: scales are {scales.dtype} {tuple(scales.shape)}, allowed is {_SCALE_DTYPES[kind]} {wanted}"
        )
    shapes = [None] if kind not in _HAVE_BASE else [(rows, 1)] + [()] * (kind == "nvfp4")
    given = None if base is None else tuple(base.shape)
    if given not in shapes:
        raise ValueError(
            f"{op}: base has the shape {given}, allowed is {' or '.join(map(str, shapes))}"
        )


def words_of(codes: Tensor) -> Tensor:
    """Packed codes [N, K / 2] as int32 [N, K / 8]."""
    return codes.contiguous().view(torch.int32)


def scales_of(scales: Tensor) -> Tensor:
    """Stored scales, eight-bit floats as bytes."""
    scales = scales.contiguous()
    return scales.view(torch.uint8) if scales.dtype == torch.float8_e4m3fn else scales


def weight_values(
    codes: Tensor, scales: Tensor, base: Tensor | None, kind: str, group: int, width: int
) -> Tensor:
    """What the weights decode to, float32 [N, width], in PyTorch."""
    nibbles = torch.stack([codes & 0xF, codes >> 4], dim=-1).flatten(-2).long()
    if kind == "integer":
        values = [*range(8), *range(-8, 0)]
        steps = scales.float()
    else:
        sizes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        values = [*sizes, *(-size for size in sizes)]
        shift = {"nvfp4": 0, "mxfp4": 23, "fp4h": 22}[kind]
        offset = 238 if kind == "fp4h" else 0
        steps = ((scales.int() + offset) << shift).view(torch.float32) if shift else scales.float()
    if base is not None:
        steps = steps * base
    steps = steps.repeat_interleave(group, dim=-1)[:, :width]
    return torch.tensor(values, device=codes.device).float()[nibbles] * steps
