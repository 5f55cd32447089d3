"""Four-bit floating point (E2M1) with three kinds of group scales: `nvfp4`, `mxfp4` and `fp4h`.

E2M1 has the magnitudes 0, 0.5, 1, 1.5, 2, 3, 4 and 6; ties round to the even code, as IEEE 754 and the hardware do. A
code is the nibble sign x 8 + index, read as two's complement: -8 to 7. Minus zero (-8) is never written.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dirotq.formats.base import Format, Grid, power_of_two

_TOP = 6.0
_E4M3_TOP = 448.0
_E4M3_SMALLEST = 2.0**-9
# Below it, products of base and scale could leave float32's normal range.
_SMALLEST_BASE = 2.0**-100
# A float32's highest bits are its exponent and the first bit of its mantissa: fp4h's indices but for this, 2 (127 - 8).
_LADDER_BITS = 238


def _nearest_code(steps: Tensor) -> Tensor:
    """E2M1 code of each value in units of the step, float32."""
    size = steps.abs()
    halves = (size * 2).round()
    ones = size.round() + 2
    twos = (size / 2).round() + 4
    index = torch.where(halves <= 4, halves, torch.where(ones <= 6, ones, twos.clamp(max=7)))
    return torch.where((steps < 0) & (index > 0), index - 8, index)


def _code_value(codes: Tensor) -> Tensor:
    """What E2M1 codes are worth, float32."""
    codes = codes.float()
    index = torch.where(codes < 0, codes + 8, codes)
    size = torch.where(index <= 4, index / 2, torch.where(index <= 6, index - 2, _TOP))
    return torch.where(codes < 0, -size, size)


@dataclass(frozen=True)
class _FP4(Format):
    """E2M1 codes; how groups are scaled is left to the subclasses."""

    @abstractmethod
    def fit(self, groups: Tensor, base: Tensor | None = None) -> Grid: ...

    def nearest(self, x: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        return _nearest_code(x.float() / step)

    def values(self, codes: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        return _code_value(codes) * step

    @property
    def code_dtype(self) -> torch.dtype:
        return torch.int8

    @property
    def code_bits(self) -> int:
        return 4

    @property
    def grid_bits(self) -> int:
        return 8

    def fill(self, x: Tensor) -> Tensor:
        # Zeros have no error, whatever the scale.
        missing = -x.shape[-1] % (self.group or x.shape[-1])
        return torch.nn.functional.pad(x, (0, missing)) if missing else x


@dataclass(frozen=True)
class NVFP4(_FP4):
    """NVIDIA's NVFP4: an E4M3 scale for each group of 16 on top of a float32 base.

    base = absmax / (6 * 448) of a whole "tensor" (the hardware's form, for weights) or of each "row" (for activations:
    a row's scale is applied where its products are summed, and no image depends on the others of its batch);
    scale = E4M3(group absmax / 6 / base), rounded before it divides. Groups far below the largest keep the smallest
    scale, 2^-9.

    Raises ValueError when `scope` is neither or `group` is not positive.
    """

    scope: str = "row"
    kind: ClassVar[str] = "nvfp4"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scope not in ("row", "tensor"):
            raise ValueError(f"nvfp4 format: scope={self.scope}, allowed are row and tensor")

    def fit(self, groups: Tensor, base: Tensor | None = None) -> Grid:
        extent = groups.float().abs().amax(-1)
        if base is None:
            largest = extent.amax(-1, keepdim=True) if self.scope == "row" else extent.amax()
            base = _base(largest, _TOP * _E4M3_TOP)
        scales = (extent * (1.0 / _TOP) / base).clamp(_E4M3_SMALLEST, _E4M3_TOP)
        return Grid(scales.to(torch.float8_e4m3fn), None, base)

    def step(self, grid: Grid) -> Tensor:
        assert grid.base is not None, "an nvfp4 grid has a base"
        return grid.scales.float() * grid.base

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.float8_e4m3fn

    @property
    def base_of(self) -> str | None:
        return self.scope


@dataclass(frozen=True)
class MXFP4(_FP4):
    """MXFP4 of the OCP Microscaling specification v1.0: a power of two (E8M0) for each group of 32.

    scale = 2^(floor(log2(group absmax)) - 2), stored as its exponent plus 127; what lies beyond 6 scales saturates.
    """

    kind: ClassVar[str] = "mxfp4"

    def fit(self, groups: Tensor, base: Tensor | None = None) -> Grid:
        extent = groups.float().abs().amax(-1)
        # A float32's exponent has the same bias. The smallest step, 2^-126, is not subnormal.
        scales = ((extent.view(torch.int32) >> 23) - 2).clamp(min=1)
        return Grid(torch.where(extent == 0, torch.full_like(scales, 127), scales).to(torch.uint8))

    def step(self, grid: Grid) -> Tensor:
        return (grid.scales.to(torch.int32) << 23).view(torch.float32)

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.uint8


@dataclass(frozen=True)
class FP4H(_FP4):
    """FP4 for GPUs with FP8 but no 4-bit tensor cores: code x group scale is exact in E4M3.

    Group scales are 2^e (e from -8 to 6) or 1.5 x 2^e (e from -7 to 5), over one base a row, the power of two at or
    above row absmax / 256. A code times such a scale has at most four significant bits and lies between 2^-9 and 384,
    so it is an E4M3 number, and one FP8 product with row scales computes the 4-bit product without a per-group
    epilogue. The base being a power of two, a larger one gives the same values while no group is 2^-8 below it: a
    kernel needs no pass over the row to know the largest, any bound will do. Of three scales, the one at or below group
    absmax / 6 and the next two (with the third the largest value lies near 4, where codes are denser), that of least
    squared error is chosen, the smallest of equals; the squares are summed by pairs (`_pair_sum`), so that every device
    chooses the same. Stored: 2 (e + 8), plus 1 for 1.5.
    """

    kind: ClassVar[str] = "fp4h"

    def fit(self, groups: Tensor, base: Tensor | None = None) -> Grid:
        groups = groups.float()
        extent = groups.abs().amax(-1)
        if base is None:
            base = power_of_two(_base(extent.amax(-1, keepdim=True), 4 * 64))
        wanted = _below(extent * (1.0 / _TOP) / base)
        # The middle one where all squares overflow.
        best, least = _nearby(wanted, 1), torch.full_like(extent, torch.inf)
        for offset in (0, 1, 2):
            scales = _nearby(wanted, offset)
            step = (_ladder(scales) * base)[..., None]
            error = (self.values(self.nearest(groups, step, None), step, None) - groups).square()
            total = _pair_sum(error)
            better = total < least
            best, least = torch.where(better, scales, best), torch.where(better, total, least)
        return Grid(best.to(torch.uint8), None, base)

    def step(self, grid: Grid) -> Tensor:
        assert grid.base is not None, "an fp4h grid has a base"
        return _ladder(grid.scales.to(torch.int32)) * grid.base

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def base_of(self) -> str | None:
        return "row"


def _base(largest: Tensor, top: float) -> Tensor:
    """Float32 base at which `largest` is `top`; 1 where it is too small for float32, which then decodes to zero."""
    base = largest * (1.0 / top)
    return torch.where(base < _SMALLEST_BASE, torch.ones_like(base), base)


def _pair_sum(x: Tensor) -> Tensor:
    """Sum over the last dimension, float32: neighbours, then neighbouring sums, and so on, after zeros up to 2^n."""
    width = x.shape[-1]
    x = torch.nn.functional.pad(x, (0, (1 << (width - 1).bit_length()) - width))
    while x.shape[-1] > 1:
        x = x[..., 0::2] + x[..., 1::2]
    return x[..., 0]


def _below(scale: Tensor) -> Tensor:
    """Index on fp4h's ladder of the largest scale that is at most `scale`, int32."""
    bits = scale.clamp(2.0**-8, 64.0).view(torch.int32) >> 22
    return _nearby(bits - _LADDER_BITS, 0)


def _nearby(index: Tensor, offset: int) -> Tensor:
    """A neighbour on the ladder 0, 2, 3, 4, ... 28; index 1 would be 1.5 x 2^-8, which E4M3 cannot hold times 0.5."""
    moved = (index + offset).clamp(0, 28)
    return torch.where(moved == 1, torch.full_like(moved, 2 if offset > 0 else 0), moved)


def _ladder(index: Tensor) -> Tensor:
    """Group scales of fp4h from their indices, int32, in float32."""
    return ((index + _LADDER_BITS) << 22).view(torch.float32)
