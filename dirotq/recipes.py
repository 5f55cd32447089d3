"""A recipe: everything that decides how a model is quantized."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from dirotq.formats import Format, Integer
from dirotq.methods import Method, Ranked


@dataclass(frozen=True)
class Bits:
    """Formats of weights and activations under one name (`w4a4_int4`); None means 16 bits."""

    name: str
    weight: Format | None
    act: Format | None

    def __post_init__(self) -> None:
        if isinstance(self.weight, Integer) and (self.weight.unsigned or not self.weight.symmetric):
            raise ValueError(f"bits={self.name}: weight formats must be symmetric and signed")


@dataclass(frozen=True)
class Recipe:
    """method: how. bits: to what. weight_only: patterns of linears whose activations stay at 16 bits.
    budget: effective bits a weight that no input's linears may exceed; in place of the method's rank, the largest rank
        that keeps to it is chosen for each input.
    """

    method: Method
    bits: Bits
    weight_only: tuple[str, ...] = ()
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget <= 64:
            raise ValueError(f"budget={self.budget:g}, allowed are numbers above 0 up to 64")
        if self.budget is not None and not isinstance(self.method, Ranked):
            raise ValueError(
                f"budget={self.budget:g}: method {self.method.name} has no rank to choose"
            )
        for pattern in self.weight_only:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"weight_only={pattern}: not a regular expression ({error})"
                ) from None

    def describe(self) -> str:
        """The recipe in a few words: method, bits, rank or budget, rounding."""
        words = [self.method.name, self.bits.name]
        if self.budget is not None:
            words.append(f"at most {self.budget:g} bits")
        elif isinstance(self.method, Ranked):
            words.append(f"rank {self.method.rank:g}")
        return " ".join([*words, self.method.rounding])

    def to_dict(self) -> dict[str, Any]:
        """JSON fields, for checkpoints and cache keys."""
        weight, act = self.bits.weight, self.bits.act
        return {
            "method": self.method.to_dict(),
            "bits": self.bits.name,
            "weight": weight.to_dict() if weight else None,
            "act": act.to_dict() if act else None,
            "weight_only": list(self.weight_only),
            "budget": self.budget,
        }
