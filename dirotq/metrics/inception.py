"""Inception features as clean-fid takes them; :mod:`dirotq.metrics.frechet` makes an FID of them."""

from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from dirotq.metrics.frechet import Gaussian
from dirotq.metrics.unavailable import required

Extractor = Callable[[Tensor], Tensor]
"""Features ``[B, D]`` of float32 ``[B, 3, 299, 299]`` images in [0, 255]."""

_MODE = "clean"
_MOMENTS = ("mu", "sigma")


def inception(device: torch.device) -> Extractor:
    """clean-fid's Inception-v3, which it downloads once.

    Raises:
        UnavailableError: the package is not installed, or the weights cannot be had.
    """
    with required("clean-fid with Inception's weights"):
        from cleanfid.features import build_feature_extractor

        extract: Extractor = build_feature_extractor(_MODE, device, use_dataparallel=False)
    return extract


def inception_features(extract: Extractor, images: Tensor, device: torch.device) -> Tensor:
    """Features of uint8 ``[B, H, W, 3]`` images, float64 ``[B, D]`` on the CPU.

    Images are resized to 299 x 299 by clean-fid's filter (Parmar et al., "On Aliased Resizing and Surprising
    Subtleties in GAN Evaluation", 2022); the same as its ``get_folder_features`` on the images as PNG files.
    """
    from cleanfid.resize import build_resizer

    resize = build_resizer(_MODE)
    resized = np.stack([resize(image.numpy()) for image in images])
    with torch.inference_mode():
        features = extract(torch.from_numpy(resized).permute(0, 3, 1, 2).to(device))
    return features.double().cpu()


def reference_statistics(
    extract: Extractor, place: Path, batch: int, device: torch.device
) -> Gaussian:
    """The Gaussian of a folder of images, or the one in statistics that clean-fid's ``make_custom_stats`` wrote.

    Args:
        extract: from :func:`inception`.
        place: a folder, searched with its subfolders, or an ``.npz`` file with ``mu`` ``[D]`` and ``sigma`` ``[D, D]``.
        batch: images at once.
        device: where the features are computed.

    Raises:
        ValueError: a folder with fewer than two images, or a file without the statistics.
    """
    if place.is_dir():
        from cleanfid.fid import get_folder_features

        try:
            features = get_folder_features(
                str(place), extract, num_workers=0, batch_size=batch, device=device, verbose=False
            )
            return Gaussian.fit(torch.from_numpy(features))
        except ValueError as error:
            raise ValueError(
                f"eval.fid_reference={place}: too few images there ({error})"
            ) from error
    try:
        with np.load(place) as stored:
            return Gaussian.of_moments(*(torch.from_numpy(stored[name]) for name in _MOMENTS))
    except (BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"eval.fid_reference={place}: no statistics there ({error})") from error
