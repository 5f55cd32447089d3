"""GPTQ (Frantar et al., arXiv 2210.17323) on the decode grid of any format.

Followed: columns in order of falling Hessian diagonal (act-order), the grid of every group fixed from the original
weight (static groups), lazy updates in blocks of 128 columns.
Changed:
- In place of the Cholesky factor of the inverse, that of the moment itself: with H = V Vᵀ, V upper triangular, the
  error e H eᵀ is |e V|², whose j-th term depends on the columns up to j only. The target of column j that makes its
  term vanish is w_j + Σ_i<j e_i V_ij / V_jj. It is GPTQ's (arXiv 2507.18553), with one factorization and no inverse.
- All but the formats' own arithmetic is in float64. The diagonal of DiRotQ's rotated low block is orders of magnitude
  below that of the full Hessian, and in float32 it can only be factored when damped relative to the full mean. And the
  order of summation, which blocks and devices change, turns a code only within some 1e-15 of a tie. Within a block of
  columns even that is fixed, so that a kernel can do the same bitwise.
- The caller may name the mean that the damping is relative to.
- A row keeps its nearest codes where they are better. GPTQ is greedy: every column's error is made good by those after
  it, and the last ones, or clipped ones, can end with more than was saved; and what it lessens is the damped error.
  Rows do not depend on each other, so the better one of two can be chosen for each, and no row is worse than nearest.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dirotq.formats import Encoded, Format, Grid, Integer

_HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class GPTQOptions:
    """damping: share of the reference mean added to the diagonal. retries: how often it is doubled when the
    factorization fails. block: columns between two lazy updates."""

    damping: float = 0.01
    retries: int = 16
    block: int = 128

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"gptq: damping={self.damping}, allowed are positive numbers")
        if self.retries < 0:
            raise ValueError(f"gptq: retries={self.retries}, allowed are integers from 0")
        if self.block < 1:
            raise ValueError(f"gptq: block={self.block}, allowed are positive integers")


def gptq(
    weight: Tensor,
    moment: Tensor,
    fmt: Format,
    *,
    mean: float | None = None,
    grid: Grid | None = None,
    options: GPTQOptions | None = None,
) -> Encoded | None:
    """Round `weight` [N, K], of any float dtype, so that the error e H eᵀ of every row e is small.

    moment: second moment H [K, K] of the layer's input; any positive multiple gives the same codes.
    mean: reference for the damping; the mean of the moment's diagonal, without zeros, when None.
    grid: to round on; the format's own when None. No row has a larger error than its nearest codes on this grid.
    Inputs that are always zero (a zero on the diagonal) get the codes nearest to zero: no error there matters.
    Returns None when the damped moment cannot be factored even after all retries; the caller then falls back to
    rounding to nearest and must report it. Raises ValueError when the shapes do not fit.
    """
    width = weight.shape[-1]
    if weight.ndim != 2 or moment.shape != (width, width):
        raise ValueError(
            f"gptq: weight {tuple(weight.shape)} and moment {tuple(moment.shape)}, expected [N, K] and [K, K]"
        )
    options = options or GPTQOptions()
    moment = moment.double()
    diagonal = moment.diagonal()
    dead = diagonal == 0
    if mean is None:
        mean = 1.0 if bool(dead.all()) else float(diagonal[~dead].mean())
    order = torch.argsort(diagonal, descending=True, stable=True)
    feedback = _feedback(moment, order, options.damping * mean, options.retries)
    if feedback is None:
        return None
    if grid is None:
        grid = fmt.grid(weight.float())
    alive = weight.double().masked_fill(dead, 0.0)
    step, zero = (
        None if part is None else part.T[order].contiguous() for part in fmt.expand(grid, width)
    )
    assert step is not None
    columns = alive.T[order].contiguous()
    codes = _round_columns(columns, feedback, fmt, step, zero, options.block)
    found = Encoded(codes[torch.argsort(order)].T.contiguous(), grid)
    return _better_rows(alive, moment, fmt, found, fmt.encode(alive.float(), grid))


def _feedback(moment: Tensor, order: Tensor, damping: float, retries: int) -> Tensor | None:
    """V_ij / V_jj of the damped moment V Vᵀ, V upper triangular [K, K], of the columns in the given order."""
    # LAPACK's factors are lower triangular: that of the matrix turned round, turned round.
    backward = order.flip(0)
    moment = moment[backward][:, backward]
    diagonal = moment.diagonal().clone()
    dead = diagonal == 0
    for attempt in range(retries + 1):
        # A dead column is coupled to no other: any positive number will do.
        moment.diagonal().copy_((diagonal + damping * 2.0**attempt).masked_fill(dead, 1.0))
        lower, failed = torch.linalg.cholesky_ex(moment)
        if not int(failed) and bool(torch.isfinite(lower).all()):
            # In place, as at most two such matrices are alive at a time: of 12288 columns they have 1.2 GB each.
            del moment
            upper: Tensor = lower.flip(0, 1)
            del lower
            return upper.div_(upper.diagonal().clone())
    return None


def _blocks(width: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, width, size):
        yield start, min(start + size, width)


def _round_columns(
    columns: Tensor, feedback: Tensor, fmt: Format, step: Tensor, zero: Tensor | None, size: int
) -> Tensor:
    """Codes [K, N] of `columns`, the weight's; step and zero: [K, N]."""
    targets = columns.clone()
    codes = []
    for start, stop in _blocks(columns.shape[0], size):
        block = slice(start, stop)
        found, errors = _round_block(
            columns[block],
            targets[block],
            feedback[block, block],
            fmt,
            step[block],
            None if zero is None else zero[block],
        )
        codes.append(found)
        targets[stop:].addmm_(feedback[block, stop:].T, errors)
    return torch.cat(codes)


def _round_block(
    columns: Tensor,
    targets: Tensor,
    feedback: Tensor,
    fmt: Format,
    step: Tensor,
    zero: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Codes and errors [k, N] of one block; by the kernel that is bitwise the same, where there is one."""
    kernel = _kernel_arguments(fmt)
    if kernel is not None and _takes_kernel(columns):
        from dirotq_kernels.gptq_columns import gptq_columns

        found: tuple[Tensor, Tensor] = gptq_columns(columns, targets, feedback, step, zero, *kernel)
        return found
    codes, errors = [], torch.empty_like(columns)
    for j in range(columns.shape[0]):
        column_zero = None if zero is None else zero[j]
        code = fmt.codes(targets[j], step[j], column_zero)
        errors[j] = columns[j] - fmt.values(code, step[j], column_zero)
        # Two roundings. `addr_` makes it one in some elements, and in which depends on device and shape.
        targets[j + 1 :] += feedback[j, j + 1 :, None] * errors[j]
        codes.append(code)
    return torch.stack(codes), errors


def _takes_kernel(x: Tensor) -> bool:
    return x.is_cuda and _HAS_TRITON


def _kernel_arguments(fmt: Format) -> tuple[str, int, bool] | None:
    """Kind, bits and sign of a format's codes, or None where no kernel knows them."""
    if isinstance(fmt, Integer):
        return "integer", fmt.bits, fmt.symmetric and not fmt.unsigned
    return ("e2m1", 4, True) if fmt.kind in ("nvfp4", "mxfp4", "fp4h") else None


def _better_rows(
    weight: Tensor, moment: Tensor, fmt: Format, found: Encoded, nearest: Encoded
) -> Encoded:
    """The rows of `found` whose error e H eᵀ is not above that of `nearest`, and the nearest others; all in float64."""
    first, second = fmt.decode(found).double(), fmt.decode(nearest).double()
    # (a - b) H (a + b)ᵀ = a H aᵀ - b H bᵀ for errors a, b: one product for two, and exact where they are close.
    excess = ((second - first) @ moment).mul_(2 * weight - first - second).sum(1, keepdim=True)
    return Encoded(torch.where(excess <= 0, found.codes, nearest.codes), found.grid)
