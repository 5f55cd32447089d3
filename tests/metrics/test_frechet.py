"""Fréchet distance: against its formula and clean-fid, closed forms, and its interval."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor

from dirotq.metrics.frechet import Gaussian, distance, frechet_distance, frechet_estimate


def gaussian(n: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix


@pytest.mark.parametrize(
    ("n", "m", "dim"), [(50, 50, 6), (200, 31, 24), (40, 60, 1)], ids=["equal", "unequal", "scalar"]
)
def test_frechet_matches_sqrtm(n: int, m: int, dim: int) -> None:
    a, b = gaussian(n, dim, 0), gaussian(m, dim, 1) + 0.5
    cov_a, cov_b = (np.atleast_2d(np.cov(x.numpy(), rowvar=False)) for x in (a, b))
    gap = ((a.mean(dim=0) - b.mean(dim=0)) ** 2).sum().item()
    root = np.trace(np.real(sqrtm(cov_a @ cov_b)))
    expected = gap + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**16), st.floats(-5, 5), st.floats(0.1, 5))
def test_frechet_closed_forms(seed: int, shift: float, scale: float) -> None:
    a = gaussian(40, 5, seed)
    spread = torch.cov(a.T).trace().item()
    tolerance = 1e-6 * spread
    assert frechet_distance(a, a + shift) == pytest.approx(5 * shift**2, abs=tolerance)
    centred = a - a.mean(dim=0)
    expected = (scale - 1) ** 2 * spread
    assert frechet_distance(centred, scale * centred) == pytest.approx(expected, abs=tolerance)


def test_frechet_of_independent_channels() -> None:
    # Covariances 4/3 times the diagonals (1, 4) and (9, 16): the distance is (3-1)^2 + (4-2)^2.
    corners = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
    a, b = corners * torch.tensor([1.0, 2.0]), corners * torch.tensor([3.0, 4.0])
    assert frechet_distance(a, b) == pytest.approx(8 * 4 / 3, rel=1e-12)


def test_frechet_with_fewer_samples_than_features() -> None:
    a = gaussian(10, 64, 0)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6 * torch.cov(a.T).trace().item())
    assert frechet_distance(a, a + 1) == pytest.approx(64, rel=1e-6)
    constant = torch.ones(3, 4)
    assert frechet_distance(constant, constant + 2) == pytest.approx(16)
    assert frechet_distance(constant, a[:3, :4]) == pytest.approx(
        frechet_distance(a[:3, :4], constant), rel=1e-9
    )


def test_frechet_bias_shrinks_with_n() -> None:
    small, large = (frechet_distance(gaussian(n, 4, 0), gaussian(n, 4, 0)[:-1]) for n in (8, 512))
    assert large < small


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.ones(1, 4), torch.ones(5, 4), "at least 2 samples, got 1"),
        (torch.ones(5, 4), torch.ones(5, 3), "differ in width: 4 and 3"),
        (torch.ones(5), torch.ones(5), r"must be \[n, D\], got \[5\]"),
        (torch.ones(5, 4), torch.full((5, 4), torch.nan), "not finite"),
    ],
    ids=["one", "width", "vector", "nan"],
)
def test_frechet_refuses(a: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(a, b)


def test_frechet_estimate_holds_its_value() -> None:
    a = gaussian(60, 5, 0)
    b = a + 0.3 * gaussian(60, 5, 1)
    estimate = frechet_estimate(a, b, seed=0)
    assert estimate.value == frechet_distance(a, b)
    assert estimate.n == 60
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    assert 0 <= estimate.ci_low < estimate.value < estimate.ci_high
    assert frechet_estimate(a, b, seed=0) == estimate
    with pytest.raises(ValueError, match="differ in shape"):
        frechet_estimate(a, b[1:], seed=0)


def test_interval_beside_a_reference_that_stays() -> None:
    a, b = gaussian(60, 5, 0), gaussian(300, 5, 0) + 0.5
    estimate = frechet_estimate(a, Gaussian.fit(b), seed=0)
    assert estimate.value == frechet_distance(a, b)
    assert estimate.n == 60
    paired = frechet_estimate(a, b[:60], seed=0)
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    assert paired.ci_low is not None
    assert estimate.ci_low < estimate.value < estimate.ci_high
    assert estimate.ci_low != paired.ci_low


@pytest.mark.parametrize("n", [4, 9, 40], ids=["fewer", "one more", "more"])
def test_a_gaussian_keeps_its_moments(n: int) -> None:
    features = gaussian(n, 8, 0) + 3
    fitted = Gaussian.fit(features)
    assert len(fitted.factor) == min(n, 8)
    for one in (fitted, Gaussian.of_moments(features.mean(0), torch.cov(features.T))):
        torch.testing.assert_close(one.mean, features.mean(0))
        torch.testing.assert_close(one.factor.T @ one.factor, torch.cov(features.T))


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_clean_fid_says_the_same() -> None:
    from cleanfid.fid import fid_from_feats
    from cleanfid.fid import frechet_distance as theirs

    a, b = gaussian(200, 16, 0).float(), (gaussian(150, 16, 1) + 0.5).float()
    # float32 means on their side.
    assert frechet_distance(a, b) == pytest.approx(fid_from_feats(a.numpy(), b.numpy()), rel=1e-5)
    moments = [(x.double().mean(0), torch.cov(x.double().T)) for x in (a, b)]
    expected = theirs(*(part.numpy() for pair in moments for part in pair))
    found = distance(*(Gaussian.of_moments(*pair) for pair in moments))
    assert found == pytest.approx(expected, rel=1e-9)


def test_counts_are_repeated_rows() -> None:
    features, counts = gaussian(5, 8, 0), torch.tensor([1, 3, 1, 2, 1])
    repeated = Gaussian.fit(features.repeat_interleave(counts, dim=0))
    counted = Gaussian.fit(features, counts)
    torch.testing.assert_close(counted.mean, repeated.mean)
    moments = (one.factor.T @ one.factor for one in (counted, repeated))
    torch.testing.assert_close(*moments)
    same = Gaussian.fit(features[:1], torch.tensor([4]))  # a bootstrap of few prompts draws it
    assert float(same.factor.abs().max()) == 0


def test_every_distance_is_a_tick() -> None:
    ticks: list[int] = []
    a = gaussian(4, 2, 0)
    frechet_estimate(a, a + 1, seed=0, resamples=7, tick=lambda: ticks.append(1))
    assert len(ticks) == 8
