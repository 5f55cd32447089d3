"""Write a layer's packed weights as the right operand of its FP8 product (`fp8_layout`), in one pass over memory.

Bitwise what decoding FP4H and FP8x2 (`dirotq.formats`), dividing by the row's scale and casting to E4M3 gives. Bound:
the bytes of one read and one write. Of arithmetic there is room for some ten instructions a value (an H100 issues 29 T
a second and moves 3 TB).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dirotq_kernels.four_bit import weight_values
from dirotq_kernels.fp4_to_e4m3 import e4m3_bits, fp4_to_e4m3
from dirotq_kernels.fp8_layout import HIGH_SHIFT, pack_scale
from dirotq_kernels.launching import ceil_div, start
from dirotq_kernels.operators import fake_of, operator
from torch import Tensor

__all__ = ["pack_scale", "unpack_e4m3", "unpack_e4m3_ref"]

_BLOCK = 256  # a unit a thread: then no layout has to be converted
_CODES_PER_UNIT = 16  # in 64 bits, as one program element reads them
_HIGH_PER_UNIT = 4

_HIGH_FACTOR = tl.constexpr(2.0**HIGH_SHIFT)
# What an E4M3 number is worth whose bits are taken for a float32's, from the 20th on.
_E4M3_IN_FLOAT = tl.constexpr(2.0**120)
# A float32's highest bits are its exponent and the first bit of its mantissa: fp4h's indices but for this, 2 (127 - 8).
_LADDER_BITS = tl.constexpr(238)


@triton.jit
def _share(scale, whole):
    # scale / whole, powers of two; more than 1 only where there is nothing to scale.
    inverse = (0x7F000000 - whole.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    return tl.minimum(scale * inverse, 1.0)


@triton.jit
def _write_low(
    program,
    codes_ptr,
    scales_ptr,
    base_ptr,
    whole_ptr,
    out_ptr,
    num_units,
    UNITS: tl.constexpr,
    UNITS_PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    PTX: tl.constexpr,
):
    unit = program * BLOCK + tl.arange(0, BLOCK)
    inside = unit < num_units
    row = (unit // UNITS).to(tl.int64)
    column = unit % UNITS
    codes = tl.load(codes_ptr + unit, mask=inside, other=0)
    index = tl.load(scales_ptr + row * GROUPS + column // UNITS_PER_GROUP, mask=inside, other=0)
    base = tl.load(base_ptr + row, mask=inside, other=1.0)
    whole = tl.load(whole_ptr + row, mask=inside, other=1.0)
    ladder = ((index.to(tl.int32) + _LADDER_BITS) << 22).to(tl.float32, bitcast=True)
    step = ladder * _share(base, whole)
    first, second = fp4_to_e4m3(codes, step, PTX)
    place = row * (STRIDE // 8) + 2 * column
    places = place[:, None] + tl.arange(0, 2)[None, :]
    tl.store(out_ptr + places, tl.join(first, second), mask=inside[:, None])


@triton.jit
def _write_high(
    program,
    high_ptr,
    scale_ptr,
    whole_ptr,
    out_ptr,
    num_units,
    UNITS: tl.constexpr,
    OFFSET: tl.constexpr,  # of the first term, in 32-bit words
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    unit = program * BLOCK + tl.arange(0, BLOCK)
    inside = unit < num_units
    row = (unit // UNITS).to(tl.int64)
    codes = tl.load(high_ptr + unit, mask=inside, other=0)  # four int16
    scale = tl.load(scale_ptr + row, mask=inside, other=1.0) * _HIGH_FACTOR
    whole = tl.load(whole_ptr + row, mask=inside, other=1.0)
    factor = _share(scale, whole) * _E4M3_IN_FLOAT
    w1 = tl.zeros([BLOCK], tl.int32)
    w1_16 = tl.zeros([BLOCK], tl.int32)
    w2_16 = tl.zeros([BLOCK], tl.int32)
    for place in tl.static_range(4):
        code = (codes >> (16 * place)).to(tl.int32)
        first = ((code & 0x7F) << 20).to(tl.float32, bitcast=True) * factor
        second = ((code & 0x7F00) << 12).to(tl.float32, bitcast=True) * factor
        sign = code & 0x80
        w1 |= (e4m3_bits(first) | sign) << (8 * place)
        w1_16 |= (e4m3_bits(first * 0.0625) | sign) << (8 * place)
        w2_16 |= (e4m3_bits(second * 0.0625) | ((code >> 8) & 0x80)) << (8 * place)
    places = out_ptr + row * (STRIDE // 4) + OFFSET + unit % UNITS
    tl.store(places, w1, mask=inside)
    tl.store(places + UNITS, w1_16, mask=inside)
    tl.store(places + 2 * UNITS, w2_16, mask=inside)


@triton.jit
def _unpack_e4m3_kernel(
    codes_ptr,  # 64-bit words
    scales_ptr,
    base_ptr,
    high_ptr,  # 64-bit words
    high_scales_ptr,
    whole_ptr,
    out_ptr,  # as 64-bit words
    out_words_ptr,  # as 32-bit words
    low_units,  # in the matrix
    high_units,
    low_programs,
    LOW_UNITS: tl.constexpr,  # in a row
    HIGH_UNITS: tl.constexpr,
    UNITS_PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    STRIDE: tl.constexpr,  # bytes of a row that is written
    BLOCK: tl.constexpr,
    PTX: tl.constexpr,
):
    program = tl.program_id(0)
    if program < low_programs:
        _write_low(
            program,
            codes_ptr,
            scales_ptr,
            base_ptr,
            whole_ptr,
            out_ptr,
            low_units,
            LOW_UNITS,
            UNITS_PER_GROUP,
            GROUPS,
            STRIDE,
            BLOCK,
            PTX,
        )
    else:
        _write_high(
            program - low_programs,
            high_ptr,
            high_scales_ptr,
            whole_ptr,
            out_words_ptr,
            high_units,
            HIGH_UNITS,
            LOW_UNITS * 4,
            STRIDE,
            BLOCK,
        )


def unpacked(
    codes: Tensor,
    scales: Tensor,
    base: Tensor,
    high: Tensor | None,
    high_scales: Tensor | None,
    scale_w: Tensor,
    group: int = 32,
) -> Tensor:
    """Unpack a layer's weights into the right operand of its FP8 product: float8_e4m3fn [N, low + 3 r].

    codes uint8 [N, low / 2], scales uint8 [N, low / group] and base float32 [N, 1] of FP4H; high int16 [N, r] and
    high_scales float32 [N, 1] of FP8x2, or None; scale_w float32 [N, 1] of `pack_scale`.
    Raises ValueError when 32 does not divide low, 16 does not divide r or the group, or shapes do not belong together.
    """
    rows, width, r = _check(codes, scales, base, high, high_scales, scale_w, group)
    out = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=codes.device)
    if not out.numel():
        return out
    words = codes.contiguous().view(torch.int64)
    low_units, high_units = words.shape[1], r // _HIGH_PER_UNIT
    low_programs = ceil_div(rows * low_units, _BLOCK)
    high_programs = ceil_div(rows * high_units, _BLOCK)
    start(
        _unpack_e4m3_kernel,
        (low_programs + high_programs,),
        words,
        scales.contiguous(),
        base,
        words if high is None or not r else high.contiguous().view(torch.int64),
        base if high_scales is None else high_scales,
        scale_w,
        out.view(torch.int64),
        out.view(torch.int32),
        rows * low_units,
        rows * high_units,
        low_programs,
        LOW_UNITS=low_units,
        HIGH_UNITS=max(high_units, 1),
        UNITS_PER_GROUP=group // _CODES_PER_UNIT,
        GROUPS=scales.shape[1],
        STRIDE=width,
        BLOCK=_BLOCK,
        PTX=codes.is_cuda and torch.version.hip is None,
        num_warps=_BLOCK // 32,
    )
    return out


unpack_e4m3 = operator(unpacked, "unpack_e4m3")


@fake_of(unpack_e4m3)
def _(codes, scales, base, high, high_scales, scale_w, group=32):
    rows, width, _ = _check(codes, scales, base, high, high_scales, scale_w, group)
    return codes.new_empty((rows, width), dtype=torch.float8_e4m3fn)


def _check(codes, scales, base, high, high_scales, scale_w, group) -> tuple[int, int, int]:
    """Rows and columns of the operand, and r."""
    rows, low = codes.shape[0], 2 * codes.shape[1]
    r = 0 if high is None else high.shape[1]
    if low % 32 or r % 16 or group < 1 or group % 16:
        raise ValueError(
            f"unpack_e4m3: low={low}, r={r}, group={group}; allowed are multiples of 32, 16 and 16, for whole words"
        )
    given = {"scales": scales, "base": base, "scale_w": scale_w, "high_scales": high_scales}
    wanted = {"scales": (rows, -(-low // group)), "base": (rows, 1), "scale_w": (rows, 1)}
    if high is not None:
        wanted["high_scales"] = (rows, 1)
    for name, shape in wanted.items():
        tensor = given[name]
        if tensor is None or tuple(tensor.shape) != shape:
            found = None if tensor is None else tuple(tensor.shape)
            raise ValueError(f"unpack_e4m3: {name} has the shape {found}, allowed is {shape}")
    return rows, low + 3 * r, r


def unpack_e4m3_ref(
    codes: Tensor,
    scales: Tensor,
    base: Tensor,
    high: Tensor | None,
    high_scales: Tensor | None,
    scale_w: Tensor,
    group: int = 32,
) -> Tensor:
    """The definition, in PyTorch."""
    width = 2 * codes.shape[1]
    parts = [weight_values(codes, scales, base / scale_w, "fp4h", group, width)]
    if high is not None and high_scales is not None:
        terms = high.contiguous().view(torch.float8_e4m3fn).float().unflatten(-1, (-1, 2))
        first, second = (terms * (high_scales * 2.0**HIGH_SHIFT / scale_w)[..., None]).unbind(-1)
        parts += [first, first / 16, second / 16]
    return torch.cat(parts, dim=-1).to(torch.float8_e4m3fn)
