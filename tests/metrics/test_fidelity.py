"""PSNR, SSIM and sharpness against their definitions."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import convolve, gaussian_filter
from torch import Tensor

from dirotq.metrics import fidelity
from dirotq.metrics.fidelity import PSNR_CAP_DB, capped, psnr, sharpness, ssim


def images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)


def noisy(clean: Tensor, sigma: float) -> Tensor:
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)) * sigma
    return (clean.float() + noise).round().clamp(0, 255).to(torch.uint8)


def ssim_with_scipy(a: Tensor, b: Tensor) -> float:
    """scikit-image's Gaussian SSIM of one image, written with scipy."""

    def blur(plane: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(gaussian_filter(plane, 1.5, truncate=3.5)[5:-5, 5:-5])

    means = []
    for channel in range(3):
        x, y = (image[..., channel].double().numpy() for image in (a, b))
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        top = (2 * mx * my + c1) * (2 * cov + c2)
        means.append((top / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())
    return float(np.mean(means))


def test_psnr_of_known_errors() -> None:
    a = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    b = a.clone()
    b[0] = 255
    b[1] = 1
    assert psnr(a, b).tolist() == pytest.approx([0.0, 20 * math.log10(255)])
    assert psnr(a, b).dtype == torch.float64


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**16), st.integers(1, 40))
def test_psnr_is_symmetric_and_exact(seed: int, sigma: int) -> None:
    a = images(2, 8, 6, seed)
    b = noisy(a, sigma)
    mse = ((a.double() - b.double()) ** 2).mean(dim=(1, 2, 3))
    assert torch.equal(psnr(a, b), psnr(b, a))
    torch.testing.assert_close(psnr(a, b), 10 * torch.log10(255**2 / mse), rtol=1e-12, atol=0)


def test_identical_images_are_infinite_until_capped() -> None:
    a = images(3, 8, 8)
    b = a.clone()
    b[1] ^= 1
    values = psnr(a, b)
    assert torch.isinf(values).tolist() == [True, False, True]
    assert capped(values)[0] == PSNR_CAP_DB
    assert capped(values)[1] == values[1]
    assert torch.isfinite(capped(values).mean())


@pytest.mark.parametrize(("side", "reaches"), [(226, False), (227, True)], ids=["226", "227"])
def test_cap_is_above_the_smallest_error_of_small_images(side: int, reaches: bool) -> None:
    a = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    b = a.clone()
    b[0, 0, 0, 0] = 1
    assert bool(psnr(a, b) > PSNR_CAP_DB) is reaches


@pytest.mark.parametrize("size", [(11, 11), (17, 40), (64, 64)], ids=str)
@pytest.mark.parametrize("sigma", [3.0, 60.0])
def test_ssim_matches_scipy(size: tuple[int, int], sigma: float) -> None:
    ramp = torch.linspace(0, 255, size[1]).expand(2, size[0], size[1]).unsqueeze(-1)
    a = (ramp * torch.tensor([1.0, 0.5, 0.1])).to(torch.uint8)
    b = noisy(a, sigma)
    expected = [ssim_with_scipy(x, y) for x, y in zip(a, b, strict=True)]
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-12)
    assert ssim(a, b).dtype == torch.float64


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**16))
def test_ssim_properties(seed: int) -> None:
    a, b = images(2, 12, 13, seed), images(2, 12, 13, seed + 1)
    torch.testing.assert_close(ssim(a, a), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(ssim(a, b), ssim(b, a))
    assert (ssim(a, b).abs() <= 1).all()


def test_ssim_does_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    a = images(5, 16, 16)
    b = noisy(a, 20)
    whole = ssim(a, b)
    monkeypatch.setattr(fidelity, "_CHUNK_PIXELS", 2 * 16 * 16)
    torch.testing.assert_close(ssim(a, b), whole, rtol=0, atol=1e-14)


def test_empty_batch() -> None:
    empty = images(0, 16, 16)
    assert psnr(empty, empty).shape == ssim(empty, empty).shape == (0,)


@pytest.mark.parametrize("measure", [psnr, ssim, sharpness], ids=["psnr", "ssim", "sharpness"])
def test_bad_images(measure: Callable[[Tensor, Tensor], Tensor]) -> None:
    good = images(1, 16, 16)
    with pytest.raises(TypeError, match=r"uint8, got torch\.float32"):
        measure(good, good.float())
    with pytest.raises(ValueError, match=r"\[B, H, W, 3\], got \[1, 3, 16, 16\]"):
        measure(good.permute(0, 3, 1, 2), good)
    with pytest.raises(ValueError, match=r"\[1, 16, 16, 3\] and \[2, 16, 16, 3\]"):
        measure(good, images(2, 16, 16))


def test_ssim_names_the_size_it_needs() -> None:
    with pytest.raises(ValueError, match="11 pixels a side, got 10 x 16"):
        ssim(images(1, 10, 16), images(1, 10, 16))


def laplacian_variance(image: Tensor) -> float:
    luma = image.numpy().astype(np.float64) @ [0.299, 0.587, 0.114]
    kernel = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=np.float64)
    return float(convolve(luma, kernel)[1:-1, 1:-1].var())


def test_sharpness_is_its_definition() -> None:
    reference = images(3, 20, 24)
    other = noisy(reference, 9)
    expected = [
        (laplacian_variance(x) + 0.74494333) / (laplacian_variance(y) + 0.74494333)
        for x, y in zip(other, reference, strict=True)
    ]
    # Float64 on both sides; the constant is written with eight digits.
    assert sharpness(other, reference).tolist() == pytest.approx(expected, rel=1e-7)


def test_the_constant_is_what_rounding_adds() -> None:
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(20, 220, 400, dtype=torch.float64)
    smooth = ramp[:, None, None] + 0.37 * ramp[None, :, None] / 10 + torch.tensor([0.1, 0.4, 0.7])
    jittered = smooth + torch.rand(smooth.shape, generator=generator) - 0.5
    # A plane has no Laplacian; rounding a uniform shift of half a level leaves two such errors.
    errors = laplacian_variance((jittered.round() - smooth).float())
    assert errors / 2 == pytest.approx(fidelity._ROUNDING, rel=0.05)  # 160,000 dependent samples


def test_sharpness_orders_blur_and_noise() -> None:
    reference = images(2, 32, 32)
    soft = torch.from_numpy(gaussian_filter(reference.numpy(), (0, 1, 1, 0)))
    assert sharpness(reference, reference).tolist() == [1, 1]
    assert float(sharpness(soft, reference).max()) < 0.5
    assert float(sharpness(noisy(soft, 20), soft).min()) > 2
    flat = torch.full((1, 8, 8, 3), 128, dtype=torch.uint8)
    assert sharpness(flat, flat).tolist() == [1]
    assert sharpness(images(0, 8, 8), images(0, 8, 8)).shape == (0,)
    with pytest.raises(ValueError, match=r"needs 3 pixels a side, got \[2, 8\]"):
        sharpness(images(1, 2, 8), images(1, 2, 8))
