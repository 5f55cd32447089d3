"""The 16-bit reference: nothing is quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dirotq.methods.base import Untransformed


@dataclass(frozen=True)
class FP16(Untransformed):
    """Leaves the model as it is."""

    name: ClassVar[str] = "fp16"
    quantizes: ClassVar[bool] = False
