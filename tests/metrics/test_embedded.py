"""Perceptual and Fréchet distances in the features of a small stand-in network."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from torch import Tensor, nn

from dirotq.metrics.embedded import (
    FRECHET_NAME,
    PERCEPTUAL_NAME,
    frechet_distance,
    frechet_estimate,
    network_input,
    perceptual_distance,
    pooled_features,
)
from dirotq.metrics.feature_network import FeatureNetwork


class StandIn(nn.Module):
    """Two random convolutions with the interface of the feature network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 5, 3, stride=4)
        self.second = nn.Conv2d(5, 7, 3, stride=4)
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        self.batches.append(len(images))
        first = self.first(images).relu()
        second = self.second(first).relu()
        return [first, second], second.mean(dim=(2, 3))


@pytest.fixture
def network() -> StandIn:
    return StandIn().eval()


def images(batch: int, side: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, side, side, 3)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


def gaussian(n: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix


def test_names_are_our_own() -> None:
    assert (PERCEPTUAL_NAME, FRECHET_NAME) == ("emoji_perceptual", "emoji_frechet")


def test_network_input_range_and_size() -> None:
    black_to_white = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 64, 64, 3)
    assert network_input(black_to_white).amax(dim=(1, 2, 3)).tolist() == [-1.0, 1.0]
    assert network_input(images(1, side=96)).shape == (1, 3, 64, 64)


def test_perceptual_distance_is_its_definition(network: StandIn) -> None:
    a, b = images(3), images(3, seed=1)
    expected = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for x, y in zip(network(network_input(a))[0], network(network_input(b))[0], strict=True):
            x, y = (nn.functional.normalize(maps.double(), dim=1) for maps in (x, y))
            expected += ((x - y) ** 2).mean(dim=(1, 2, 3))
    actual = perceptual_distance(network, a, b)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
    assert actual.dtype == torch.float64


def test_perceptual_distance_orders_noise(network: StandIn) -> None:
    a = images(4, side=8).repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    distances = [
        perceptual_distance(network, a, (a.float() * keep + 128 * (1 - keep)).to(torch.uint8))
        for keep in (1.0, 0.9, 0.4)
    ]
    assert torch.equal(distances[0], torch.zeros(4, dtype=torch.float64))
    assert (distances[0] < distances[1]).all()
    assert (distances[1] < distances[2]).all()


def test_batches_bound_memory_only(network: StandIn) -> None:
    a, b = images(5), images(5, seed=1)
    whole = perceptual_distance(network, a, b)
    features = pooled_features(network, a)
    network.batches.clear()
    torch.testing.assert_close(perceptual_distance(network, a, b, batch_size=2), whole)
    torch.testing.assert_close(pooled_features(network, a, batch_size=2), features)
    assert max(network.batches) == 2
    assert features.shape == (5, 7)
    assert features.dtype == torch.float64


def test_network_in_training_mode_is_refused(network: StandIn) -> None:
    network.train()
    with pytest.raises(ValueError, match="training mode"):
        perceptual_distance(network, images(1), images(1))
    with pytest.raises(ValueError, match="training mode"):
        pooled_features(network, images(1))


def test_the_real_network_fits() -> None:
    network = FeatureNetwork(widths=(8, 16)).eval()
    assert (perceptual_distance(network, images(2), images(2, seed=1)) > 0).all()
    assert pooled_features(network, images(2)).shape == (2, 16)


def test_no_images(network: StandIn) -> None:
    assert perceptual_distance(network, images(0), images(0)).shape == (0,)
    with pytest.raises(ValueError, match="no images"):
        pooled_features(network, images(0))


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
        (torch.ones(5, 4), torch.ones(5, 3), r"\[5, 4\] and \[5, 3\]"),
        (torch.ones(5), torch.ones(5), r"\[5\] and \[5\]"),
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
