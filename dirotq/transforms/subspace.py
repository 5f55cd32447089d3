"""The principal subspace of a second moment, without a full eigendecomposition where that would cost much more."""

from __future__ import annotations

import torch
from torch import Tensor

from dirotq.transforms.orthogonal import eigenbasis, signed

_OVERSAMPLING = 16
_ROUNDS = 40
_SETTLED = 1e-3


def top_subspace(moment: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns [K, rank], float64, ascending, that span the leading eigenvectors of `moment` [K, K].

    Block subspace iteration with Rayleigh-Ritz (Halko, Martinsson, Tropp, arXiv 0909.4061, section 4.5), stopped when
    a round gains less than a thousandth of the energy that is still outside, which is what will be quantized; a full
    `eigh`, which is as quick then, where the block would be an eighth of the width or more, where the width is small,
    and where 40 rounds do not settle. Eigenvalues that are close may mix at the border of the subspace: what is
    promised is the energy, not the vectors.
    """
    width, block = moment.shape[0], rank + _OVERSAMPLING
    if width < 1024 or 8 * block >= width:
        return eigenbasis(moment)[1][:, width - rank :]
    moment = moment.double()
    start = torch.randn(width, block, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(moment @ start.to(moment.device))[0]
    total, energy = float(moment.diagonal().sum()), 0.0
    for _ in range(_ROUNDS):
        image = moment @ basis
        values, vectors = torch.linalg.eigh(basis.T @ image)
        found = float(values[-rank:].sum())
        if abs(found - energy) <= _SETTLED * (total - found):
            return signed((basis @ vectors)[:, -rank:])
        energy = found
        basis = torch.linalg.qr(image)[0]
    return eigenbasis(moment)[1][:, width - rank :]


def joint_subspace(
    moment: Tensor, weight: Tensor, rank: int, generator: torch.Generator, rounds: int = 10
) -> Tensor:
    """Columns [K, rank] that make the product of the two energies outside them small, float64.

    What is left to quantize is E_x = tr(H outside S) of the input and E_w = tr(WᵀW outside S) of the weight [N, K]; the
    error is about their product. A stationary point of log E_x + log E_w holds the leading eigenvectors of
    H / E_x + WᵀW / E_w, found as a fixed point that starts at the principal subspace of H. The best of all rounds.
    """
    moment = moment.double()
    gram = (weight.double().T @ weight.double()).to(moment.device)
    subspace = top_subspace(moment, rank, generator)
    best, least = subspace, float("inf")
    for _ in range(rounds + 1):
        outside = [_energy_outside(matrix, subspace) for matrix in (moment, gram)]
        if outside[0] * outside[1] < least:
            best, least = subspace, outside[0] * outside[1]
        if min(outside) <= 0:
            break
        subspace = top_subspace(moment / outside[0] + gram / outside[1], rank, generator)
    return best


def _energy_outside(matrix: Tensor, subspace: Tensor) -> float:
    return float(matrix.diagonal().sum() - ((matrix @ subspace) * subspace).sum())
