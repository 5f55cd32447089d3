"""Distances in the features of the network shipped with the embedded emoji model.

They serve where the weights of AlexNet and Inception cannot be had. Their names are
``emoji_perceptual`` and ``emoji_frechet``; they are comparable neither with LPIPS nor with FID.
"""

from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dirotq.metrics.fidelity import check_pair

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
