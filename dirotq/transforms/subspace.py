"""The principal subspace of a second moment, without a full eigendecomposition where that would cost much more."""

from __future__ import annotations

import torch
from torch import Tensor

from dirotq.transforms.orthogonal import eigenbasis, signed

_OVERSAMPLING = 16
# Of the width, blocks below this share are iterated; from _WIDE on, where `eigh` falls back behind, below a sixth.
_SHARE, _WIDE, _WIDE_SHARE = 8, 2048, 6
_ROUNDS = 40
_WARM_ROUNDS = 4
_SETTLED = 1e-3


def top_subspace(
    moment: Tensor, rank: int, generator: torch.Generator, start: Tensor | None = None
) -> Tensor:
    """Orthonormal columns [K, rank], float64, ascending, that span the leading eigenvectors of `moment` [K, K].

    Block subspace iteration with Rayleigh-Ritz (Halko, Martinsson, Tropp, arXiv 0909.4061, section 4.5), stopped when
    a round gains less than a thousandth of the energy that is still outside, which is what will be quantized; a full
    `eigh`, which is as quick then, where the block would be an eighth of the width or more (from a width of 2048 on, a
    sixth), where the width is small, and where 40 rounds do not settle. Eigenvalues that are close may mix at the
    border of the subspace: what is promised is the energy, not the vectors. start: columns [K, rank] near the answer,
    from which four rounds at most are made, and no `eigh`: for a caller that comes again.
    The result is on the moment's device, and all work but the drawing of random numbers is done there.
    """
    width, block = moment.shape[0], min(rank + _OVERSAMPLING, moment.shape[0])
    quick = width >= 1024 and (_WIDE_SHARE if width >= _WIDE else _SHARE) * block < width
    if not quick and (start is None or 2 * block > width):
        return eigenbasis(moment)[1][:, width - rank :]
    moment = moment.double()
    fresh = block if start is None else block - rank
    columns = torch.randn(width, fresh, dtype=torch.float64, generator=generator).to(moment.device)
    if start is not None:
        columns = torch.cat([columns, start.to(columns)], dim=1)
    basis = torch.linalg.qr(moment @ columns)[0]
    total, energy = float(moment.diagonal().sum()), 0.0
    last = _ROUNDS if start is None else _WARM_ROUNDS
    for number in range(1, last + 1):
        image = moment @ basis
        values, vectors = torch.linalg.eigh(basis.T @ image)
        found = float(values[-rank:].sum())
        settled = abs(found - energy) <= _SETTLED * (total - found)
        if settled or (start is not None and number == last):
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
    H / E_x + WᵀW / E_w, found as a fixed point that starts at the principal subspace of H. The best of all rounds, on
    the moment's device.
    """
    moment = moment.double()
    weight = weight.to(moment.device, torch.float64)
    gram = weight.T @ weight
    subspace = top_subspace(moment, rank, generator)
    best, least = subspace, float("inf")
    for _ in range(rounds + 1):
        outside = [_energy_outside(matrix, subspace) for matrix in (moment, gram)]
        if outside[0] * outside[1] < least:
            best, least = subspace, outside[0] * outside[1]
        if min(outside) <= 0:
            break
        mixed = moment / outside[0] + gram / outside[1]
        subspace = top_subspace(mixed, rank, generator, start=subspace)
    return best


def _energy_outside(matrix: Tensor, subspace: Tensor) -> float:
    return float(matrix.diagonal().sum() - ((matrix @ subspace) * subspace).sum())
