"""Pixel fidelity of one image to another: PSNR and SSIM.

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
