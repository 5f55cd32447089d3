"""Problems for SVDQuant's search and refinement."""

import torch
from torch import Tensor

from dirotq.calibrate import InputStatistics
from dirotq.formats import Integer
from dirotq.methods._lowrank import OVERSAMPLING, Objective, truncated_svd
from tests.support.plain import outlier_rows

WIDTH, RANK = 128, 8
FMT, ACT = Integer(group=64), Integer(group=64, symmetric=False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decaying(rows: int = 96, width: int = WIDTH, seed: int = 0) -> Tensor:
    """A weight whose singular values fall off, as trained ones do."""
    falling = torch.linspace(2, 0.2, width) / width**0.5
    return normal(rows, width, seed=seed) @ (
        falling[:, None] * torch.linalg.qr(normal(width, width, seed=seed + 1))[0]
    )


def falling(rows: int, width: int, power: float, seed: int = 0) -> Tensor:
    """A matrix whose k-th singular value is k^-power; trained weights have powers around 0.5."""
    count = min(rows, width)
    left, right = (torch.linalg.qr(normal(n, count, seed=seed + n))[0] for n in (rows, width))
    return left * torch.arange(1, count + 1) ** -power @ right.T


def statistics(name: str = "layer", seed: int = 0, width: int = WIDTH) -> InputStatistics:
    x = outlier_rows(256, width, seed)
    moment = x.double().T @ x.double() / 256
    return InputStatistics((name,), width, 256, moment, x.abs().amax(0), x)


def objective(weight: Tensor) -> Objective:
    sample = statistics(width=weight.shape[1]).sample
    return Objective(sample, weight, sample @ weight.T, FMT, ACT)


def exact(matrix: Tensor) -> tuple[Tensor, Tensor]:
    return truncated_svd(matrix, RANK)


def start(matrix: Tensor, rank: int = RANK, seed: int = 9) -> Tensor:
    shorter = min(matrix.shape)
    return normal(shorter, min(rank + OVERSAMPLING, shorter), seed=seed)
