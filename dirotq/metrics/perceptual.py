"""LPIPS by the ``lpips`` package."""

import warnings

import torch
from torch import Tensor, nn

from dirotq.metrics.fidelity import check_pair
from dirotq.metrics.unavailable import required

BACKBONES = {"alex": "AlexNet", "vgg": "VGG-16"}


def lpips_network(net: str) -> nn.Module:
    """The package's network, version 0.1, with a backbone of :data:`BACKBONES`, on the CPU.

    The learned weights are in the package; those of the backbone come from torchvision, which downloads them once.

    Raises:
        UnavailableError: the package is not installed, or the backbone's weights cannot be had.
    """
    with required(f"lpips with torchvision's weights of {BACKBONES[net]}"):
        import lpips

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # how the package calls torchvision
            network: nn.Module = lpips.LPIPS(net=net, verbose=False)
    return network


def lpips_distance(network: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS of two image batches, 0 for identical images, lower is closer.

    Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018, at the images' own
    size; the same as the package's ``forward`` on its ``im2tensor`` of each image.

    Args:
        network: from :func:`lpips_network`.
        a: uint8 ``[B, H, W, 3]``.
        b: uint8 ``[B, H, W, 3]``.

    Returns:
        float64 ``[B]`` on the CPU.

    Raises:
        TypeError, ValueError: as :func:`dirotq.metrics.fidelity.check_pair`.
    """
    check_pair(a, b)
    device = next(network.parameters()).device
    with torch.inference_mode():
        distances: Tensor = network(*(_planes(images).to(device) for images in (a, b)))
    return distances.flatten().double().cpu()


def _planes(images: Tensor) -> Tensor:
    """Float32 ``[B, 3, H, W]`` in [-1, 1], rounded once."""
    return (images.permute(0, 3, 1, 2).double() / 127.5 - 1).float()
