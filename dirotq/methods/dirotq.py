"""DiRotQ (arXiv 2605.16732): the principal coordinates of the input at higher precision, the rotated rest at 4 bits.

Followed: the uncentred second moment H = XᵀX / n = U Λ Uᵀ in ascending order, the last k columns protected on both
sides, a random orthogonal mixing of the others, B = U blockdiag(R_low, I_k), weights folded offline, GPTQ on the low
block with H_low = (BᵀHB)[low, low], one per cent damping, act-order, blocks of 128.
Changed, each a defect of the authors' code or of its settings:
- k is fixed first, and R_low built for K - k. Theirs widens the protected tail after R was built, so that some
  protected directions are random ones.
- every distinct input has a basis and a mixing of its own, and the bases at an attention output (with rotation=dense
  one a head, as theirs) come from the tensor that is quantized there, not from the value projection. The low
  coordinates of all heads are grouped as everywhere; theirs have a group a head, of odd size.
- statistics belong to the input they were taken from, under the settings of deployment; no hash of counts.
- damping is relative to the low block's own mean, which the factorization in float64 allows. One per cent of the
  full mean, theirs, can exceed the low block's whole diagonal; `gptq_reference=full` is theirs.
Ours, and the defaults: rotation=compact separates the same subspace at a fraction of the cost, its numbers stored in
eight bits; protect=int8 (or fp8x2, for FP8 units) keeps the protected coordinates in fewer bits; weight scales are
searched. Ours, by choice: basis=joint also looks at the weight.
The paper itself: rotation=dense protect=bf16 scale_search=false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dirotq.calibrate import InputStatistics
from dirotq.formats import Format, FP8x2, Integer
from dirotq.methods.base import Ranked
from dirotq.transforms import (
    Compact,
    Dense,
    Heads,
    Transform,
    eigenbasis,
    joint_subspace,
    random_orthogonal,
    top_subspace,
)

BASES = ("pca", "joint", "random", "identity")
PROTECTS: dict[str, Format | None] = {
    "bf16": None,
    "int8": Integer(group=None, bits=8),
    "fp8x2": FP8x2(group=None),
}
ROTATIONS = ("compact", "dense", "none")
REFERENCES = ("low", "full")


@dataclass(frozen=True)
class DiRotQ(Ranked):
    """rank: protected coordinates; an integer, or a fraction of the width below 1, which is rounded up to the
        activation group as in the paper.
    basis: "pca"; "joint", which also leaves little of the weight's energy to quantize; or for ablation "random" (a
        random subspace) and "identity" (the channels of largest moment).
    rotation: "compact" separates the subspace by a block reflector and mixes the rest by random signs and a block
        Hadamard of size `block`: O(K r) operations and numbers instead of O(K²). "dense" mixes the low coordinates by a
        random orthogonal matrix (the paper), "none" leaves them unmixed in the eigenbasis.
    protect: the protected coordinates on both sides: "bf16" (the paper), "int8" (per token, per output channel) or
        "fp8x2", the sum of two E4M3 numbers.
    transform_bits: 16 (bfloat16) or 8, of the numbers that rotation=compact stores.
    per_head: with rotation=dense and basis=pca, a basis for each head at attention outputs, as in the paper: of each
        head's coordinates the share `rank`, to the nearest integer, is protected, not rounded up to a group.
    gptq_reference: whose mean diagonal the damping refers to, "low" block or "full" input.
    """

    rounding: str = "gptq"
    scale_search: bool = True
    rank: float = 0.125
    basis: str = "pca"
    rotation: str = "compact"
    protect: str = "int8"
    block: int = 64
    gptq_reference: str = "low"
    transform_bits: int = 8
    per_head: bool = True

    name: ClassVar[str] = "dirotq"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, allowed in (
            ("basis", BASES),
            ("rotation", ROTATIONS),
            ("protect", tuple(PROTECTS)),
            ("gptq_reference", REFERENCES),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key}={getattr(self, key)}, allowed are {', '.join(allowed)}")
        if self.transform_bits not in (8, 16):
            raise ValueError(f"transform_bits={self.transform_bits}, allowed are 8 and 16")
        if self.block < 1 or self.block & (self.block - 1):
            raise ValueError(f"block={self.block}, allowed are powers of two")

    def multiple(self, act: Format | None) -> int:
        return (act.group if act is not None else None) or 1

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
        if self.rotation == "dense" and self.per_head and inputs.heads > 1 and self.basis == "pca":
            return self._heads(inputs, high, generator)
        if self.rotation == "compact":
            subspace = self._subspace(inputs.moment, weights, high, generator)
            signs = torch.randint(0, 2, (low,), generator=generator) * 2 - 1
            return Compact(inputs.width, high, self.block, subspace, signs, self.transform_bits)
        basis = self._basis(inputs.moment, weights, high, generator)
        if self.rotation == "dense":
            mixing = random_orthogonal(low, generator).to(basis.device)
            basis = torch.cat([basis[:, :low] @ mixing, basis[:, low:]], dim=1)
        return Dense(inputs.width, high, basis)

    def blank(self, width: int, act: Format | None) -> Transform:
        high = self.coordinates(width, act)
        if self.rotation == "compact":
            return Compact(width, high, self.block, bits=self.transform_bits)
        if self.rotation == "dense" and self.per_head and self.basis == "pca":
            raise ValueError(
                "method.per_head=true: budget= cannot count the bases of heads, allowed is false beside it"
            )
        return Dense(width, high)

    @property
    def protect_format(self) -> Format | None:
        return PROTECTS[self.protect]

    def damping_mean(self, mean: float) -> float | None:
        return mean if self.gptq_reference == "full" else None

    def _subspace(
        self, moment: Tensor, weights: list[Tensor], high: int, generator: torch.Generator
    ) -> Tensor:
        """Orthonormal columns [K, high] to protect."""
        if self.basis == "pca":
            return top_subspace(moment, high, generator)
        if self.basis == "joint":
            return joint_subspace(moment, torch.cat(weights).to(moment.device), high, generator)
        return self._basis(moment, weights, high, generator)[:, -high:]

    def _basis(
        self, moment: Tensor, weights: list[Tensor], high: int, generator: torch.Generator
    ) -> Tensor:
        """Orthogonal [K, K]; the last `high` columns are to be protected."""
        width = moment.shape[0]
        if self.basis == "pca":
            return eigenbasis(moment)[1]
        if self.basis == "random":
            return random_orthogonal(width, generator)
        if self.basis == "joint":
            subspace = self._subspace(moment, weights, high, generator)
            identity = torch.eye(width, dtype=torch.float64, device=moment.device)
            rest = identity - subspace @ subspace.T
            outside = eigenbasis(rest)[1][:, high:]
            within = eigenbasis(outside.T @ moment.double() @ outside)[1]
            return torch.cat([outside @ within, subspace], dim=1)
        order = torch.argsort(moment.diagonal(), stable=True)
        return torch.eye(width, dtype=torch.float64, device=moment.device)[:, order]

    def _heads(self, inputs: InputStatistics, high: int, generator: torch.Generator) -> Transform:
        """A basis a head; the protected coordinates are spread evenly, as in the paper without rounding to groups."""
        size = inputs.width // inputs.heads
        share = self.rank * size if self.rank < 1 else high / inputs.heads
        kept = min(size - 1, max(1, round(share)))
        mixing = random_orthogonal(size - kept, generator).to(inputs.moment.device)
        bases = []
        for head in range(inputs.heads):
            part = slice(head * size, (head + 1) * size)
            basis = eigenbasis(inputs.moment[part, part])[1]
            bases.append(torch.cat([basis[:, :-kept] @ mixing, basis[:, -kept:]], dim=1))
        return Heads(inputs.width, kept * inputs.heads, inputs.heads, torch.stack(bases))
