"""Distances in the features of the network shipped with the embedded emoji model.

They serve where the weights of AlexNet and Inception cannot be had. Their names are
``emoji_perceptual`` and ``emoji_frechet``; they are comparable neither with LPIPS nor with FID.
"""

from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dirotq.metrics.fidelity import check_pair
from dirotq.metrics.statistics import Estimate, bootstrap_statistic

PERCEPTUAL_NAME = "emoji_perceptual"
FRECHET_NAME = "emoji_frechet"

_SIDE = 64
_EPS = 1e-10


def network_input(images: Tensor) -> Tensor:
    """Turn uint8 ``[B, H, W, 3]`` into float32 ``[B, 3, 64, 64]`` in [-1, 1].

    Images of another size are resized with an antialiased bilinear filter.
    """
    planes = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    if planes.shape[-2:] != (_SIDE, _SIDE):
        planes = F.interpolate(planes, (_SIDE, _SIDE), mode="bilinear", antialias=True)
    return planes


def perceptual_distance(
    network: nn.Module, a: Tensor, b: Tensor, *, batch_size: int = 64
) -> Tensor:
    """Distance of two images in the network's stages, 0 for identical ones, lower is closer.

    The form of Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", 2018, equation 1, on our network and without their learned weights: at every stage
    each position's channels are scaled to unit length, the squared differences are averaged over
    channels and positions, and the stages are summed.

    Args:
        network: maps float ``[B, 3, 64, 64]`` to (stage maps ``[B, C, h, w]``, pooled ``[B, D]``).
        a: uint8 ``[B, H, W, 3]``.
        b: uint8 ``[B, H, W, 3]``.
        batch_size: images of each side in one forward; bounds memory only.

    Returns:
        float64 ``[B]`` on the CPU.

    Raises:
        TypeError, ValueError: as :func:`dirotq.metrics.fidelity.check_pair`; ValueError also for
            a network in training mode.
    """
    check_pair(a, b)
    device = _ready(network)
    parts = []
    with torch.inference_mode():
        for i in range(0, len(a), batch_size):
            stages_a, _ = network(network_input(a[i : i + batch_size].to(device)))
            stages_b, _ = network(network_input(b[i : i + batch_size].to(device)))
            pairs = zip(stages_a, stages_b, strict=True)
            total = sum(
                ((_unit(x) - _unit(y)).square().mean(dim=(1, 2, 3)) for x, y in pairs),
                start=torch.zeros((), dtype=torch.float64, device=device),
            )
            parts.append(total.cpu())
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64)


def pooled_features(network: nn.Module, images: Tensor, *, batch_size: int = 64) -> Tensor:
    """Pooled features of uint8 ``[B, H, W, 3]`` images: float64 ``[B, D]`` on the CPU.

    Raises:
        TypeError, ValueError: not a uint8 image batch, an empty one, or a network in training mode.
    """
    check_pair(images, images)
    if len(images) == 0:
        raise ValueError("no images to take features of")
    device = _ready(network)
    parts = []
    with torch.inference_mode():
        for i in range(0, len(images), batch_size):
            _, pooled = network(network_input(images[i : i + batch_size].to(device)))
            parts.append(pooled.double().cpu())
    return torch.cat(parts)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features.

    ``|mu_a - mu_b|^2 + tr A + tr B - 2 tr (A^1/2 B A^1/2)^1/2`` (Dowson and Landau, 1982; Heusel
    et al., 2017), in float64, with covariances over n - 1.

    Biased upward by an amount that shrinks as 1 / n and depends on D: two samples of one
    distribution are never at zero. Compare only numbers taken at the same n; below some D images
    the covariances are singular and the number is good for ordering at best.

    Args:
        features_a: ``[n, D]``, any float dtype.
        features_b: ``[m, D]``, any float dtype.

    Raises:
        ValueError: shapes do not fit, fewer than two rows, or a value is not finite.
    """
    for features in (features_a, features_b):
        if features.ndim != 2 or features.shape[1] != features_a.shape[-1]:
            shapes = f"{list(features_a.shape)} and {list(features_b.shape)}"
            raise ValueError(f"features must be [n, D] and [m, D], got {shapes}")
        if len(features) < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {len(features)}")
        if not torch.isfinite(features).all():
            raise ValueError("features hold a value that is not finite")
    mean_a, cov_a = _moments(features_a)
    mean_b, cov_b = _moments(features_b)
    values, vectors = torch.linalg.eigh(cov_a)
    # Eigenvalues that are rounding noise go: the square root would blow 1e-16 up to 1e-8 each.
    keep = values > values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    root = vectors[:, keep] * values[keep].sqrt()
    # root^T B root has the non-zero eigenvalues of A^1/2 B A^1/2 and is no larger than A's rank.
    product = torch.linalg.eigvalsh(root.T @ cov_b @ root).clamp(min=0)
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace()
    distance = distance - 2 * product.sqrt().sum()
    return max(0.0, float(distance))


def frechet_estimate(
    features_a: Tensor, features_b: Tensor, *, seed: int, resamples: int = 200, level: float = 0.95
) -> Estimate:
    """:func:`frechet_distance` with an interval from resampling prompts, both sides together.

    Row i of both sets must come from the same prompt. The interval is the spread over prompts,
    moved onto the measured value (:func:`dirotq.metrics.statistics.bootstrap_statistic`); it does
    not remove the bias of the distance itself.

    Args:
        features_a: ``[n, D]``.
        features_b: ``[n, D]``.
        seed: of the resampling.
        resamples: each costs two symmetric eigen decompositions of D x D.
        level: coverage of the interval.

    Raises:
        ValueError: the sets differ in shape, or as :func:`frechet_distance`.
    """
    if features_a.shape != features_b.shape:
        shapes = f"{list(features_a.shape)} and {list(features_b.shape)}"
        raise ValueError(f"paired features differ in shape: {shapes}")
    return bootstrap_statistic(
        lambda rows: frechet_distance(features_a[rows], features_b[rows]),
        len(features_a),
        seed=seed,
        resamples=resamples,
        level=level,
        minimum=0.0,
    )


def _ready(network: nn.Module) -> torch.device:
    """The device of ``network``, which must be in evaluation mode."""
    if network.training:
        raise ValueError("the feature network is in training mode; call .eval() first")
    tensor = next(chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def _unit(maps: Tensor) -> Tensor:
    """Scale the channels at every position of ``[B, C, h, w]`` to unit length, in float64."""
    maps = maps.double()
    length = maps.square().sum(dim=1, keepdim=True).sqrt()
    return maps / (length + _EPS)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean ``[D]`` and covariance ``[D, D]`` in float64."""
    rows = features.double()
    mean = rows.mean(dim=0)
    centred = rows - mean
    return mean, centred.T @ centred / (len(rows) - 1)
