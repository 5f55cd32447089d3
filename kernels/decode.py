"""Decode packed 4-bit weights to bfloat16 in one pass over memory: the right side of a 16-bit product of many rows.

Bitwise what `Format.decode` (`dirotq.formats`) gives, rounded to bfloat16. Bound: the bytes of one read and one write.
"""

# Tuples grow in loops that are unrolled.
# mypy: disable-error-code="assignment"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dirotq_kernels.four_bit import (
    CODES_PER_WORD,
    check_weight,
    e2m1_values,
    group_scale,
    integer_values,
    scales_of,
    weight_values,
    words_of,
)
from dirotq_kernels.launching import ceil_div, start
from dirotq_kernels.operators import fake_of, operator
from torch import Tensor

_BLOCK = 256  # a word a thread, 16 bytes of output: then no layout has to be converted


@triton.jit
def _pairs(words, step, KIND: tl.constexpr):
    """The eight codes of each word, uint32, as four words of two bfloat16."""
    values = integer_values(words) if KIND == "integer" else e2m1_values(words)
    halves = ()
    for place in tl.static_range(8):
        value = values[place]
        if KIND != "integer":
            value *= 2.0**126
        bits = (value * step).to(tl.uint32, bitcast=True)
        # To even; a cast would truncate in Triton's interpreter. Of mxfp4 and fp4h codes and scales have two bits.
        if KIND == "integer" or KIND == "nvfp4":
            bits += 0x7FFF + ((bits >> 16) & 1)
        halves += (bits,)
    pairs = ()
    for place in tl.static_range(4):
        pairs += ((halves[2 * place] >> 16) | (halves[2 * place + 1] & 0xFFFF0000),)
    return pairs


@triton.jit
def _decode_kernel(
    words_ptr,
    scales_ptr,
    base_ptr,
    out_ptr,  # int32, pairs of bfloat16
    num_words,
    KIND: tl.constexpr,
    WORDS: tl.constexpr,  # in a row
    WORDS_PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BASE: tl.constexpr,  # bases from row to row: none, 0 or 1
    BLOCK: tl.constexpr,
):
    word = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = word < num_words
    row = word // WORDS
    column = (word % WORDS).to(tl.int32)
    words = tl.load(words_ptr + word, mask=inside, other=0).to(tl.uint32, bitcast=True)
    scales = tl.load(scales_ptr + row * GROUPS + column // WORDS_PER_GROUP, mask=inside, other=0)
    step = group_scale(scales, KIND)
    if BASE is not None:
        step *= tl.load(base_ptr + row * BASE, mask=inside, other=0.0)
    pairs = _pairs(words, step, KIND)
    pairs = tl.join(tl.join(pairs[0], pairs[2]), tl.join(pairs[1], pairs[3]))
    pairs = tl.reshape(pairs, (BLOCK, 4)).to(tl.int32, bitcast=True)
    places = word[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(out_ptr + places, pairs, mask=inside[:, None])


@operator
def decode(
    codes: Tensor, scales: Tensor, base: Tensor | None, kind: str, group: int, width: int
) -> Tensor:
    """Decode packed weights to bfloat16 [N, width].

    kind: integer (4 bits, symmetric), nvfp4, mxfp4 or fp4h. codes: uint8 [N, width / 2]; scales [N, ceil(width /
    group)] and base ([N, 1], [] or None) as a layer stores them. Raises ValueError for another kind, shapes or dtypes
    that do not belong together, and where 8 does not divide width and group.
    """
    check_weight("decode", codes, scales, base, kind, group, width)
    out = torch.empty((codes.shape[0], width), dtype=torch.bfloat16, device=codes.device)
    num_words = out.numel() // CODES_PER_WORD
    if not num_words:
        return out
    start(
        _decode_kernel,
        (ceil_div(num_words, _BLOCK),),
        words_of(codes),
        scales_of(scales),
        scales if base is None else base,
        out.view(torch.int32),
        num_words,
        KIND=kind,
        WORDS=width // CODES_PER_WORD,
        WORDS_PER_GROUP=group // CODES_PER_WORD,
        GROUPS=scales.shape[1],
        BASE=None if base is None else base.ndim // 2,
        BLOCK=_BLOCK,
        num_warps=_BLOCK // 32,
    )
    return out


@fake_of(decode)
def _(codes, scales, base, kind, group, width):
    check_weight("decode", codes, scales, base, kind, group, width)
    return codes.new_empty((codes.shape[0], width), dtype=torch.bfloat16)


def decode_ref(
    codes: Tensor, scales: Tensor, base: Tensor | None, kind: str, group: int, width: int
) -> Tensor:
    """The definition, in PyTorch."""
    return weight_values(codes, scales, base, kind, group, width).bfloat16()
