"""Transforms: what online takes apart, fold puts together."""

import json

import pytest
import torch
from torch import Tensor

from dirotq import transforms
from dirotq.transforms import Dense, Identity, Transform, eigenbasis, random_orthogonal
from tests.support.draws import draw64

WIDTH = 24


def skewed(seed: int = 0) -> Tensor:
    """An invertible basis that is far from orthogonal."""
    return torch.eye(WIDTH, dtype=torch.float64) * 2 + draw64(WIDTH, WIDTH, seed=seed) / WIDTH**0.5


def rotation(seed: int = 0) -> Tensor:
    return random_orthogonal(WIDTH, torch.Generator().manual_seed(seed))


EVERY = [
    pytest.param(lambda: Identity(WIDTH), id="identity"),
    pytest.param(lambda: Dense(WIDTH, 0, rotation()), id="dense-orthogonal-r0"),
    pytest.param(lambda: Dense(WIDTH, 5, rotation()), id="dense-orthogonal-r5"),
    pytest.param(lambda: Dense(WIDTH, 0, skewed()), id="dense-skewed-r0"),
    pytest.param(lambda: Dense(WIDTH, 23, skewed()), id="dense-skewed-r23"),
]


@pytest.mark.parametrize("make", EVERY)
def test_product_is_unchanged(make: type[Transform]) -> None:
    transform, x, weight = make(), draw64(3, 7, WIDTH, seed=1), draw64(11, WIDTH, seed=2)
    low, high = transform.online(x)
    low_weight, high_weight = transform.fold(weight)
    product = low @ low_weight.T
    if high is not None and high_weight is not None:
        product = product + high @ high_weight.T
    assert (high is None) == (high_weight is None) == (transform.high == 0)
    assert low.shape[-1] == low_weight.shape[1] == transform.low_width == WIDTH - transform.high
    # float64; the stored basis has a condition number below 100, so errors stay below 1e-16 * 100 * 24 terms.
    torch.testing.assert_close(product, x @ weight.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", EVERY)
def test_low_moment_is_the_moment_of_the_low_part(make: type[Transform]) -> None:
    transform, x = make(), draw64(200, WIDTH, seed=3)
    moment = x.T @ x / 200
    matrix = transform.online(torch.eye(WIDTH, dtype=torch.float64))[0]
    found = transform.low_moment(moment)
    assert found.dtype == torch.float64
    # float64 sums of 24 and of 200 terms, in another order.
    torch.testing.assert_close(found, matrix.T @ moment @ matrix, rtol=1e-10, atol=1e-10)
    low = transform.online(x)[0]
    torch.testing.assert_close(found, low.T @ low / 200, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", EVERY)
def test_online_keeps_the_dtype(make: type[Transform]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        low, high = make().online(draw64(2, WIDTH).to(dtype))
        assert low.dtype == dtype
        assert high is None or high.dtype == dtype
    for part in make().fold(draw64(2, WIDTH).float()):
        assert part is None or part.dtype == torch.float64


@pytest.mark.parametrize("make", EVERY)
def test_an_empty_copy_takes_the_tensors(make: type[Transform]) -> None:
    transform = make()
    rebuilt = transforms.from_dict(json.loads(json.dumps(transform.to_dict())))
    rebuilt.load_state_dict(transform.state_dict())
    x = draw64(4, WIDTH)
    for part, expected in zip(rebuilt.online(x), transform.online(x), strict=True):
        assert (part is None) == (expected is None)
        assert part is None or expected is None or torch.equal(part, expected)
    assert rebuilt.to_dict() == transform.to_dict()


def test_storage_is_the_bfloat16_basis() -> None:
    assert Identity(WIDTH).storage_bits() == 0
    assert Dense(WIDTH, 5, rotation()).storage_bits() == WIDTH * WIDTH * 16


def test_high_part_is_the_last_columns() -> None:
    basis = torch.eye(WIDTH)
    x = draw64(2, WIDTH)
    low, high = Dense(WIDTH, 3, basis).online(x)
    assert torch.equal(low, x[:, :-3])
    assert high is not None
    assert torch.equal(high, x[:, -3:])


@pytest.mark.parametrize("high", [-1, WIDTH, WIDTH + 1], ids=str)
def test_rank_out_of_range_raises(high: int) -> None:
    with pytest.raises(ValueError, match=f"{high} protected coordinates, allowed are 0 to 23"):
        Dense(WIDTH, high)


def test_wrong_use_raises() -> None:
    with pytest.raises(ValueError, match="4 coordinates were asked for"):
        Identity(WIDTH, 4)
    with pytest.raises(ValueError, match=r"basis of shape \(3, 3\), expected \(24, 24\)"):
        Dense(WIDTH, 4, torch.eye(3))
    with pytest.raises(ValueError, match=r"kind='warp', allowed are .*dense, .*identity"):
        transforms.from_dict({"kind": "warp", "width": 4, "high": 0})


@pytest.mark.parametrize("width", [1, 2, 65], ids=lambda width: f"K{width}")
def test_random_orthogonal(width: int) -> None:
    matrix = random_orthogonal(width, torch.Generator().manual_seed(3))
    # Householder QR in float64: orthogonal to a few units of 2^-53 times the width.
    assert float((matrix.T @ matrix - torch.eye(width).double()).abs().max()) < 1e-12
    assert torch.equal(matrix, random_orthogonal(width, torch.Generator().manual_seed(3)))


def test_random_orthogonal_is_spread_over_all_rotations() -> None:
    """Haar: entries have mean 0 and variance 1 / K. Without the sign step, QR leaves the diagonal's mean far from 0."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([random_orthogonal(4, generator) for _ in range(2000)])
    # The mean of 2000 entries of variance 1/4 has a standard deviation of 0.011; five of them.
    assert float(drawn.mean(0).abs().max()) < 0.056
    assert float((drawn.square().mean(0) - 0.25).abs().max()) < 0.03


def test_eigenbasis() -> None:
    x = draw64(500, WIDTH) * torch.linspace(0.1, 4, WIDTH).double()
    moment = x.T @ x / 500
    values, vectors = eigenbasis(moment)
    assert bool((values[1:] >= values[:-1]).all())
    # float64 eigensolver: residuals of a few 1e-15 of the largest eigenvalue, 16.
    torch.testing.assert_close(vectors @ torch.diag(values) @ vectors.T, moment, rtol=0, atol=1e-12)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())
    turned = eigenbasis(moment.flip(0, 1))[1].flip(
        0
    )  # the solver meets other numbers, signs included
    torch.testing.assert_close(turned, vectors, rtol=0, atol=1e-10)
