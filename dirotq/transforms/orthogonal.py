"""Orthogonal matrices: random rotations and the eigenbasis of a second moment."""

from __future__ import annotations

import torch
from torch import Tensor


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
