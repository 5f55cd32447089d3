"""SVDQuant (arXiv 2411.05007): searched smoothing, and a 16-bit branch of low rank beside the 4-bit residual.

Followed, from the authors' code (deepcompressor): smooth first, then the branch, then rounding. s = xspan^a / wspan^b
with absmax spans over all calibration tokens and over all linears that read the input; 39 pairs (a, b), each judged
together with a plain SVD branch of its own, the residual rounded to nearest and the activations quantized; ties go to
the later pair; s = 1 where it is zero, and everywhere when any of it is not finite. Then alternating refinement L <-
SVD_r(W s - Q), Q <- rounded W s - L, the best of at most 100, stopped at the first that is worse. Linears that read
one input share s and the down factor: one SVD of their stacked weights. The branch is fed with the smoothed input,
before it is quantized. Where activations are symmetric 4-bit integers (bits=w4a4_int4_sym is the authors' INT4 scheme),
0.171875 is added to a GELU's output, which is not negative then and has unsigned codes, with half the step; what the
shift adds to the layer's output is taken off its bias. Both searches round to nearest also where GPTQ makes the final
codes; its Hessian is that of the smoothed input, and its damping refers to that Hessian's mean. Activations come from
the unquantized model. Nothing is fused: x / s is computed online.
Changed:
- the branch is scored on x / s. By the order of its hooks theirs is scored on x / s² where the module that is
  evaluated carries the smoothing hook; that only decides which iteration is kept.
- what is compared is the stacked output of the linears that read an input, on at most 512 of its rows. They compare,
  over all cached tokens, the output of the attention module at q, k, v and of a whole block where its halves run in
  parallel. Statistics here belong to an input, know no modules, and take memory that does not grow with the data.
- s, down and up are rounded to bfloat16, as they are stored, before a candidate is judged.
- which inputs are shifted is decided by their statistics (`dirotq.methods._shift`), theirs by the module before. Its
  part of the output is that of the quantized weight, theirs that of the original one, so that GPTQ's Hessian is of the
  unshifted input here. Both searches have the unsigned codes; in theirs the refinement has signed ones.
  Activations with a zero point (bits=w4a4_int4) need no shift.
- the SVD is truncated, by the eigenvectors of the smaller Gram matrix or by block Krylov iteration, instead of a
  full one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from dirotq.calibrate import InputStatistics
from dirotq.formats import Format
from dirotq.methods._lowrank import (
    OVERSAMPLING,
    Factorize,
    Objective,
    randomized_svd,
    truncated_svd,
)
from dirotq.methods._shift import shifted
from dirotq.methods.base import Ranked
from dirotq.transforms import LowRank, Transform

SVDS = ("exact", "randomized")


@dataclass(frozen=True)
class SVDQuant(Ranked):
    """rank: columns of the branch; an integer, or a fraction of the width below 1, which is rounded up. It is capped at
        the output features of all linears that read the input: a factor of so many columns holds the whole weight.
    search: choose the smoothing by the output error; otherwise there is none.
    num_grids: steps of the exponents' grid, 20 for 39 candidates.
    iterations: of the refinement at most; 1 is the plain SVD.
    patience: iterations in a row without improvement that end the refinement; 1 is the authors'.
    svd: "exact", or "randomized": block Krylov iteration, cheaper for wide layers, which captures the same energy.
    shift: unsigned codes where they suit the input better; only symmetric 4-bit activations have them.
    Where weights are not quantized there is nothing to search: no smoothing, plain SVD.
    """

    rounding: str = "gptq"
    rank: float = 32
    search: bool = True
    num_grids: int = 20
    iterations: int = 100
    patience: int = 1
    svd: str = "exact"
    shift: bool = True

    name: ClassVar[str] = "svdquant"

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("num_grids", "iterations", "patience"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}, allowed are integers from 1")
        if self.svd not in SVDS:
            raise ValueError(f"svd={self.svd}, allowed are {', '.join(SVDS)}")

    def transform(
        self,
        inputs: InputStatistics,
        weights: list[Tensor],
        fmt: Format | None,
        act: Format | None,
    ) -> Transform:
        weight = torch.cat(weights).detach().float()
        rank = min(self.coordinates(inputs.width, act), weight.shape[0])
        factorize = self._factorize(inputs, rank, weight)
        if fmt is None:
            up, down = factorize(weight)
            return LowRank(inputs.width, rank, None, down, up)
        sample = inputs.sample.to(weight.device)
        act, shift = self.activation(inputs, act)
        objective = Objective(sample, weight, sample @ weight.T, fmt, act, shift)
        scales = torch.ones(inputs.width, device=weight.device)
        if self.search:
            # Of the shifted input: that is what is quantized.
            span = inputs.absmax.to(weight.device) + shift
            candidates = smoothings(span, weight, self.num_grids)
            scales, _ = objective.search(candidates, factorize)
        found = objective.refine(scales, factorize, self.iterations, self.patience)
        return LowRank(inputs.width, rank, found.scales, found.down, found.up)

    def activation(
        self, inputs: InputStatistics, act: Format | None
    ) -> tuple[Format | None, float]:
        return shifted(inputs, act) if self.shift else (act, 0.0)

    def blank(self, width: int, act: Format | None) -> Transform:
        return LowRank(width, self.coordinates(width, act))

    def _factorize(self, inputs: InputStatistics, rank: int, weight: Tensor) -> Factorize:
        if self.svd == "exact":
            return partial(truncated_svd, rank=rank)
        shorter = min(weight.shape)
        size = min(rank + OVERSAMPLING, shorter)
        start = torch.randn(shorter, size, generator=self.generator(inputs.name))
        return partial(randomized_svd, rank=rank, start=start.to(weight.device))


def exponents(num_grids: int) -> list[tuple[float, float]]:
    """Pairs (a, b): no smoothing, then (i/n, 0), then (i/n, 1 - i/n), for i from 1 to n - 1."""
    steps = [i / num_grids for i in range(1, num_grids)]
    return [(0.0, 0.0), *((a, 0.0) for a in steps), *((a, 1 - a) for a in steps)]


def smoothings(absmax: Tensor, weight: Tensor, num_grids: int) -> list[Tensor]:
    """Candidate scales [K], float32 holding bfloat16 values, for an input of `absmax` [K] read by `weight` [N, K]."""
    spread = weight.abs().amax(0)
    return [_usable(absmax**a / spread**b) for a, b in exponents(num_grids)]


def _usable(scales: Tensor) -> Tensor:
    """`scales` as stored: one for zeros, all ones when any is not finite."""
    stored = scales.bfloat16().float()
    if not bool(torch.isfinite(stored).all()):
        return torch.ones_like(stored)
    return torch.where(stored == 0, torch.ones_like(stored), stored)
