"""LPIPS: the package's own numbers, and what is said where its weights are not."""

import sys
import urllib.error
import warnings

import lpips
import numpy as np
import pytest
import torch
from torch import Tensor

from dirotq.metrics.perceptual import lpips_distance, lpips_network
from dirotq.metrics.unavailable import UnavailableError


@pytest.fixture(scope="module")
def network() -> lpips.LPIPS:
    """The package's learned weights on a random AlexNet: its arithmetic needs no trained backbone."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # how the package calls torchvision
        torch.manual_seed(0)
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


def images(batch: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 64, 64, 3), generator=generator, dtype=torch.uint8)


def test_values_are_the_package_s(network: lpips.LPIPS) -> None:
    a, b = images(3), images(3, seed=1)
    found = lpips_distance(network, a, b)
    for i in range(3):
        with torch.no_grad():
            expected = network(*(lpips.im2tensor(x[i].numpy().astype(np.float64)) for x in (a, b)))
        # A batch of three against batches of one: float32 sums in another order.
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-5)
    assert found.dtype == torch.float64
    assert float(found.min()) > 0


def test_identical_images_are_at_zero(network: lpips.LPIPS) -> None:
    assert lpips_distance(network, images(2), images(2)).tolist() == [0, 0]


def test_what_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    message = r"^lpips with torchvision's weights of AlexNet cannot be had: .*no such host.*$"
    with pytest.raises(UnavailableError, match=message):
        lpips_network("alex")
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UnavailableError, match="VGG-16 cannot be had: import of lpips halted"):
        lpips_network("vgg")
