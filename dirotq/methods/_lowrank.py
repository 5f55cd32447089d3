"""Numerics of SVDQuant: truncated SVDs, the squared output error of a layer on sample rows, and the refinement loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dirotq.formats import Format

Factorize = Callable[[Tensor], tuple[Tensor, Tensor]]
_POWER_ITERATIONS = 4


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """up [N, r] = U S and down [K, r] = V of the leading r singular triplets of `matrix` [N, K]; float32.

    By the eigenvectors of the smaller Gram matrix, in float64: it squares the condition number, which costs the small
    singular values their digits, but only the leading ones are used.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    exact = matrix.double()
    values, vectors = torch.linalg.eigh(exact @ exact.T if wide else exact.T @ exact)
    leading = vectors[:, -rank:].flip(-1)
    if not wide:
        return (exact @ leading).float(), leading.float()
    # A floor keeps the division finite where the rank is lower; the product of the factors does not depend on it.
    sizes = values[-rank:].flip(-1).clamp_min(1e-30).sqrt()
    return (leading * sizes).float(), (exact.T @ leading / sizes).float()


def randomized_svd(matrix: Tensor, rank: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """`truncated_svd` by subspace iteration (Halko et al., arXiv 0909.4061, algorithm 4.4) from `start` [K, l], l >= r.

    O(N K l) operations instead of a full eigendecomposition; float32.
    """
    rows = start.to(matrix)
    for _ in range(_POWER_ITERATIONS):
        columns = torch.linalg.qr(matrix @ rows)[0]
        rows = torch.linalg.qr(matrix.T @ columns)[0]
    projected = matrix @ rows
    gram = projected.double().T @ projected.double()
    leading = torch.linalg.eigh(gram)[1][:, -rank:].flip(-1).to(matrix)
    return projected @ leading, rows @ leading


@dataclass(frozen=True)
class Branch:
    """A choice for one input: scales [K], down [K, r], up [N, r], float32 holding bfloat16 values, and its error."""

    scales: Tensor
    down: Tensor
    up: Tensor
    error: float


@dataclass(frozen=True)
class Objective:
    """Squared output error over sample rows, of the layer as it will be computed but with weights rounded to nearest.

    sample: [S, K], weight: [N, K] of all linears that read the input, output: sample @ weight.T; float32 on one device.
    fmt, act: formats of the residual weight and of the smoothed input; act None leaves the input unrounded.
    """

    sample: Tensor
    weight: Tensor
    output: Tensor
    fmt: Format
    act: Format | None

    def search(self, candidates: list[Tensor], factorize: Factorize) -> tuple[Tensor, list[float]]:
        """The best of `candidates` (scales [K]) beside a plain SVD, the later one of equals, and every one's error."""
        errors = [self.refine(scales, factorize, iterations=1).error for scales in candidates]
        best = 0
        for index, error in enumerate(errors):
            if error <= errors[best]:
                best = index
        return candidates[best], errors

    def refine(self, scales: Tensor, factorize: Factorize, iterations: int) -> Branch:
        """Alternate L <- leading singular part of W s - Q and Q <- rounded W s - L, from Q = 0; the best L found.

        Stops at the first iteration that is worse than the best one before it. One iteration is the plain SVD of W s.
        """
        smoothed, x = self.weight * scales, self.sample / scales
        low = x if self.act is None else self.act.quantize(x)
        rounded = torch.zeros_like(smoothed)
        best: Branch | None = None
        for _ in range(iterations):
            up, down = (factor.bfloat16().float() for factor in factorize(smoothed - rounded))
            rounded = self.fmt.quantize(torch.addmm(smoothed, up, down.T, alpha=-1))
            high = x @ down
            if self.act is not None:
                high = high.bfloat16().float()
            missing = torch.addmm(self.output, high, up.T, alpha=-1).addmm_(
                low, rounded.T, alpha=-1
            )
            error = float(torch.linalg.vector_norm(missing, dtype=torch.float64).square())
            # So written that an error that is not a number ends the loop.
            if best is not None and not error <= best.error:
                break
            best = Branch(scales, down, up, error)
        assert best is not None, "at least one iteration"
        return best
