"""GPTQ (Frantar et al., arXiv 2210.17323) on the decode grid of any format.

Followed: columns in order of falling Hessian diagonal (act-order), the grid of every group fixed from the
original weight (static groups), lazy updates in blocks of 128 columns, the upper Cholesky factor of the inverse.
Changed: the factor is computed in float64, and the caller may name the mean that the damping is relative to. On the
rotated low block of DiRotQ the diagonal is orders of magnitude below that of the full Hessian: in float32 it can only
be factored when damped relative to the full mean, in float64 its own mean will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dirotq.formats import Encoded, Format


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
    options: GPTQOptions | None = None,
) -> Encoded | None:
    """Round `weight` [N, K] so that the error weighted by `moment` [K, K] is small.

    moment: second moment of the layer's input; any positive multiple gives the same codes.
    mean: reference for the damping; the mean of the moment's diagonal when None.
    Returns None when the damped moment cannot be factored even after all retries; the caller then falls back to
    rounding to nearest and must report it.
    """
    options = options or GPTQOptions()
    moment = moment.double().clone()
    dead = moment.diagonal() == 0
    moment.diagonal()[dead] = 1.0
    order = torch.argsort(moment.diagonal(), descending=True, stable=True)
    reference = (
        float(moment.diagonal()[~dead].mean())
        if mean is None and not bool(dead.all())
        else (mean or 1.0)
    )
    factor = _inverse_factor(moment[order][:, order], options.damping * reference, options.retries)
    if factor is None:
        return None
    grid = fmt.grid(weight.float())
    scale, zero = fmt.expand(grid, weight.shape[1])
    rows = weight.to(factor.dtype).T[order].contiguous()
    rows[dead[order]] = 0.0
    zero = None if zero is None else zero.T[order].contiguous()
    codes = _round_rows(rows, factor, fmt, scale.T[order].contiguous(), zero, options.block)
    return Encoded(codes[torch.argsort(order)].T.contiguous(), grid)


def _inverse_factor(moment: Tensor, damping: float, retries: int) -> Tensor | None:
    """Upper Cholesky factor of the inverse of the damped moment, float32 on success."""
    for attempt in range(retries + 1):
        damped = moment.clone()
        damped.diagonal().add_(damping * 2.0**attempt)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if int(failed):
            continue
        upper: Tensor
        upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed) and bool(torch.isfinite(upper).all()):
            return upper.float()
    return None


def _blocks(width: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, width, size):
        yield start, min(start + size, width)


def _round_rows(
    rows: Tensor, factor: Tensor, fmt: Format, scale: Tensor, zero: Tensor | None, size: int
) -> Tensor:
    """Codes [K, N] of `rows`, the weight's columns, which change in place as errors are passed on."""
    codes = []
    for start, stop in _blocks(rows.shape[0], size):
        errors = torch.empty_like(rows[start:stop])
        for j in range(start, stop):
            row_zero = None if zero is None else zero[j]
            code = fmt.codes(rows[j], scale[j], row_zero)
            error = (rows[j] - fmt.values(code, scale[j], row_zero)) / factor[j, j]
            rows[j + 1 : stop].addr_(factor[j, j + 1 : stop], error, alpha=-1)
            errors[j - start] = error
            codes.append(code)
        rows[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return torch.stack(codes)
