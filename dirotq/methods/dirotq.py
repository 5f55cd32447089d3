"""DiRotQ (arXiv 2605.16732): the principal coordinates of the input at 16 bits, the rotated rest at 4.

Followed: the uncentred second moment H = XᵀX / n = U Λ Uᵀ in ascending order, the last k columns protected on both
sides, a random orthogonal mixing of the others, B = U blockdiag(R_low, I_k), weights folded offline, GPTQ on the low
block with H_low = (BᵀHB)[low, low], one per cent damping, act-order, blocks of 128.
Changed, each a defect of the authors' code or of its settings:
- k is fixed first, and R_low built for K - k. Theirs widens the protected tail after R was built, so that some
  protected directions are random ones.
- every distinct input has a basis and a mixing of its own, and the basis at an attention output comes from the tensor
  that is quantized there, not from the value projection.
- statistics belong to the input they were taken from, under the settings of deployment; no hash of counts.
- damping is relative to the low block's own mean, which the factorization in float64 allows. One per cent of the
  full mean, theirs, can exceed the low block's whole diagonal; `gptq_reference=full` is theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dirotq.calibrate import InputStatistics
from dirotq.formats import Encoded, Format
from dirotq.methods.base import Method
from dirotq.transforms import Compact, Dense, Transform, eigenbasis, random_orthogonal

BASES = ("pca", "random", "identity")
ROTATIONS = ("dense", "compact", "none")
REFERENCES = ("low", "full")


@dataclass(frozen=True)
class DiRotQ(Method):
    """rank: protected coordinates; an integer, or a fraction of the width below 1, which is rounded up to the
        activation group as in the paper.
    basis: "pca", or for ablation "random" (a random subspace) and "identity" (the channels of largest moment).
    rotation: "dense" mixes the low coordinates by a random orthogonal matrix (the paper), "none" leaves them unmixed
        in the eigenbasis, "compact" separates the same subspace by a block reflector and mixes the rest by random signs
        and a block Hadamard of size `block`: O(K r) operations and numbers instead of O(K²).
    gptq_reference: whose mean diagonal the damping refers to, "low" block or "full" input.
    """

    rounding: str = "gptq"
    rank: float = 0.125
    basis: str = "pca"
    rotation: str = "dense"
    block: int = 64
    gptq_reference: str = "low"

    name: ClassVar[str] = "dirotq"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rank < math.inf or (self.rank > 1 and self.rank != int(self.rank)):
            raise ValueError(
                f"rank={self.rank}, allowed are integers from 1 and fractions of the width below 1"
            )
        for key, allowed in (
            ("basis", BASES),
            ("rotation", ROTATIONS),
            ("gptq_reference", REFERENCES),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key}={getattr(self, key)}, allowed are {', '.join(allowed)}")
        if self.block < 1 or self.block & (self.block - 1):
            raise ValueError(f"block={self.block}, allowed are powers of two")

    def coordinates(self, width: int, act: Format | None) -> int:
        """Protected coordinates of an input of `width`; raises ValueError unless fewer than the width."""
        group = (act.group if act is not None else None) or 1
        high = math.ceil(self.rank * width / group) * group if self.rank < 1 else int(self.rank)
        if high >= width:
            raise ValueError(
                f"rank={self.rank:g} protects {high} coordinates of an input of width {width}, "
                f"allowed are integers from 1 to {width - 1} and fractions that round up to fewer"
            )
        return high

    def transform(
        self,
        inputs: InputStatistics,
        weights: list[Tensor],
        fmt: Format | None,
        act: Format | None,
    ) -> Transform:
        high = self.coordinates(inputs.width, act)
        low = inputs.width - high
        generator = self.generator(inputs.name)
        basis = self._basis(inputs.moment, generator)
        if self.rotation == "compact":
            signs = torch.randint(0, 2, (low,), generator=generator) * 2 - 1
            return Compact(inputs.width, high, self.block, basis[:, low:], signs)
        if self.rotation == "dense":
            basis = torch.cat(
                [basis[:, :low] @ random_orthogonal(low, generator), basis[:, low:]], dim=1
            )
        return Dense(inputs.width, high, basis)

    def round(
        self, weight: Tensor, moment: Tensor | None, fmt: Format, mean: float
    ) -> tuple[Encoded, bool]:
        if moment is not None and self.gptq_reference == "low":
            mean = float(moment.diagonal().mean())
        return super().round(weight, moment, fmt, mean)

    def _basis(self, moment: Tensor, generator: torch.Generator) -> Tensor:
        if self.basis == "pca":
            return eigenbasis(moment)[1]
        if self.basis == "random":
            return random_orthogonal(moment.shape[0], generator)
        order = torch.argsort(moment.diagonal(), stable=True)
        return torch.eye(moment.shape[0], dtype=torch.float64)[:, order]
