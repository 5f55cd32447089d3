"""Perceptual distance and pooled features of a small stand-in network."""

import pytest
import torch
from torch import Tensor, nn

from dirotq.metrics.embedded import (
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
