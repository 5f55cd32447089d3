"""Smoothing: every input channel divided by a scale, the weight's column multiplied by it (arXiv 2211.10438)."""

from __future__ import annotations

import torch
from torch import Tensor

from dirotq.transforms.base import Transform


class Diagonal(Transform):
    """x / s online, W * s folded; nothing is protected.

    scales: s [K], positive and finite, stored in bfloat16. The weight is folded with the STORED scales, so rounding
    them costs no accuracy. None leaves them to be loaded. Raises ValueError for another shape or another value.
    """

    kind = "diagonal"
    scales: Tensor

    def __init__(self, width: int, high: int = 0, scales: Tensor | None = None) -> None:
        if high:
            raise ValueError(
                f"the diagonal transform protects nothing, but {high} coordinates were asked for"
            )
        super().__init__(width)
        stored = (torch.ones(width) if scales is None else scales).to(torch.bfloat16)
        if stored.shape != (width,):
            raise ValueError(
                f"diagonal transform: scales of shape {tuple(stored.shape)}, expected ({width},)"
            )
        # After rounding: what underflows to zero in bfloat16 could not be divided by.
        wrong = ~(torch.isfinite(stored) & (stored > 0))
        # An empty one may be on the meta device, where there are no values to look at.
        if scales is not None and bool(wrong.any()):
            channel = int(wrong.nonzero()[0])
            raise ValueError(
                f"diagonal transform: scales[{channel}]={float(stored[channel]):g}, allowed are positive numbers"
            )
        self.register_buffer("scales", stored)

    def online(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x / self.scales.to(x.dtype), None

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        return weight.double() * self.scales.double(), None
