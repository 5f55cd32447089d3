"""Fréchet distance of the Gaussians fitted to two sets of features.

``|mu_a - mu_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2`` (Dowson and Landau, 1982; Heusel et al., 2017), in float64,
with covariances over n - 1. With Inception features it is the FID.

Biased upward by an amount that shrinks as 1 / n and depends on D: two samples of one distribution are never at zero.
Compare only numbers taken at the same n; below some D images the covariances are singular and the number is good for
ordering at best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dirotq.metrics.statistics import Estimate, bootstrap_statistic

RESAMPLES = 200


@dataclass(frozen=True)
class Gaussian:
    """Mean ``[D]`` and a factor ``[r, D]``, r at most D, of the covariance ``factor^T factor``; float64."""

    mean: Tensor
    factor: Tensor

    @classmethod
    def fit(cls, features: Tensor, counts: Tensor | None = None) -> Gaussian:
        """The Gaussian of features ``[n, D]``, any float dtype; ``counts`` ``[n]``: how often each is there.

        Raises:
            ValueError: not ``[n, D]``, fewer than two rows, or a value is not finite.
        """
        if features.ndim != 2:
            raise ValueError(f"features must be [n, D], got {list(features.shape)}")
        weights = (features.new_ones(len(features)) if counts is None else counts).double()
        total = weights.sum()
        if total < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {len(features)}")
        if not torch.isfinite(features).all():
            raise ValueError("features hold a value that is not finite")
        rows = features.double()
        mean = weights @ rows / total
        factor = (rows - mean) * (weights / (total - 1)).sqrt()[:, None]
        if len(factor) > factor.shape[1]:
            factor = torch.linalg.qr(factor, mode="r").R
        return cls(mean, factor)

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor) -> Gaussian:
        """The Gaussian with this mean ``[D]`` and covariance ``[D, D]``."""
        values, vectors = torch.linalg.eigh(covariance.double())
        factor = vectors * values.clamp(min=0).sqrt()
        return cls(mean.double(), factor.T)


def distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance; raises ValueError when the widths differ.

    With A = F^T F and B = G^T G the last trace is the sum of the singular values of F G^T, which has a side for each
    sample instead of each feature where those are fewer, and takes no square root of rounding noise.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features differ in width: {len(a.mean)} and {len(b.mean)}")
    both = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    gap = (a.mean - b.mean).square().sum()
    return max(0.0, float(gap + a.factor.square().sum() + b.factor.square().sum() - 2 * both))


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """:func:`distance` of the Gaussians of features ``[n, D]`` and ``[m, D]``.

    Raises:
        ValueError: as :meth:`Gaussian.fit` and :func:`distance`.
    """
    return distance(Gaussian.fit(features_a), Gaussian.fit(features_b))


def frechet_estimate(
    features: Tensor,
    reference: Tensor | Gaussian,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    tick: Callable[[], None] | None = None,
) -> Estimate:
    """The distance with an interval from resampling prompts: of both sides together, if both have them.

    The interval is the spread over prompts, moved onto the measured value
    (:func:`dirotq.metrics.statistics.bootstrap_statistic`); it does not remove the bias of the distance itself.

    Args:
        features: ``[n, D]``.
        reference: ``[n, D]``, row i from the same prompt as that of ``features``; or a Gaussian, which stays as it is.
        seed: of the resampling.
        resamples: each costs the singular values of a matrix of at most n x D.
        level: coverage of the interval.
        tick: called after each of the ``resamples + 1`` distances.

    Raises:
        ValueError: paired features differ in shape, or as :func:`frechet_distance`.
    """
    if isinstance(reference, Tensor) and features.shape != reference.shape:
        shapes = f"{list(features.shape)} and {list(reference.shape)}"
        raise ValueError(f"paired features differ in shape: {shapes}")

    def resampled(rows: NDArray[np.int64]) -> float:
        # A third of the rows is missing and others are there twice: each once, with its count, is a smaller matrix.
        drawn, counts = torch.from_numpy(rows).unique(return_counts=True)
        ours, theirs = Gaussian.fit(features[drawn], counts), reference
        if isinstance(theirs, Tensor):
            theirs = Gaussian.fit(theirs[drawn], counts)
        found = distance(ours, theirs)
        if tick is not None:
            tick()
        return found

    return bootstrap_statistic(
        resampled,
        len(features),
        seed=seed,
        resamples=resamples,
        level=level,
        minimum=0.0,
    )
