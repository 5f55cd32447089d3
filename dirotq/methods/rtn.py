"""Round to nearest: no transform, no protected branch. The floor every method has to clear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dirotq.methods.base import Untransformed


@dataclass(frozen=True)
class RTN(Untransformed):
    """Weights and activations rounded on the grids of `bits=`; with rounding="gptq", plain GPTQ."""

    name: ClassVar[str] = "rtn"
