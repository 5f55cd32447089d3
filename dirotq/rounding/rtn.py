"""Round to nearest."""

from __future__ import annotations

from torch import Tensor

from dirotq.formats import Encoded, Format, Grid


def round_to_nearest(weight: Tensor, fmt: Format, grid: Grid | None = None) -> Encoded:
    """Round `weight` [N, K], of any float dtype, to the nearest codes on `grid` (its own when None)."""
    return fmt.encode(weight.float(), grid)
