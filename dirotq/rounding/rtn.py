"""Round to nearest."""

from __future__ import annotations

from torch import Tensor

from dirotq.formats import Encoded, Format


def round_to_nearest(weight: Tensor, fmt: Format) -> Encoded:
    """Round `weight` [N, K] to the nearest codes of `fmt`."""
    return fmt.encode(weight.float())
