"""A search of each group's scale by the error that rounding to nearest makes on it.

The scale that covers a group's extremes is not that of least error: clipping the few largest values a little makes the
steps of all others finer. QuaRot (arXiv 2404.00456) searches weight scales so, by squared error; ours differs in that
an error counts by the second moment of the input that it meets. Neither SVDQuant nor DiRotQ clips weights.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dirotq.formats import Format, Grid

FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8)


def search_grid(
    weight: Tensor,
    fmt: Format,
    diagonal: Tensor | None = None,
    factors: tuple[float, ...] = FACTORS,
) -> Grid:
    """Grid for `weight` [N, K] on which every group has the least error among scales shrunk by `factors`.

    diagonal: [K], second moment of each input coordinate, any positive multiple of it; None weights all alike.
    The candidate for a factor f is the format's own grid of f * weight, which clips the group at f times its extremes,
    so that any format can be searched. A tie goes to the earlier factor. Raises ValueError without factors.
    """
    if not factors:
        raise ValueError("search_grid: factors=(), at least one is needed")
    weight = weight.float()
    best = fmt.grid(weight * factors[0])
    least = _group_errors(weight, fmt, best, diagonal)
    for factor in factors[1:]:
        # Groups are picked one by one, so candidates must share what is common to a row or to the tensor.
        candidate = fmt.grid(weight * factor, base=best.base)
        errors = _group_errors(weight, fmt, candidate, diagonal)
        best = candidate.where(errors < least, best)
        least = torch.minimum(errors, least)
    return best


def _group_errors(weight: Tensor, fmt: Format, grid: Grid, diagonal: Tensor | None) -> Tensor:
    """Weighted squared error [N, G] of the nearest codes, float64."""
    errors = (weight - fmt.decode(fmt.encode(weight, grid))).double().square()
    if diagonal is not None:
        # A moment computed by a transform can miss zero by its rounding, on either side.
        errors = errors * diagonal.double().clamp(min=0)
    group = fmt.group or weight.shape[-1]
    padded = F.pad(errors, (0, -weight.shape[-1] % group))
    sums: Tensor = padded.unflatten(-1, (-1, group)).sum(-1)
    return sums
