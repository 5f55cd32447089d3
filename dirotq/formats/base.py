"""What a number format is: a grid fixed by scales, codes on that grid, and the values they decode to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Scales, and zero points for asymmetric formats, of each group: both [..., G]."""

    scales: Tensor
    zeros: Tensor | None = None


@dataclass(frozen=True)
class Encoded:
    """A tensor in a format: `codes` int8 [..., K] on `grid`."""

    codes: Tensor
    grid: Grid

    def rows(self, rows: slice) -> Encoded:
        """The given rows of an encoded matrix."""
        zeros = self.grid.zeros
        return Encoded(
            self.codes[rows], Grid(self.grid.scales[rows], None if zeros is None else zeros[rows])
        )


@dataclass(frozen=True)
class Format(ABC):
    """A number format whose groups run along the last dimension.

    group: values that share a scale; None means the whole row. The last group of a row may be shorter.
    """

    group: int | None
    kind: ClassVar[str]

    @abstractmethod
    def fit(self, groups: Tensor) -> Grid:
        """Choose the grid of `groups` [..., G, group]; every tensor of the result is [..., G]."""

    @abstractmethod
    def codes(self, x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Round `x` to the nearest code, elementwise; `scale` and `zero` broadcast against `x`."""

    @abstractmethod
    def values(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Decode codes, elementwise, in float32: the one definition of what a code means."""

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits of one code."""

    @property
    @abstractmethod
    def grid_bits(self) -> int:
        """Bits of one group's scale and zero point."""

    def grid(self, x: Tensor) -> Grid:
        """Choose the grid of `x` [..., K].

        A short last group is filled up with its own last value, which changes neither its extremes nor its grid.
        """
        width = x.shape[-1]
        group = self.group or width
        missing = -width % group
        if missing:
            x = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], missing)], dim=-1)
        return self.fit(x.unflatten(-1, (-1, group)))

    def encode(self, x: Tensor, grid: Grid | None = None) -> Encoded:
        """Round `x` [..., K] to the nearest codes on `grid` (its own when None)."""
        grid = grid or self.grid(x)
        scale, zero = self.expand(grid, x.shape[-1])
        return Encoded(self.codes(x, scale, zero), grid)

    def decode(self, encoded: Encoded) -> Tensor:
        """Float32 values [..., K] of `encoded`."""
        scale, zero = self.expand(encoded.grid, encoded.codes.shape[-1])
        return self.values(encoded.codes, scale, zero)

    def quantize(self, x: Tensor) -> Tensor:
        """Encode and decode: `x` [..., K] on its own grid, float32."""
        return self.decode(self.encode(x))

    def expand(self, grid: Grid, width: int) -> tuple[Tensor, Tensor | None]:
        """Scales and zero points [..., width], one for each value."""
        group = self.group or width
        scale = grid.scales.repeat_interleave(group, dim=-1)[..., :width]
        if grid.zeros is None:
            return scale, None
        return scale, grid.zeros.repeat_interleave(group, dim=-1)[..., :width]

    def bits_per_value(self, width: int) -> float:
        """Bits a value of a row of `width` values, scales and zero points included."""
        return self.code_bits + self.grid_bits * self.num_groups(width) / width

    def num_groups(self, width: int) -> int:
        """Groups in a row of `width` values."""
        return -(-width // (self.group or width))

    def to_dict(self) -> dict[str, Any]:
        """JSON fields from which `dirotq.formats.from_dict` rebuilds the format."""
        return {"kind": self.kind, **asdict(self)}
