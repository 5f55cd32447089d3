"""Eight-bit floating point (E4M3): `fp8`, and `fp8x2`, the sum of two, for the protected branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dirotq.formats.base import Format, Grid, power_of_two

_TOP = 448.0
_SMALLEST_STEP = 2.0**-100
# The second term of fp8x2 is stored 16 times larger, or it would drown in E4M3's subnormals.
_SECOND = 16.0


def _round(x: Tensor) -> Tensor:
    """Nearest E4M3 numbers, saturating."""
    return x.clamp(-_TOP, _TOP).to(torch.float8_e4m3fn)


@dataclass(frozen=True)
class FP8(Format):
    """E4M3 codes with a float32 scale, absmax / 448, for each group or row. Codes are the bytes, uint8.

    power: the scale is rounded up to a power of two. It costs 3 % in error; but any larger scale then gives the same
    values, down to E4M3's subnormals at 2^-14 of the largest, and a kernel needs no pass over the row for its absmax.
    Raises ValueError when `group` is not positive.
    """

    power: bool = False
    kind: ClassVar[str] = "fp8"

    def fit(self, groups: Tensor, base: Tensor | None = None) -> Grid:
        scales = groups.float().abs().amax(-1) * (1.0 / _TOP)
        scales = torch.where(scales < _SMALLEST_STEP, torch.ones_like(scales), scales)
        return Grid(power_of_two(scales) if self.power else scales)

    def nearest(self, x: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        return _round(x.float() / step).view(torch.uint8).float()

    def values(self, codes: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        return codes.to(torch.uint8).view(torch.float8_e4m3fn).float() * step

    @property
    def code_dtype(self) -> torch.dtype:
        return torch.uint8

    @property
    def code_bits(self) -> int:
        return 8

    @property
    def grid_bits(self) -> int:
        return 32

    @property
    def scale_dtype(self) -> torch.dtype:
        return torch.float32


@dataclass(frozen=True)
class FP8x2(FP8):
    """The sum of two E4M3 numbers, the second one a sixteenth: value = (first + second / 16) * scale, a power of two.

    For the protected branch: [a1 | a2 | a1] beside [w1 | w1 / 16 | w2 / 16], each an E4M3 number, compute it in one FP8
    product but for the product of the two residuals. Codes are int16: the first term's byte below the second's.
    """

    power: bool = True
    kind: ClassVar[str] = "fp8x2"

    def nearest(self, x: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        scaled = x.float() / step
        first = _round(scaled)
        second = _round((scaled - first.float()) * _SECOND)
        low, high = first.view(torch.uint8).float(), second.view(torch.int8).float()
        return low + 256.0 * high

    def values(self, codes: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        whole = codes.to(torch.int32)
        first = (whole & 0xFF).to(torch.uint8).view(torch.float8_e4m3fn).float()
        second = ((whole >> 8) & 0xFF).to(torch.uint8).view(torch.float8_e4m3fn).float()
        return (first + second * (1.0 / _SECOND)) * step

    @property
    def code_dtype(self) -> torch.dtype:
        return torch.int16

    @property
    def code_bits(self) -> int:
        return 16
