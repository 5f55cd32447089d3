"""GPTQ's inner loop: round the columns of one block in turn, each with what the errors of those before it add to it.

What `dirotq.rounding.gptq` does between two lazy updates in dozens of launches a column, bitwise the same: targets and
errors in float64, products and sums rounded one by one, the formats' own arithmetic in float32. Rows do not depend on
each other, and a program keeps the targets of some of them in registers. It is one warp, so that the sum that picks a
column out of the registers needs no barrier. Bound: N k (k - 1) / 2 products and as many sums in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dirotq_kernels.launching import ceil_div, power_above, start
from torch import Tensor

_KINDS = {"integer": (4, 8), "e2m1": (4,)}
_TARGETS_PER_PROGRAM = 1024
_MOST_ROWS = 32

# Adding and subtracting 1.5 * 2^23 * u rounds a float32 below 2^22 * u to a multiple of u, ties to even.
_ROUNDER = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def _integer(target, step, zero, low, high, ZERO: tl.constexpr):
    """Code and value of `Integer`."""
    steps = tl.div_rn(target, step)
    if ZERO:
        steps = steps + zero
    # Clamping first keeps the rounding trick in its range and changes no code.
    steps = tl.minimum(tl.maximum(steps, low), high)
    code = ((steps + _ROUNDER) - _ROUNDER).to(tl.int32)
    # From the integer, because there is a minus zero among the floats.
    value = code.to(tl.float32)
    if ZERO:
        value = value - zero
    return code, value * step


@triton.jit
def _e2m1(target, step):
    """Code and value of the formats with E2M1 codes."""
    steps = tl.div_rn(target, step)
    size = tl.minimum(tl.abs(steps), 6.0)
    rounder = tl.where(size < 2.0, _ROUNDER * 0.5, tl.where(size < 4.0, _ROUNDER, _ROUNDER * 2.0))
    size = (size + rounder) - rounder
    index = tl.where(size <= 2.0, size * 2.0, tl.where(size <= 4.0, size + 2.0, 7.0)).to(tl.int32)
    negative = (steps < 0.0) & (index > 0)
    return tl.where(negative, index - 8, index), tl.where(negative, -size, size) * step


@triton.jit
def _read(
    columns_ptr,
    step_ptr,
    zero_ptr,
    feedback_ptr,
    offsets,
    inside,
    later,
    ZERO: tl.constexpr,
):
    """A column's weight, steps and zero points [ROWS], and its feedback [BLOCK] to the columns after it."""
    weight = tl.load(columns_ptr + offsets, mask=inside, other=0.0)
    step = tl.load(step_ptr + offsets, mask=inside, other=1.0)
    zero = step
    if ZERO:
        zero = tl.load(zero_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    feedback = tl.load(feedback_ptr + tl.arange(0, later.shape[0]), mask=later, other=0.0)
    return weight, step, zero, feedback


@triton.jit
def _gptq_columns_kernel(
    columns_ptr,
    targets_ptr,
    feedback_ptr,
    step_ptr,
    zero_ptr,
    codes_ptr,
    errors_ptr,
    num_columns,
    num_rows,
    low,
    high,
    E2M1: tl.constexpr,
    ZERO: tl.constexpr,
    BLOCK: tl.constexpr,  # num_columns rounded up to a power of two
    ROWS: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = offsets < num_rows
    block = tl.arange(0, BLOCK)
    targets = tl.load(
        targets_ptr + block.to(tl.int64)[:, None] * num_rows + offsets[None, :],
        mask=(block[:, None] < num_columns) & inside[None, :],
        other=0.0,
    )
    weight, step, zero, feedback = _read(
        columns_ptr, step_ptr, zero_ptr, feedback_ptr, offsets, inside,
        (block > 0) & (block < num_columns), ZERO,
    )  # fmt: skip
    end = tl.cast(num_columns, tl.int64) * num_rows
    for column in range(num_columns):
        # The next one's loads wait for memory while this one is rounded.
        feedback_ptr += num_columns
        next_offsets = offsets + num_rows
        next_weight, next_step, next_zero, next_feedback = _read(
            columns_ptr, step_ptr, zero_ptr, feedback_ptr, next_offsets,
            inside & (next_offsets < end), (block > column + 1) & (block < num_columns), ZERO,
        )  # fmt: skip
        target = tl.sum(tl.where(block[:, None] == column, targets, 0.0), axis=0).to(tl.float32)
        if E2M1:
            code, value = _e2m1(target, step)
        else:
            code, value = _integer(target, step, zero, low, high, ZERO)
        error = weight - value.to(tl.float64)
        tl.store(codes_ptr + offsets, code.to(codes_ptr.dtype.element_ty), mask=inside)
        tl.store(errors_ptr + offsets, error, mask=inside)
        targets += feedback[:, None] * error[None, :]
        weight, step, zero, feedback = next_weight, next_step, next_zero, next_feedback
        offsets = next_offsets


@torch.library.custom_op("dirotq::gptq_columns", mutates_args=())
def gptq_columns(
    columns: Tensor,
    targets: Tensor,
    feedback: Tensor,
    step: Tensor,
    zero: Tensor | None = None,
    kind: str = "integer",
    bits: int = 4,
    signed: bool = True,
) -> tuple[Tensor, Tensor]:
    """Codes [k, N], int8 or (not signed) uint8, and errors [k, N], float64, of k columns rounded one after the other.

    Column j of `targets` is rounded to its code; its error is that of the code's value against column j of `columns`,
    and that times feedback[j, i] is added to the target of every later column i.
    columns, targets: [k, N] float64; neither is changed. feedback: [k, k] float64, read above its diagonal only.
    step: [k, N] float32. zero: [k, N] float32 or bfloat16, of integers.
    kind: integer, of 4 or 8 `bits` (codes of -q to q where signed and from 0 otherwise), or e2m1. Raises ValueError
    for another kind or number of bits and for tensors of other shapes or dtypes.
    """
    codes, errors = _outputs(columns, targets, feedback, step, zero, kind, bits, signed)
    if columns.numel():
        block = power_above(columns.shape[0])
        rows = min(_MOST_ROWS, max(1, _TARGETS_PER_PROGRAM // block))
        inputs = columns, targets, feedback, step, zero
        _launch(*inputs, codes, errors, kind == "e2m1", _range(bits, signed), rows)
    return codes, errors


def gptq_columns_ref(
    columns: Tensor,
    targets: Tensor,
    feedback: Tensor,
    step: Tensor,
    zero: Tensor | None = None,
    kind: str = "integer",
    bits: int = 4,
    signed: bool = True,
) -> tuple[Tensor, Tensor]:
    """The definition, in PyTorch."""
    codes, errors = _outputs(columns, targets, feedback, step, zero, kind, bits, signed)
    targets, (low, high) = targets.clone(), _range(bits, signed)
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device=columns.device)
    for j in range(columns.shape[0]):
        steps = targets[j].float() / step[j]
        if kind == "e2m1":
            size = steps.abs().clamp(max=6.0)
            unit = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
            index = torch.searchsorted(magnitudes, (size / unit).round() * unit)
            negative = (steps < 0) & (index > 0)
            code = torch.where(negative, index - 8, index)
            value = torch.where(negative, -magnitudes[index], magnitudes[index])
        else:
            shift = 0.0 if zero is None else zero[j].float()
            code = (steps + shift).round().clamp(low, high).int()
            value = code.float() - shift
        codes[j] = code
        errors[j] = columns[j] - value * step[j]
        targets[j + 1 :] += feedback[j, j + 1 :, None] * errors[j]
    return codes, errors


def _launch(
    columns: Tensor,
    targets: Tensor,
    feedback: Tensor,
    step: Tensor,
    zero: Tensor | None,
    codes: Tensor,
    errors: Tensor,
    e2m1: bool,
    code_range: tuple[int, int],
    rows: int,
    warps: int = 1,
) -> None:
    num_columns, num_rows = columns.shape
    start(
        _gptq_columns_kernel,
        (ceil_div(num_rows, rows),),
        columns.contiguous(),
        targets.contiguous(),
        feedback.contiguous(),  # a factor's memory is in columns
        step.contiguous(),
        None if zero is None else zero.contiguous(),
        codes,
        errors,
        num_columns,
        num_rows,
        float(code_range[0]),
        float(code_range[1]),
        E2M1=e2m1,
        ZERO=zero is not None,
        BLOCK=power_above(num_columns),
        ROWS=rows,
        num_warps=warps,
        enable_fp_fusion=False,
    )


def _range(bits: int, signed: bool) -> tuple[int, int]:
    """Least and largest code of the integers."""
    high = (1 << (bits - 1)) - 1 if signed else (1 << bits) - 1
    return -high if signed else 0, high


@gptq_columns.register_fake
def _outputs(
    columns: Tensor,
    targets: Tensor,
    feedback: Tensor,
    step: Tensor,
    zero: Tensor | None = None,
    kind: str = "integer",
    bits: int = 4,
    signed: bool = True,
) -> tuple[Tensor, Tensor]:
    """Empty codes and errors, once the arguments are checked."""
    if kind not in _KINDS:
        raise ValueError(f"gptq_columns: kind={kind!r}, allowed are {', '.join(_KINDS)}")
    if bits not in _KINDS[kind]:
        raise ValueError(f"gptq_columns: bits={bits}, allowed for {kind} are {_KINDS[kind]}")
    shape, float64 = tuple(columns.shape), (torch.float64,)
    for name, x, wanted, dtypes in (
        ("columns", columns, shape[:2], float64),
        ("targets", targets, shape, float64),
        ("feedback", feedback, shape[:1] * 2, float64),
        ("step", step, shape, (torch.float32,)),
        ("zero", zero, shape, (torch.float32, torch.bfloat16)),
    ):
        if x is None:
            continue
        if x.ndim != 2 or tuple(x.shape) != wanted:
            raise ValueError(f"gptq_columns: {name} {tuple(x.shape)}, expected {wanted}")
        if x.dtype not in dtypes:
            raise ValueError(
                f"gptq_columns: {name} is {x.dtype}, allowed are {', '.join(map(str, dtypes))}"
            )
    codes = torch.empty(shape, dtype=torch.int8 if signed else torch.uint8, device=columns.device)
    return codes, torch.empty(shape, dtype=torch.float64, device=columns.device)
