"""Integer formats: `int4` and `int8`, symmetric, unsigned or with a zero point, per group or per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dirotq.formats.base import Format, Grid


@dataclass(frozen=True)
class Integer(Format):
    """Codes on an even grid.

    symmetric: codes in [-q, q], q = 2^(bits-1) - 1, value = code * scale, scale = absmax / q.
    unsigned: codes in [0, 2^bits - 1], value = code * scale, scale = absmax / (2^bits - 1): for values that are not
        negative. Those that are become 0.
    neither: codes in [0, 2^bits - 1], value = (code - zero) * scale, scale = (max - min) / (2^bits - 1),
        zero = -min / scale, not rounded to an integer. Its 8 bits are enough where a group straddles zero; a group far
        from zero decodes to the relative accuracy of bfloat16, 2^-8.
    Scales and zero points are bfloat16 and are rounded before they are used, so that a decoder sees the
    numbers the encoder used. The INT W4A4 rows of SVDQuant (arXiv 2411.05007) use the symmetric form on both
    sides, those of DiRotQ (arXiv 2605.16732) the asymmetric one for activations.

    unsigned is a form of symmetric, without a zero point as it is.
    Raises ValueError when `bits` is not 4 or 8, `group` is not positive, or a format is unsigned but not symmetric.
    """

    bits: int = 4
    symmetric: bool = True
    unsigned: bool = False
    kind: ClassVar[str] = "integer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.bits) is not int or self.bits not in (4, 8):
            raise ValueError(f"integer format: bits={self.bits}, allowed are 4 and 8")
        for key in ("symmetric", "unsigned"):
            if type(getattr(self, key)) is not bool:
                raise ValueError(
                    f"integer format: {key}={getattr(self, key)}, allowed are true and false"
                )
        if self.unsigned and not self.symmetric:
            raise ValueError("integer format: unsigned=true, allowed is false beside a zero point")

    def fit(self, groups: Tensor, base: Tensor | None = None) -> Grid:
        groups = groups.float()
        if self.symmetric:
            return Grid(_scale(groups.abs().amax(-1), self._high))
        low, high = groups.amin(-1), groups.amax(-1)
        scales = _scale(high - low, self._high)
        return Grid(scales, (-low / scales.float()).bfloat16())

    def nearest(self, x: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        steps = x.float() / step.float()
        if zero is not None:
            steps = steps + zero.float()
        return steps.round().clamp(self._low, self._high)

    def values(self, codes: Tensor, step: Tensor, zero: Tensor | None) -> Tensor:
        steps = codes.float()
        if zero is not None:
            steps = steps - zero.float()
        return steps * step.float()

    @property
    def code_dtype(self) -> torch.dtype:
        return torch.int8 if self._signed else torch.uint8

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def grid_bits(self) -> int:
        return 16 if self.symmetric else 32

    @property
    def _low(self) -> int:
        return -self._high if self._signed else 0

    @property
    def _high(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self._signed else (1 << self.bits) - 1

    @property
    def _signed(self) -> bool:
        return self.symmetric and not self.unsigned


def _scale(extent: Tensor, steps: int) -> Tensor:
    # A product, because dividing by a constant is rounded differently on CPU and GPU.
    scales = (extent * (1.0 / steps)).bfloat16()
    # A group without extent decodes to its one value (as bfloat16) at any scale; 1 keeps the division finite.
    return torch.where(scales == 0, torch.ones_like(scales), scales)
