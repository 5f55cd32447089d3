"""A basis for each attention head: the form of DiRotQ's dense rotation at attention outputs (arXiv 2605.16732)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dirotq.transforms.base import Transform


class Heads(Transform):
    """Multiplies each head's d coordinates by its own d x d matrix; its last r / heads columns are protected.

    low is [..., heads x (d - r / heads)] and high [..., r], head after head. basis: [heads, d, d], invertible, stored
    in bfloat16; the weight is folded with the inverse of the STORED matrices, as with `Dense`.
    Raises ValueError unless `heads` divides the width and the number of protected coordinates.
    """

    kind = "heads"
    basis: Tensor

    def __init__(self, width: int, high: int, heads: int, basis: Tensor | None = None) -> None:
        super().__init__(width, high)
        if heads < 1 or width % heads or high % heads:
            raise ValueError(
                f"heads={heads} does not divide width {width} and {high} protected coordinates"
            )
        self.heads = heads
        size = width // heads
        shape = (heads, size, size)
        if basis is not None and basis.shape != shape:
            raise ValueError(
                f"heads transform: basis of shape {tuple(basis.shape)}, expected {shape}"
            )
        stored = torch.empty(shape) if basis is None else basis
        # Row-major, as a checkpoint holds it: other strides may be summed in another order.
        self.register_buffer("basis", stored.to(torch.bfloat16).contiguous())

    def online(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        # [heads, tokens, d] x [heads, d, d]: broadcasting over tokens would copy the basis for each of them.
        parts = x.unflatten(-1, (self.heads, -1)).flatten(0, -3).transpose(0, 1)
        mixed = (parts @ self.basis.to(x.dtype)).transpose(0, 1)
        return self._divide(mixed.unflatten(0, x.shape[:-1]))

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        parts = weight.double().unflatten(-1, (self.heads, -1)).permute(1, 2, 0)  # [heads, d, N]
        folded = torch.linalg.solve(self.basis.double(), parts)
        return self._divide(folded.permute(2, 0, 1))

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "heads": self.heads}

    def _divide(self, parts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split [..., heads, d] into the low and the high coordinates of all heads."""
        low = self.low_width // self.heads
        high = parts[..., low:].flatten(-2) if self.high else None
        return parts[..., :low].flatten(-2), high
