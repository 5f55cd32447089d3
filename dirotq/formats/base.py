"""What a number format is: a grid fixed by scales, codes on that grid, and the values they decode to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """What fixes a grid, in the dtypes that are stored.

    scales: [..., G], one a group. zeros: zero points [..., G] of asymmetric formats. base: float32, the second level of
    two-level formats: [..., 1] (one a row) or [] (one a tensor).
    """

    scales: Tensor
    zeros: Tensor | None = None
    base: Tensor | None = None

    def rows(self, rows: slice) -> Grid:
        """The grid of the given rows of a matrix."""
        zeros, base = self.zeros, self.base
        return Grid(
            self.scales[rows],
            None if zeros is None else zeros[rows],
            base if base is None or base.ndim == 0 else base[rows],
        )

    def where(self, mask: Tensor, other: Grid) -> Grid:
        """This grid's groups where `mask` [..., G] is True, the other's elsewhere; both have the same base."""
        zeros = None
        if self.zeros is not None and other.zeros is not None:
            zeros = torch.where(mask, self.zeros, other.zeros)
        # Bytes, because float8 tensors have no `where`.
        mine, theirs = (_bytes(grid.scales) for grid in (self, other))
        scales = torch.where(mask, mine, theirs).view(self.scales.dtype)
        return Grid(scales, zeros, self.base)


@dataclass(frozen=True)
class Encoded:
    """A tensor in a format: `codes` int8 [..., K] on `grid`."""

    codes: Tensor
    grid: Grid

    def rows(self, rows: slice) -> Encoded:
        """The given rows of an encoded matrix."""
        return Encoded(self.codes[rows], self.grid.rows(rows))


@dataclass(frozen=True)
class Format(ABC):
    """A number format whose groups run along the last dimension.

    group: values that share a scale; None means the whole row. The last group of a row may be shorter.
    Raises ValueError when `group` is not positive.
    """

    group: int | None
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if self.group is not None and (type(self.group) is not int or self.group < 1):
            raise ValueError(
                f"{self.kind} format: group={self.group}, allowed are positive integers and null (per row)"
            )

    @abstractmethod
    def fit(self, groups: Tensor, base: Tensor | None = None) -> Grid:
        """Choose the grid of `groups` [..., G, group], on a given `base` or, when None, its own."""

    @abstractmethod
    def nearest(self, x: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        """The nearest code of every element, as float32; `step` and `zero` broadcast against `x`."""

    @abstractmethod
    def values(self, codes: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        """Decode codes (integer or float32), elementwise, in float32: the one definition of what a code means."""

    def step(self, grid: Grid) -> Tensor:
        """What a code of 1 is worth in each group, float32 [..., G]."""
        return grid.scales.float()

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

    @property
    def scale_dtype(self) -> torch.dtype:
        """Dtype of the stored scales."""
        return torch.bfloat16

    @property
    def base_of(self) -> str | None:
        """What has a base of its own: a "row", the whole "tensor", or None where there is no base."""
        return None

    def codes(self, x: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        """`nearest` in the integer dtype of the format."""
        return self.nearest(x, step, zero).to(self.code_dtype)

    def grid(self, x: Tensor, base: Tensor | None = None) -> Grid:
        """Choose the grid of `x` [..., K], on a given base where the format has one."""
        return self.fit(self._groups(x), base)

    def encode(self, x: Tensor, grid: Grid | None = None) -> Encoded:
        """Round `x` [..., K] to the nearest codes on `grid` (its own when None)."""
        groups = self._groups(x)
        grid = grid or self.fit(groups)
        codes = self.codes(groups, *self._broadcast(grid))
        return Encoded(codes.flatten(-2)[..., : x.shape[-1]], grid)

    def decode(self, encoded: Encoded) -> Tensor:
        """Float32 values [..., K] of `encoded`."""
        values = self.values(self._groups(encoded.codes), *self._broadcast(encoded.grid))
        return values.flatten(-2)[..., : encoded.codes.shape[-1]]

    def quantize(self, x: Tensor) -> Tensor:
        """`decode(encode(x))`, bitwise, without the detour over integers: `x` [..., K] in float32."""
        groups = self._groups(x)
        step, zero = self._broadcast(self.fit(groups))
        values = self.values(self.nearest(groups, step, zero), step, zero)
        return values.flatten(-2)[..., : x.shape[-1]]

    def fill(self, x: Tensor) -> Tensor:
        """`x` [..., K] with a short last group filled up, in a way that changes no value's code.

        Here with its own last value, which changes neither its extremes nor its grid.
        """
        missing = -x.shape[-1] % (self.group or x.shape[-1])
        if missing:
            x = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], missing)], dim=-1)
        return x

    def _groups(self, x: Tensor) -> Tensor:
        """View `x` [..., K] as [..., G, group], a short last group filled up."""
        group = self.group or x.shape[-1]
        groups: Tensor = self.fill(x).unflatten(-1, (-1, group))
        return groups

    def expand(self, grid: Grid, width: int) -> tuple[Tensor, Tensor | None]:
        """Steps and zero points [..., width], one for each value."""
        group = self.group or width
        step = self.step(grid).repeat_interleave(group, dim=-1)[..., :width]
        if grid.zeros is None:
            return step, None
        return step, grid.zeros.repeat_interleave(group, dim=-1)[..., :width]

    def bits_per_value(self, width: int) -> float:
        """Bits a value of a row of `width` values, scales and zero points included."""
        bases = 32 if self.base_of == "row" else 0  # a tensor's one base is nothing a value
        return self.code_bits + (self.grid_bits * self.num_groups(width) + bases) / width

    def num_groups(self, width: int) -> int:
        """Groups in a row of `width` values."""
        return -(-width // (self.group or width))

    def to_dict(self) -> dict[str, Any]:
        """JSON fields from which `dirotq.formats.from_dict` rebuilds the format."""
        return {"kind": self.kind, **asdict(self)}

    def _broadcast(self, grid: Grid) -> tuple[Tensor, Tensor | None]:
        """Steps and zero points [..., G, 1], to be used against [..., G, group]."""
        return self.step(grid)[..., None], None if grid.zeros is None else grid.zeros[..., None]


def _bytes(x: Tensor) -> Tensor:
    return x.view(torch.uint8) if x.element_size() == 1 else x


def power_of_two(x: Tensor) -> Tensor:
    """The least powers of two that are not below `x`, normal positive float32."""
    # A float32 whose mantissa is not zero carries into its exponent.
    return ((x.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
