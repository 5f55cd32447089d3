"""A linear layer with packed 4-bit weights and 16-bit inputs of a few rows: a weight is read as it is stored, and once.

Bound: the bytes of the weights. One or two rows are multiplied an instruction a product, which grows with the rows;
more of them by tensor cores (`four_bit_mma`).
"""

from __future__ import annotations

from math import gcd
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from dirotq_kernels.four_bit import (
    CODES_PER_WORD,
    check_weight,
    scales_of,
    weight_values,
    words_of,
)
from dirotq_kernels.four_bit_dot import dot_products
from dirotq_kernels.four_bit_mma import INPUTS, ROWS, STEP, fits, mma_kernel, parts_of
from dirotq_kernels.launching import ceil_div, power_above, start
from dirotq_kernels.operators import fake_of, operator
from dirotq_kernels.split_sums import OUTPUTS, add_splits_kernel, write_sums
from torch import Tensor

_ROWS = 8  # of the weight, a program
_THREADS = 64  # at least; a power of two
_MOST_THREADS = 512
_MOST_INPUTS = (
    4  # rows of the input, a program; for others the weights are read again, from the cache
)
_MULTIPROCESSORS = 132  # of an H100: fewer programs share what they add up
_FILLED = _MULTIPROCESSORS * 1024  # threads that hide the latency of memory


@triton.jit
def _weight_only_kernel(
    x_ptr,
    words_ptr,
    scales_ptr,
    base_ptr,
    bias_ptr,
    out_ptr,  # [M, N], or where sums are split float32 [SPLITS, M, N], without base and bias
    num_inputs,  # M
    num_rows,  # N
    KIND: tl.constexpr,
    WORDS: tl.constexpr,  # in a row
    WORDS_PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BASE: tl.constexpr,
    BIAS: tl.constexpr,
    WHOLE_INPUTS: tl.constexpr,  # INPUTS divides M
    WHOLE_ROWS: tl.constexpr,
    CHUNKS: tl.constexpr,  # of THREADS words, a program
    SPLITS: tl.constexpr,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    THREADS: tl.constexpr,
):
    # Programs that read the same weights are neighbours.
    first_input = tl.program_id(0) * INPUTS
    first_row = tl.program_id(1) * ROWS
    split = tl.program_id(2)
    y = dot_products(
        x_ptr + first_input.to(tl.int64) * (WORDS * 8),
        words_ptr + first_row.to(tl.int64) * WORDS,
        scales_ptr + first_row.to(tl.int64) * GROUPS,
        None if WHOLE_INPUTS else num_inputs - 1 - first_input,
        None if WHOLE_ROWS else num_rows - 1 - first_row,
        split * (CHUNKS * THREADS),
        KIND,
        WORDS,
        WORDS_PER_GROUP,
        GROUPS,
        WORDS == SPLITS * CHUNKS * THREADS,
        CHUNKS,
        INPUTS,
        ROWS,
        THREADS,
    )
    rows = first_row + tl.arange(0, ROWS)[:, None]
    inputs = first_input + tl.arange(0, INPUTS)[None, :]
    places = (split * num_inputs + inputs).to(tl.int64) * num_rows + rows
    has_row = rows < num_rows
    inside = has_row & (inputs < num_inputs)
    y = tl.reshape(y, [ROWS, INPUTS])
    write_sums(y, base_ptr, bias_ptr, out_ptr, places, inside, rows, has_row, BASE, BIAS)


class _Weight(NamedTuple):
    """A packed weight, in memory as kernels read it."""

    codes: Tensor
    scales: Tensor
    base: Tensor | None
    kind: str
    group: int


@operator
def weight_only_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    base: Tensor | None,
    bias: Tensor | None,
    kind: str,
    group: int,
) -> Tensor:
    """`x` [M, K], of 16 bits or float32, times the decoded weight [N, K], plus `bias` [N]: [M, N] in the dtype of x.

    kind: integer (4 bits, symmetric), nvfp4, mxfp4 or fp4h. codes: uint8 [N, K / 2]; scales [N, ceil(K / group)] and
    base ([N, 1], [] or None) as a layer stores them. For few rows: beyond sixteen the weight is read again.
    Raises ValueError for another kind, shapes or dtypes that do not belong together, and where 8 does not divide K and
    group.
    """
    _check(x, codes, scales, base, bias, kind, group)
    out = torch.empty((x.shape[0], codes.shape[0]), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    run = _by_tensor_cores if fits(x) else _by_dot_products
    weight = _Weight(codes.contiguous(), scales_of(scales), base, kind, group)
    run(x.contiguous(), weight, bias, out)
    return out


@fake_of(weight_only_linear)
def _(x, codes, scales, base, bias, kind, group):
    _check(x, codes, scales, base, bias, kind, group)
    return x.new_empty((x.shape[0], codes.shape[0]))


def _by_dot_products(x: Tensor, weight: _Weight, bias: Tensor | None, out: Tensor) -> None:
    (num_inputs, num_rows), words = out.shape, x.shape[1] // CODES_PER_WORD
    inputs = min(power_above(num_inputs), _MOST_INPUTS)
    programs = ceil_div(num_inputs, inputs) * ceil_div(num_rows, _ROWS)
    threads = _threads(words, programs)
    splits = min(ceil_div(words, threads), ceil_div(_MULTIPROCESSORS, programs))
    chunks = ceil_div(words, threads * splits)
    target, ends, now, later = _ends(x, weight, bias, out, splits)
    start(
        _weight_only_kernel,
        (ceil_div(num_inputs, inputs), ceil_div(num_rows, _ROWS), splits),
        x,
        words_of(weight.codes),
        weight.scales,
        *ends,
        target,
        num_inputs,
        num_rows,
        KIND=weight.kind,
        WORDS=words,
        WORDS_PER_GROUP=weight.group // CODES_PER_WORD,
        GROUPS=weight.scales.shape[1],
        WHOLE_INPUTS=num_inputs % inputs == 0,
        WHOLE_ROWS=num_rows % _ROWS == 0,
        CHUNKS=chunks,
        SPLITS=splits,
        INPUTS=inputs,
        ROWS=_ROWS,
        THREADS=threads,
        num_warps=threads // 32,
        enable_fp_fusion=True,
        **now,
    )
    _add_up(target, ends, out, splits, later)


def _by_tensor_cores(x: Tensor, weight: _Weight, bias: Tensor | None, out: Tensor) -> None:
    (num_inputs, num_rows), words = out.shape, x.shape[1] // CODES_PER_WORD
    steps = ceil_div(words, STEP)
    each = ceil_div(steps, parts_of(num_inputs, num_rows, words))
    splits = ceil_div(steps, each)
    target, ends, now, later = _ends(x, weight, bias, out, splits)
    start(
        mma_kernel,
        (ceil_div(num_inputs, INPUTS), ceil_div(num_rows, ROWS), splits),
        *(x, words_of(weight.codes), weight.scales, *ends, target),
        *(num_inputs, num_rows, each),
        KIND=weight.kind,
        WORDS=words,
        WORDS_PER_GROUP=weight.group // CODES_PER_WORD,
        SHARE=gcd(STEP, weight.group // CODES_PER_WORD),
        EVEN=words % STEP == 0,
        INPUTS=INPUTS,
        ROWS=ROWS,
        # Triton's interpreter cannot multiply bfloat16.
        TYPE=tl.bfloat16 if x.is_cuda else tl.float32,
        num_warps=4,
        num_stages=3,
        enable_fp_fusion=True,
        **now,
    )
    _add_up(target, ends, out, splits, later)


def _ends(
    x: Tensor, weight: _Weight, bias: Tensor | None, out: Tensor, splits: int
) -> tuple[Tensor, tuple[Tensor, Tensor], dict[str, Any], dict[str, Any]]:
    """Where sums go; base and bias, or what stands for them; what is done with these now, and what after adding up."""
    base = weight.base
    ends = (weight.scales if base is None else base, x if bias is None else bias)
    finish = {"BASE": None if base is None else base.ndim // 2, "BIAS": bias is not None}
    if splits == 1:
        return out, ends, finish, finish
    parts = torch.empty((splits, *out.shape), dtype=torch.float32, device=x.device)
    return parts, ends, {"BASE": None, "BIAS": False}, finish


def _add_up(
    parts: Tensor, ends: tuple[Tensor, Tensor], out: Tensor, splits: int, finish: dict[str, Any]
) -> None:
    if splits > 1:
        grid = (ceil_div(out.numel(), OUTPUTS),)
        sizes = (out.numel(), out.shape[1])
        tensors = (parts, *ends, out)
        start(add_splits_kernel, grid, *tensors, *sizes, SPLITS=splits, BLOCK=OUTPUTS, **finish)


def _check(x, codes, scales, base, bias, kind, group) -> None:
    if x.ndim != 2 or x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(
            f"weight_only_linear: x is {x.dtype} {tuple(x.shape)}, allowed are bfloat16, float16 and float32 [M, K]"
        )
    check_weight("weight_only_linear", codes, scales, base, kind, group, x.shape[1])
    if bias is not None and bias.shape != codes.shape[:1]:
        raise ValueError(
            f"weight_only_linear: bias has the shape {tuple(bias.shape)}, allowed is {tuple(codes.shape[:1])}"
        )


def _threads(words: int, programs: int) -> int:
    """Threads a program: enough to fill the device, as long as they have words to read."""
    threads = _THREADS
    while threads < _MOST_THREADS and programs * threads < _FILLED:
        if words % (2 * threads) and words < 8 * threads:
            break
        threads *= 2
    return threads


def weight_only_linear_ref(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    base: Tensor | None,
    bias: Tensor | None,
    kind: str,
    group: int,
) -> Tensor:
    """The definition, in PyTorch."""
    y = x.float() @ weight_values(codes, scales, base, kind, group, x.shape[1]).T
    return (y if bias is None else y + bias.float()).to(x.dtype)
