"""A basis for each head: the split is exact, and blocks do not see each other."""

import pytest
import torch

from dirotq import transforms
from dirotq.transforms import Heads


def example(high: int = 6) -> Heads:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)
    return Heads(24, high, 3, torch.linalg.qr(basis)[0])


@pytest.mark.parametrize("high", [0, 3, 6])
def test_online_and_fold_are_inverse(high: int) -> None:
    transform, generator = example(high), torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, 24, generator=generator, dtype=torch.float64)
    weight = torch.randn(7, 24, generator=generator, dtype=torch.float64)
    low, kept = transform.online(x)
    folded = transform.fold(weight)
    product = low @ folded[0].T
    if high:
        assert kept is not None
        assert folded[1] is not None
        assert kept.shape == (2, 5, high)
        product = product + kept @ folded[1].T
    # Float64 solves of 8 x 8 matrices that are orthogonal but for bfloat16's rounding.
    torch.testing.assert_close(product, x @ weight.T, rtol=1e-12, atol=1e-12)


def test_heads_do_not_mix() -> None:
    x = torch.zeros(1, 24)
    x[0, 8:16] = 1.0
    low, high = example().online(x)
    assert high is not None
    assert torch.equal(low.reshape(3, 6)[[0, 2]], torch.zeros(2, 6))
    assert torch.equal(high.reshape(3, 2)[[0, 2]], torch.zeros(2, 2))
    assert bool((low.reshape(3, 6)[1] != 0).any())


def test_rebuilds_from_its_fields() -> None:
    first = example()
    second = transforms.from_dict(first.to_dict())
    second.load_state_dict(first.state_dict())
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(2))
    assert torch.equal(first.online(x)[0], second.online(x)[0])


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="heads=5 does not divide width 24"):
        Heads(24, 5, 5)
