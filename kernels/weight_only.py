"""A linear layer with packed 4-bit weights and 16-bit inputs of a few rows: a weight is read as it is stored, and once.

Bound: the bytes of the weights, for a row or two; the arithmetic, an instruction a product, grows with the rows.
"""

from __future__ import annotations

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
from dirotq_kernels.group_quantize import _round_to_bfloat16
from torch import Tensor

_ROWS = 8  # of the weight, a program
_THREADS = 64  # at least; a power of two
_MOST_THREADS = 512
_MOST_INPUTS = (
    4  # rows of the input, a program; for others the weights are read again, from the cache
)
_MULTIPROCESSORS = 132  # of an H100: fewer programs share what they add up
_FILLED = _MULTIPROCESSORS * 1024  # threads that hide the latency of memory
_OUTPUTS = 256  # a program that adds up split sums


@triton.jit
def _write(
    y,
    base_ptr,
    bias_ptr,
    out_ptr,
    places,
    inside,
    rows,
    has_row,
    BASE: tl.constexpr,  # bases from row to row of the weight: none, 0 or 1
    BIAS: tl.constexpr,
):
    """Write sums, of `rows` of the weight, times their bases, plus their bias."""
    if BASE is not None:
        y *= tl.load(base_ptr + rows * BASE, mask=has_row, other=0.0)
    if BIAS:
        y += tl.load(bias_ptr + rows, mask=has_row, other=0.0).to(tl.float32)
    if out_ptr.dtype.element_ty == tl.bfloat16:
        y = _round_to_bfloat16(y)
    tl.store(out_ptr + places, y, mask=inside)


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
    _write(y, base_ptr, bias_ptr, out_ptr, places, inside, rows, has_row, BASE, BIAS)


@triton.jit
def _add_splits_kernel(
    parts_ptr,  # float32 [SPLITS, M, N]
    base_ptr,
    bias_ptr,
    out_ptr,
    num_outputs,  # M * N
    num_rows,
    BASE: tl.constexpr,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    output = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = output < num_outputs
    y = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        y += tl.load(parts_ptr + split * num_outputs + output, mask=inside, other=0.0)
    rows = output % num_rows
    _write(y, base_ptr, bias_ptr, out_ptr, output, inside, rows, inside, BASE, BIAS)


@torch.library.custom_op(
    "dirotq::weight_only_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor codes, Tensor scales, Tensor? base, Tensor? bias, str kind, int group) -> Tensor",
)
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
    base ([N, 1], [] or None) as a layer stores them. For few rows: the work grows with M, only the bytes do not.
    Raises ValueError for another kind, shapes or dtypes that do not belong together, and where 8 does not divide K and
    group.
    """
    _check(x, codes, scales, base, bias, kind, group)
    (num_inputs, width), num_rows = x.shape, codes.shape[0]
    out = torch.empty((num_inputs, num_rows), dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    words = width // CODES_PER_WORD
    inputs = min(triton.next_power_of_2(num_inputs), _MOST_INPUTS)
    programs = triton.cdiv(num_inputs, inputs) * triton.cdiv(num_rows, _ROWS)
    threads = _threads(words, programs)
    splits = min(triton.cdiv(words, threads), triton.cdiv(_MULTIPROCESSORS, programs))
    chunks = triton.cdiv(words, threads * splits)
    target = out
    finish = {"BASE": None if base is None else base.ndim // 2, "BIAS": bias is not None}
    if splits > 1:
        target = torch.empty((splits, num_inputs, num_rows), dtype=torch.float32, device=x.device)
    ends = (scales if base is None else base, x if bias is None else bias)
    _weight_only_kernel[(triton.cdiv(num_inputs, inputs), triton.cdiv(num_rows, _ROWS), splits)](
        x.contiguous(),
        words_of(codes),
        scales_of(scales),
        *ends,
        target,
        num_inputs,
        num_rows,
        KIND=kind,
        WORDS=words,
        WORDS_PER_GROUP=group // CODES_PER_WORD,
        GROUPS=scales.shape[1],
        WHOLE_INPUTS=num_inputs % inputs == 0,
        WHOLE_ROWS=num_rows % _ROWS == 0,
        CHUNKS=chunks,
        SPLITS=splits,
        INPUTS=inputs,
        ROWS=_ROWS,
        THREADS=threads,
        num_warps=threads // 32,
        enable_fp_fusion=True,
        **(finish if splits == 1 else {"BASE": None, "BIAS": False}),
    )
    if splits > 1:
        grid = (triton.cdiv(out.numel(), _OUTPUTS),)
        _add_splits_kernel[grid](
            target, *ends, out, out.numel(), num_rows, SPLITS=splits, BLOCK=_OUTPUTS, **finish
        )
    return out


@weight_only_linear.register_fake
def _(x, codes, scales, base, bias, kind, group):
    _check(x, codes, scales, base, bias, kind, group)
    return x.new_empty((x.shape[0], codes.shape[0]))


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
