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
    def nearest(self, x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """The nearest code of every element, as float32; `scale` and `zero` broadcast against `x`."""

    @abstractmethod
    def values(self, codes: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """Decode codes (integer or float32), elementwise, in float32: the one definition of what a code means."""

    @property
    @abstractmethod
    def code_dtype(self) -> torch.dtype:
        """Integer dtype that holds one code, unpacked."""

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits of one code."""

    @property
    @abstractmethod
    def grid_bits(self) -> int:
        """Bits of one group's scale and zero point."""

    def codes(self, x: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """`nearest` in the integer dtype of the format."""
        return self.nearest(x, scale, zero).to(self.code_dtype)

    def grid(self, x: Tensor) -> Grid:
        """Choose the grid of `x` [..., K]."""
        return self.fit(self._groups(x))

    def encode(self, x: Tensor, grid: Grid | None = None) -> Encoded:
        """Round `x` [..., K] to the nearest codes on `grid` (its own when None)."""
        groups = self._groups(x)
        grid = grid or self.fit(groups)
        codes = self.codes(groups, *_broadcast(grid))
        return Encoded(codes.flatten(-2)[..., : x.shape[-1]], grid)

    def decode(self, encoded: Encoded) -> Tensor:
        """Float32 values [..., K] of `encoded`."""
        values = self.values(self._groups(encoded.codes), *_broadcast(encoded.grid))
        return values.flatten(-2)[..., : encoded.codes.shape[-1]]

    def quantize(self, x: Tensor) -> Tensor:
        """`decode(encode(x))`, bitwise, without the detour over integers: `x` [..., K] in float32."""
        groups = self._groups(x)
        scale, zero = _broadcast(self.fit(groups))
        values = self.values(self.nearest(groups, scale, zero), scale, zero)
        return values.flatten(-2)[..., : x.shape[-1]]

    def _groups(self, x: Tensor) -> Tensor:
        """View `x` [..., K] as [..., G, group].

        A short last group is filled up with its own last value, which changes neither its extremes nor its grid.
        """
        group = self.group or x.shape[-1]
        missing = -x.shape[-1] % group
        if missing:
            x = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], missing)], dim=-1)
        groups: Tensor = x.unflatten(-1, (-1, group))
        return groups

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


def _broadcast(grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Scales and zero points [..., G, 1], to be used against [..., G, group]."""
    return grid.scales[..., None], None if grid.zeros is None else grid.zeros[..., None]
