"""Diagonal: what is divided out of the input is multiplied into the weight, with the scales as stored."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dirotq import transforms
from dirotq.transforms import Diagonal
from tests.support.draws import draw64


def spread(width: int, decades: float = 4.0) -> Tensor:
    return torch.logspace(-decades, decades, width, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 80), decades=st.floats(0, 5), seed=st.integers(0, 2**31))
def test_product_is_unchanged(width: int, decades: float, seed: int) -> None:
    transform = Diagonal(width, scales=spread(width, decades))
    x, weight = draw64(3, width, seed=seed), draw64(5, width, seed=seed + 1)
    low, high = transform.online(x)
    folded, folded_high = transform.fold(weight)
    assert high is None
    assert folded_high is None
    # x / s and w * s are each rounded once in float64: 2^-52 of every term, 80 terms of at most 5 * 5.
    torch.testing.assert_close(low @ folded.T, x @ weight.T, rtol=0, atol=1e-12)


def test_the_stored_scales_are_used_bitwise() -> None:
    scales = spread(24)
    transform = Diagonal(24, scales=scales)
    stored = scales.to(torch.bfloat16)
    assert not torch.equal(stored.double(), scales)  # rounding does change them
    assert torch.equal(transform.scales, stored)
    x, weight = draw64(4, 24), draw64(6, 24)
    assert torch.equal(transform.online(x)[0], x / stored.double())
    assert torch.equal(transform.online(x.float())[0], x.float() / stored.float())
    assert torch.equal(transform.fold(weight.float())[0], weight.float().double() * stored.double())


def test_low_moment_is_the_moment_of_the_low_part() -> None:
    transform, x = Diagonal(24, scales=spread(24, 1)), draw64(200, 24, seed=3)
    low = transform.online(x)[0]
    # Float64 sums of 200 terms in another order; entries up to 1e2.
    torch.testing.assert_close(
        transform.low_moment(x.T @ x / 200), low.T @ low / 200, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_online_keeps_the_dtype(dtype: torch.dtype) -> None:
    transform = Diagonal(24, scales=spread(24))
    assert transform.online(draw64(2, 24).to(dtype))[0].dtype == dtype
    assert transform.fold(draw64(2, 24).to(dtype))[0].dtype == torch.float64


def test_an_empty_copy_takes_the_tensors() -> None:
    transform = Diagonal(24, scales=spread(24))
    rebuilt = transforms.from_dict(json.loads(json.dumps(transform.to_dict())))
    assert isinstance(rebuilt, Diagonal)
    rebuilt.load_state_dict(transform.state_dict())
    assert torch.equal(rebuilt.online(draw64(4, 24))[0], transform.online(draw64(4, 24))[0])
    assert rebuilt.to_dict() == transform.to_dict()


def test_storage_is_a_bfloat16_a_channel() -> None:
    assert Diagonal(24, scales=spread(24)).storage_bits() == 16 * 24


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf"), 1e-45, 1e39], ids=str)
def test_scales_that_cannot_be_divided_by_raise(bad: float) -> None:
    scales = torch.ones(24, dtype=torch.float64)
    scales[5] = bad  # the last two are positive numbers that bfloat16 has not
    with pytest.raises(ValueError, match=r"scales\[5\]=\S+, allowed are positive numbers"):
        Diagonal(24, scales=scales)


def test_wrong_use_raises() -> None:
    with pytest.raises(ValueError, match="4 coordinates were asked for"):
        Diagonal(24, 4)
    with pytest.raises(ValueError, match=r"scales of shape \(3,\), expected \(24,\)"):
        Diagonal(24, scales=torch.ones(3))
