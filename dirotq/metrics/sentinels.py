"""Find pictures that no working model makes, so that a run fails instead of reporting them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dirotq.metrics.fidelity import check_pair

_FLAT_LEVELS = 2
_NEAR_END = 8
_LEFT_INSIDE = 0.1


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
    found = {}
    for name, image in zip(_names(images, ids), images, strict=True):
        reason = _reason(image)
        if reason:
            found[name] = reason
    return found


def saturated(
    images: Tensor, reference: Tensor, ids: Sequence[str] | None = None
) -> dict[str, str]:
    """Images with nearly all values at 0 and 255 where the 16-bit image has them in between.

    An overflow in the model or its decoder makes them: what is left is at most the eight colours of full and no ink.
    Many good images are saturated for the most part (a drawing on white), so the share alone says nothing. An image is
    named if the values that it has strictly inside the range are less than a tenth of those that the 16-bit image has
    8 levels or more away from both ends, and the latter are at least a tenth of all. Bad quantization alone does not
    do that: noise of standard deviation s around the middle of the range leaves a tenth inside only from s = 1015 on,
    four times the range. Off-white that turns white is within the 8 levels; of a line drawing, below a tenth, no
    verdict is passed.

    Args:
        images: uint8 ``[B, H, W, 3]``.
        reference: uint8 ``[B, H, W, 3]``, of the same prompts by the 16-bit model.
        ids: prompt id of each image; by default its number.

    Returns:
        Reason by id, in the order of the images; empty if all are fine.

    Raises:
        TypeError, ValueError: as :func:`dirotq.metrics.fidelity.check_pair`; ValueError also for ids that do not fit.
    """
    check_pair(images, reference)
    inside = (images.clamp(1, 254) == images).flatten(1).double().mean(dim=1)
    middle = (reference.clamp(_NEAR_END, 255 - _NEAR_END) == reference).flatten(1).double()
    share = middle.mean(dim=1)
    broken = (share >= _LEFT_INSIDE) & (inside < _LEFT_INSIDE * share)
    ends = 1 - (reference.clamp(1, 254) == reference).flatten(1).double().mean(dim=1)
    return {
        name: f"saturated: {1 - float(inside[i]):.1%} of its values are 0 or 255, "
        f"{float(ends[i]):.1%} of the 16-bit image's"
        for i, name in enumerate(_names(images, ids))
        if broken[i]
    }


def _names(images: Tensor, ids: Sequence[str] | None) -> list[str]:
    names = [str(i) for i in range(len(images))] if ids is None else list(ids)
    if len(names) != len(images) or len(set(names)) != len(names):
        raise ValueError(f"{len(images)} images need as many distinct ids, got {len(names)}")
    return names


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
