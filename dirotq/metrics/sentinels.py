"""Find pictures that no working model makes, so that a run fails instead of reporting them."""

from collections.abc import Sequence

import torch
from torch import Tensor

_FLAT_LEVELS = 2


def degenerate(images: Tensor, ids: Sequence[str] | None = None) -> dict[str, str]:
    """Images that are broken, with the reason.

    An image is "not finite" if its float source holds NaN or infinity (uint8 hides it: the cast
    makes black of NaN), "black" if every value is 0, and "single colour" if no channel spans more
    than 2 of 255 levels over the whole image.

    Args:
        images: ``[B, H, W, 3]``, uint8, or float in [0, 1] as the decoder returns it.
        ids: prompt id of each image; by default its number.

    Returns:
        Reason by id, in the order of the images; empty if all are fine.

    Raises:
        TypeError: neither uint8 nor float.
        ValueError: not ``[B, H, W, 3]``, an image without pixels, or ids that do not fit.
    """
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(f"images must be uint8 or float, got {images.dtype}")
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape[1:3]:
        raise ValueError(f"images must be [B, H, W, 3], got {list(images.shape)}")
    names = [str(i) for i in range(len(images))] if ids is None else list(ids)
    if len(names) != len(images) or len(set(names)) != len(names):
        raise ValueError(f"{len(images)} images need as many distinct ids, got {len(names)}")
    found = {}
    for name, image in zip(names, images, strict=True):
        reason = _reason(image)
        if reason:
            found[name] = reason
    return found


def _reason(image: Tensor) -> str:
    """Why ``[H, W, 3]`` is broken; empty if it is not."""
    scale = 1.0 if image.dtype == torch.uint8 else 255.0
    # float64: a float16 maximum minus minimum could overflow where the image itself does not.
    pixels = image.reshape(-1, 3).double() * scale
    if not torch.isfinite(pixels).all():
        return "not finite"
    low, high = pixels.aminmax(dim=0)
    if not low.any() and not high.any():
        return "black"
    return "single colour" if (high - low).max() <= _FLAT_LEVELS else ""
