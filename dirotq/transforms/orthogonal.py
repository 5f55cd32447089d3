"""Orthogonal matrices: random rotations and the eigenbasis of a second moment."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_NEWTON_ROUNDS = 30
# Convergence is quadratic: what is left after such a change is its square.
_NEWTON_SETTLED = 1e-8


def random_orthogonal(width: int, generator: torch.Generator) -> Tensor:
    """Haar-distributed orthogonal matrix [width, width], float64, on the CPU.

    QR of a Gaussian matrix with the signs of R's diagonal moved into Q (Mezzadri, arXiv math-ph/0609050);
    without that step the distribution depends on the QR routine.
    """
    gaussian = torch.randn(width, width, dtype=torch.float64, generator=generator)
    q: Tensor
    q, r = torch.linalg.qr(gaussian)
    signs = torch.where(r.diagonal() < 0, -1.0, 1.0).to(q.dtype)
    return q * signs


def polar(matrix: Tensor) -> Tensor | None:
    """Orthogonal factor of the polar decomposition of `matrix` [n, n], float64; None where it is singular.

    Scaled Newton iteration (Higham, SIAM J. Sci. Stat. Comput. 7, 1986), about ten inversions.
    """
    found: Tensor = matrix.double()
    for _ in range(_NEWTON_ROUNDS):
        inverse, failed = torch.linalg.inv_ex(found)
        sizes = [
            torch.linalg.matrix_norm(part, 1) * torch.linalg.matrix_norm(part, torch.inf)
            for part in (inverse, found)
        ]
        scale = float((sizes[0] / sizes[1]) ** 0.25)
        if int(failed) or not 0 < scale < math.inf:
            return None
        before = found
        found = before * (scale / 2) + inverse.T / (2 * scale)
        change = float((found - before).norm() / found.norm())
        if change <= _NEWTON_SETTLED:
            return found
    return None


def eigenbasis(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [K], ascending, and eigenvectors [K, K] (columns) of a second moment, float64.

    Each column's sign is fixed (its largest entry is positive), so that the basis does not depend on the solver.
    """
    values, vectors = torch.linalg.eigh(moment.double())
    return values, signed(vectors)


def signed(vectors: Tensor) -> Tensor:
    """Columns [K, n] with signs such that the largest entry of each is positive."""
    largest = vectors.abs().argmax(dim=0, keepdim=True)
    return vectors * vectors.gather(0, largest).sign()
