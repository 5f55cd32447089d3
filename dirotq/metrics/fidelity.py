"""Pixel fidelity of one image to another: PSNR, SSIM and sharpness.

Images are uint8 tensors ``[B, H, W, 3]``. Results are float64 tensors ``[B]`` on the images'
device, one number an image, so that a caller can pair, bootstrap and average them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PSNR_CAP_DB = 100.0
"""What an identical pair counts as in a mean; see :func:`capped`."""

_PEAK = 255.0
_WINDOW = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_LUMA = (0.299, 0.587, 0.114)
# A rounding error has variance 1/12, luma sums three of them, the kernel five lumas: 20 is the sum of its squares.
_ROUNDING = 20 * sum(weight**2 for weight in _LUMA) / 12
# Pixels worked on at once: SSIM keeps about ten float64 maps of them, so 2**20 is some 250 MB.
_CHUNK_PIXELS = 2**20


def check_pair(a: Tensor, b: Tensor) -> None:
    """Check that ``a`` and ``b`` are image batches of one shape.

    Raises:
        TypeError: a tensor is not uint8.
        ValueError: a shape is not ``[B, H, W, 3]``, or the two differ.
    """
    for images in (a, b):
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must be [B, H, W, 3], got {list(images.shape)}")
    if a.shape != b.shape:
        raise ValueError(f"images to compare differ in shape: {list(a.shape)} and {list(b.shape)}")


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, higher is closer.

    ``10 log10(255^2 / MSE)`` over all pixels and channels of an image. Identical images have no
    noise and give ``inf``; pass the result through :func:`capped` before averaging.

    Args:
        a: uint8 ``[B, H, W, 3]``.
        b: uint8 ``[B, H, W, 3]``.

    Returns:
        float64 ``[B]``.

    Raises:
        TypeError, ValueError: as :func:`check_pair`.
    """
    check_pair(a, b)
    # Exact: a squared difference is an integer, and int64 holds the sum for any image.
    squared = (a.long() - b.long()).square().flatten(1)
    mse = squared.sum(dim=1).double() / squared.shape[1]
    return 10.0 * torch.log10(_PEAK**2 / mse)


def capped(values: Tensor) -> Tensor:
    """Limit PSNR values to :data:`PSNR_CAP_DB`, so that a mean over images is finite.

    An identical pair counts as 100 dB. No other pair of images up to 226 x 226 pixels reaches the
    cap: one channel of one pixel off by one gives less. In larger images a pair counts as
    identical where fewer than one value in 150,000 is off by one.

    Args:
        values: float64 ``[B]`` from :func:`psnr`.
    """
    return values.clamp(max=PSNR_CAP_DB)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity, 1 for identical images.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004,
    equation 13: 11 x 11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, population variances,
    only where the window fits, each of R, G and B alone and then averaged. The same as
    scikit-image's ``structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1)``.

    Args:
        a: uint8 ``[B, H, W, 3]``.
        b: uint8 ``[B, H, W, 3]``.

    Returns:
        float64 ``[B]``.

    Raises:
        TypeError, ValueError: as :func:`check_pair`; ValueError also below 11 pixels a side.
    """
    check_pair(a, b)
    batch, height, width = a.shape[:3]
    if min(height, width) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW} pixels a side, got {height} x {width}")
    chunk = max(1, _CHUNK_PIXELS // (height * width))
    parts = [_ssim(a[i : i + chunk], b[i : i + chunk]) for i in range(0, batch, chunk)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=a.device)


def sharpness(images: Tensor, reference: Tensor) -> Tensor:
    """Variance of the Laplacian over that of the reference: 1 as sharp, below it softer, above it sharper or noisier.

    ``(v(image) + c) / (v(reference) + c)``, where v is the population variance, over the positions at which the kernel
    fits, of the luma ``0.299 R + 0.587 G + 0.114 B`` (ITU-R BT.601, 0 to 255) convolved with
    ``[[0, 1, 0], [1, -4, 1], [0, 1, 0]]`` (Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", 2000).
    c = 0.745 is what the rounding of values to integers alone adds to v on average; it keeps the ratio finite where the
    reference is flat, and photographs, whose v is in the hundreds, do not feel it.

    Args:
        images: uint8 ``[B, H, W, 3]``.
        reference: uint8 ``[B, H, W, 3]``.

    Returns:
        float64 ``[B]``.

    Raises:
        TypeError, ValueError: as :func:`check_pair`; ValueError also below 3 pixels a side.
    """
    check_pair(images, reference)
    if min(images.shape[1:3]) < 3:
        raise ValueError(f"sharpness needs 3 pixels a side, got {list(images.shape[1:3])}")
    ours, theirs = (
        torch.stack([_laplacian_variance(image) for image in batch])
        if len(batch)
        else torch.empty(0, dtype=torch.float64, device=batch.device)
        for batch in (images, reference)
    )
    return (ours + _ROUNDING) / (theirs + _ROUNDING)


def _laplacian_variance(image: Tensor) -> Tensor:
    """Scalar, of uint8 ``[H, W, 3]``."""
    luma = image.double() @ image.new_tensor(_LUMA, dtype=torch.float64)
    inner = luma[1:-1, 1:-1]
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return (around - 4 * inner).var(correction=0)


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of a few images at once, float64 ``[B]``."""
    x, y = (images.permute(0, 3, 1, 2).double() for images in (a, b))
    mean_x, mean_y = _blur(x), _blur(y)
    var_x = _blur(x * x) - mean_x.square()
    var_y = _blur(y * y) - mean_y.square()
    cov = _blur(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _PEAK) ** 2, (_K2 * _PEAK) ** 2
    similarity = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2)
    )
    return similarity.mean(dim=(1, 2, 3))


def _blur(maps: Tensor) -> Tensor:
    """Gaussian-weighted local mean, ``[B, C, H, W]`` to ``[B, C, H - 10, W - 10]``."""
    batch, channels, height, width = maps.shape
    offsets = torch.arange(_WINDOW, dtype=maps.dtype, device=maps.device) - _WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    window = window / window.sum()
    planes = maps.reshape(batch * channels, 1, height, width)
    planes = F.conv2d(planes, window.view(1, 1, -1, 1))
    planes = F.conv2d(planes, window.view(1, 1, 1, -1))
    return planes.view(batch, channels, *planes.shape[-2:])
