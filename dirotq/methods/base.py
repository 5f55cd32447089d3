"""What a method is: a choice of transform for each distinct input, and a rounding rule.

A method never walks a model, and knows no formats beyond the ones it is handed.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from dirotq.calibrate import InputStatistics
from dirotq.formats import Encoded, Format
from dirotq.rounding import GPTQOptions, gptq, round_to_nearest, search_grid
from dirotq.transforms import Identity, Transform

ROUNDINGS = ("rtn", "gptq")


@dataclass(frozen=True)
class Method(ABC):
    """rounding: "rtn" or "gptq". seed: of every random choice. gptq: options of GPTQ, read only with it.
    scale_search: whether the weight's scales are searched before either rounding.
    """

    rounding: str = "rtn"
    seed: int = 0
    gptq: GPTQOptions = field(default_factory=GPTQOptions)
    scale_search: bool = False

    name: ClassVar[str]
    quantizes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rounding not in ROUNDINGS:
            raise ValueError(
                f"rounding={self.rounding}, allowed are {', '.join(ROUNDINGS)} and null (the method's own)"
            )
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}, allowed are integers from 0")

    @abstractmethod
    def transform(
        self,
        inputs: InputStatistics,
        weights: list[Tensor],
        fmt: Format | None,
        act: Format | None,
    ) -> Transform:
        """Transform for one distinct input, read by linears with `weights` [N_i, K].

        fmt, act: formats of the low weights and of the low input; None where they are not quantized.
        """

    def activation(
        self, inputs: InputStatistics, act: Format | None
    ) -> tuple[Format | None, float]:
        """Format of the low input, of which `act` is the usual one, and its shift (`dirotq.linear.InputSpec`)."""
        return act, 0.0

    @property
    def protect_format(self) -> Format | None:
        """Format of the protected branch on both sides; None is bfloat16."""
        return None

    def check_width(self, width: int, act: Format | None) -> None:  # noqa: B027 - most fit any width
        """Raise ValueError if the method's settings do not fit an input of this width."""

    def round(
        self, weight: Tensor, moment: Tensor | None, fmt: Format, mean: float
    ) -> tuple[Encoded, bool]:
        """Encode the low weight [N, low]; True when GPTQ could not be used and rounding to nearest was.

        moment: second moment [low, low] of the low input; mean: mean diagonal of the whole input's moment.
        """
        diagonal = None if moment is None else moment.diagonal()
        grid = search_grid(weight, fmt, diagonal) if self.scale_search else None
        if self.rounding == "gptq" and moment is not None:
            encoded = gptq(
                weight, moment, fmt, mean=self.damping_mean(mean), grid=grid, options=self.gptq
            )
            if encoded is not None:
                return encoded, False
        return round_to_nearest(weight, fmt, grid), self.rounding == "gptq"

    def damping_mean(self, mean: float) -> float | None:
        """What GPTQ's damping is relative to; None is the low moment's own mean. mean: of the whole input's."""
        return None

    def generator(self, name: str) -> torch.Generator:
        """Random generator for the input `name`: it depends on the seed and the name, not on the order of work."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))

    def to_dict(self) -> dict[str, Any]:
        """JSON fields, for checkpoints and cache keys."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class Ranked(Method):
    """A method with a protected branch.

    rank: coordinates of the branch; an integer, or a fraction of the input's width below 1, which is rounded up.
    """

    rank: float = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rank < math.inf or (self.rank > 1 and self.rank != int(self.rank)):
            raise ValueError(
                f"rank={self.rank}, allowed are integers from 1 and fractions of the width below 1"
            )

    @abstractmethod
    def blank(self, width: int, act: Format | None) -> Transform:
        """An empty transform of the kind and shape that `transform` gives, to count what it stores."""

    def multiple(self, act: Format | None) -> int:
        """What a fraction of the width is rounded up to a multiple of."""
        return 1

    def coordinates(self, width: int, act: Format | None) -> int:
        """Coordinates of the branch at an input of `width`; raises ValueError unless fewer than the width."""
        step = self.multiple(act)
        high = math.ceil(self.rank * width / step) * step if self.rank < 1 else int(self.rank)
        if high >= width:
            raise ValueError(
                f"rank={self.rank:g} protects {high} coordinates of an input of width {width}, "
                f"allowed are integers from 1 to {width - 1} and fractions that round up to fewer"
            )
        return high

    def check_width(self, width: int, act: Format | None) -> None:
        self.coordinates(width, act)


@dataclass(frozen=True)
class Untransformed(Method):
    """A method that quantizes the input as it is."""

    def transform(
        self,
        inputs: InputStatistics,
        weights: list[Tensor],
        fmt: Format | None,
        act: Format | None,
    ) -> Transform:
        return Identity(inputs.width)
