"""The randomized Hadamard transform of whole rows, and its quantization to E4M3 numbers.

With ±1 signs s and Hadamard matrices H_1 to H_n of at most three orders (`dirotq.transforms.Hadamard`)

    y = (x * s) (H_1 x ... x H_n) / sqrt(K).

A program holds whole rows, each dimension filled up to a power of two, and multiplies one factor after the other by
tensor cores: the input as it is, what lies between as three terms of bfloat16 (2^-24), by matrices of ±1. Bound: the
bytes of one read of x and of one write of a byte a value, or of four where it is not quantized.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from dirotq_kernels.fp4h_codes import inverse_of_power, round_to_e4m3, row_scale, size_bits
from dirotq_kernels.launching import ceil_div, in_rows, power_above, start
from dirotq_kernels.operators import fake_of, operator
from dirotq_kernels.quantize_rows import quantize_rows_ref, quantized_rows
from dirotq_kernels.rotate_check import TERMS, TOPS
from dirotq_kernels.rotate_fold import operand
from dirotq_kernels.rotate_project import product
from torch import Tensor

_MOST_FACTORS = 3
_LEAST = 16  # of a product of tensor cores
# A program. With more, eight warps can hold several rows, and Triton 3.6 takes a row's maximum wrongly where the warps
# that share it are not neighbours.
_VALUES = 4096
_MOST_VALUES = 32768


@triton.jit
def _times_factor(
    x,
    matrix_ptr,
    ORDER: tl.constexpr,
    PADDED: tl.constexpr,
    TERMS: tl.constexpr,
    TYPE: tl.constexpr,
):
    """The leading dimension of each row of `x` [ROWS, n] times a matrix [ORDER, ORDER]; it is the last one then."""
    ROWS: tl.constexpr = x.shape[0]
    REST: tl.constexpr = x.shape[1] // PADDED
    x = tl.permute(tl.reshape(x, (ROWS, PADDED, REST)), (0, 2, 1))
    inner = tl.arange(0, PADDED)
    inside = (inner < ORDER)[:, None] & (inner < ORDER)[None, :]
    codes = tl.load(matrix_ptr + inner[:, None] * ORDER + inner[None, :], mask=inside, other=0)
    y = tl.zeros((ROWS * REST, PADDED), tl.float32)
    y = product(y, tl.reshape(x, (ROWS * REST, PADDED)), operand(codes, TYPE), TERMS, TYPE)
    return tl.reshape(y, (ROWS, REST * PADDED))


@triton.jit
def hadamard_kernel(
    x_ptr,
    signs_ptr,
    factors_ptr,
    out_ptr,
    scale_ptr,
    num_rows,
    stride,  # from a row of x to the next
    norm,
    top_inverse,
    QUANTIZE: tl.constexpr,  # to E4M3 numbers over a scale a row, else out is float32
    ROUNDS: tl.constexpr,  # a conversion to E4M3 does, as a GPU's, but not the interpreter's
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    THIRD: tl.constexpr,
    FIRST_PADDED: tl.constexpr,
    SECOND_PADDED: tl.constexpr,
    THIRD_PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    TERMS: tl.constexpr,
    TYPE: tl.constexpr,
):
    """ROWS rows of out [num_rows, FIRST * SECOND * THIRD]."""
    PADDED: tl.constexpr = FIRST_PADDED * SECOND_PADDED * THIRD_PADDED
    WIDTH: tl.constexpr = FIRST * SECOND * THIRD
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    place = tl.arange(0, PADDED)
    first = place // (SECOND_PADDED * THIRD_PADDED)
    second, third = place // THIRD_PADDED % SECOND_PADDED, place % THIRD_PADDED
    columns = (first * SECOND + second) * THIRD + third
    there = (first < FIRST) & (second < SECOND) & (third < THIRD)
    inside = (rows < num_rows)[:, None] & there[None, :]
    x = tl.load(x_ptr + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)
    signs = tl.load(signs_ptr + columns, mask=there, other=0)
    flips = (signs.to(tl.int32) & -2147483648)[None, :]
    x = (x.to(tl.float32).to(tl.int32, bitcast=True) ^ flips).to(tl.float32, bitcast=True)
    y = _times_factor(x, factors_ptr, FIRST, FIRST_PADDED, TERMS, TYPE)
    if SECOND_PADDED > 1:
        factors_ptr += FIRST * FIRST
        y = _times_factor(y, factors_ptr, SECOND, SECOND_PADDED, 3, TYPE)
    if THIRD_PADDED > 1:
        factors_ptr += SECOND * SECOND
        y = _times_factor(y, factors_ptr, THIRD, THIRD_PADDED, 3, TYPE)
    y *= norm
    if QUANTIZE:
        scale = row_scale(size_bits(y), top_inverse, True)
        tl.store(scale_ptr + rows, scale, mask=rows < num_rows)
        y *= inverse_of_power(scale)[:, None]
        y = y if ROUNDS else round_to_e4m3(y)
    y = y.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows[:, None] * WIDTH + columns[None, :], y, mask=inside)


def unfit(width: int, orders: list[int]) -> str | None:
    """Why the kernel does not transform rows of `width` by factors of these orders, or None."""
    padded = _padded(orders)
    if math.prod(orders) != width or not 1 <= len(orders) <= _MOST_FACTORS:
        return (
            f"{width} columns by orders {orders}, allowed are one to three that make up the width"
        )
    if math.prod(padded) > _MOST_VALUES:
        return f"orders {orders}, which fill up to {padded}, allowed are {_MOST_VALUES} values"
    return None


@operator
def hadamard(x: Tensor, signs: Tensor, factors: Tensor, orders: list[int]) -> Tensor:
    """Transform `x` [..., K]: [M, K] float32, M the number of rows of x.

    x: bfloat16, float16 or float32. signs: int8 [K]. factors: the matrices of ±1 of `orders`, ascending or not, whose
    product is K, each in rows, one after the other, int8. Raises ValueError for what does not fit together.
    """
    return _transformed(_checked(x, signs, factors, orders), signs, factors, orders)


@fake_of(hadamard)
def _(x, signs, factors, orders):
    return x.new_empty((x.numel() // x.shape[-1], x.shape[-1]), dtype=torch.float32)


@operator
def hadamard_quantize(
    x: Tensor, signs: Tensor, factors: Tensor, orders: list[int], kind: str
) -> tuple[Tensor, Tensor]:
    """The same, quantized as `quantize_rows` does to fp4h or fp8: a [M, K] float8_e4m3fn and scale [M, 1] float32.

    fp4h is a pass of its own: its scales would be sought in registers that the products fill, in twice the time.
    """
    x = _checked(x, signs, factors, orders)
    if kind not in TOPS:
        raise ValueError(f"hadamard_quantize: kind={kind!r}, allowed are {', '.join(TOPS)}")
    if kind == "fp4h":
        return quantized_rows(_transformed(x, signs, factors, orders), kind)
    a = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((len(x), 1), dtype=torch.float32, device=x.device)
    _launch(x, signs, factors, orders, a, scale)
    return a, scale


@fake_of(hadamard_quantize)
def _(x, signs, factors, orders, kind):
    rows = x.numel() // x.shape[-1]
    a = x.new_empty((rows, x.shape[-1]), dtype=torch.float8_e4m3fn)
    return a, x.new_empty((rows, 1), dtype=torch.float32)


def _transformed(x: Tensor, signs: Tensor, factors: Tensor, orders: list[int]) -> Tensor:
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _launch(x, signs, factors, orders, out, None)
    return out


def _launch(
    x: Tensor,
    signs: Tensor,
    factors: Tensor,
    orders: list[int],
    out: Tensor,
    scale: Tensor | None,
) -> None:
    if not len(x):
        return
    sizes = orders + [1] * (_MOST_FACTORS - len(orders))
    padded = _padded(orders) + [1] * (_MOST_FACTORS - len(orders))
    values = math.prod(padded)
    rows = max(1, _VALUES // values)
    start(
        hadamard_kernel,
        (ceil_div(len(x), rows),),
        *(x, signs, factors, out, scale, len(x), x.stride(0)),
        *(x.shape[1] ** -0.5, 1.0 / TOPS["fp8"]),
        QUANTIZE=scale is not None,
        ROUNDS=x.is_cuda,
        **dict(zip(("FIRST", "SECOND", "THIRD"), sizes, strict=True)),
        **dict(zip(("FIRST_PADDED", "SECOND_PADDED", "THIRD_PADDED"), padded, strict=True)),
        ROWS=rows,
        TERMS=TERMS[x.dtype],
        # Triton's interpreter cannot multiply bfloat16.
        TYPE=tl.bfloat16 if x.is_cuda else tl.float32,
        num_warps=max(4, rows * values // 1024),
        enable_fp_fusion=True,
    )


def _padded(orders: list[int]) -> list[int]:
    return [max(_LEAST, power_above(order)) for order in orders]


def _checked(x: Tensor, signs: Tensor, factors: Tensor, orders: list[int]) -> Tensor:
    """`x` in rows."""
    width = x.shape[-1]
    reason = unfit(width, orders)
    if x.dtype not in TERMS:
        reason = f"x of {x.dtype}, allowed are {', '.join(map(str, TERMS))}"
    elements = sum(order * order for order in orders)
    for name, tensor, size in (("signs", signs, width), ("factors", factors, elements)):
        if reason is None and (tensor.dtype != torch.int8 or tensor.shape != (size,)):
            reason = (
                f"{name} {list(tensor.shape)} of {tensor.dtype}, allowed is [{size}] of torch.int8"
            )
    if reason:
        raise ValueError(f"hadamard: {reason}")
    return in_rows(x)


def hadamard_ref(x: Tensor, signs: Tensor, factors: Tensor, orders: list[int]) -> Tensor:
    """The same in PyTorch, by float64."""
    y, begin = x.reshape(-1, x.shape[-1]).double() * signs.double(), 0
    for order in orders:
        matrix = factors[begin : begin + order * order].view(order, order).double()
        y = (y.unflatten(-1, (order, -1)).mT @ matrix).flatten(-2)
        begin += order * order
    return (y * x.shape[-1] ** -0.5).float()


def hadamard_quantize_ref(
    x: Tensor, signs: Tensor, factors: Tensor, orders: list[int], kind: str
) -> tuple[Tensor, Tensor]:
    """The same in PyTorch."""
    made: tuple[Tensor, Tensor] = quantize_rows_ref(hadamard_ref(x, signs, factors, orders), kind)
    return made
