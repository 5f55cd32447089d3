"""Constructed Hadamard matrices, in integers, and the factoring of widths into their orders."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dirotq.transforms.paley import construct, constructed, factor

SYLVESTER = [1, 2, 4, 8, 64, 256]
FIRST = [12, 20, 24, 44, 48, 60, 72, 80, 140, 200]  # q + 1, q = 3 mod 4
SECOND = [28, 36, 76, 124]  # 2 (q + 1), q = 1 mod 4

# Input widths of PixArt, FLUX, SANA and the embedded model.
WIDTHS = [72, 160, 320, 1152, 1280, 2240, 3072, 4608, 5120, 5600, 5632, 12288, 15360]


@pytest.mark.parametrize("order", [*SYLVESTER, *FIRST, *SECOND])
def test_rows_are_signs_and_orthogonal(order: int) -> None:
    matrix = construct(order)
    assert matrix.dtype == torch.int8
    assert bool((matrix.abs() == 1).all())
    gram = matrix.int() @ matrix.int().T
    assert torch.equal(gram, order * torch.eye(order, dtype=torch.int32))


def test_every_order_up_to_100_that_the_constructions_reach() -> None:
    """40, 56, 88, 96 are products; 52 = 2 (25 + 1) would need a prime power, 92 another construction."""
    reached = []
    for order in range(1, 101):
        try:
            construct(order)
        except ValueError:
            continue
        reached.append(order)
    primes = [q for q in range(2, 100) if all(q % step for step in range(2, q))]
    expected = {1, 2, 4, 8, 16, 32, 64}
    expected |= {q + 1 for q in primes if q % 4 == 3}
    expected |= {2 * (q + 1) for q in primes if q % 4 == 1}
    assert reached == sorted(order for order in expected if order <= 100)


@pytest.mark.parametrize("order", [-4, 0, 3, 6, 18, 40, 92, 96])
def test_other_orders_raise(order: int) -> None:
    with pytest.raises(ValueError, match=rf"hadamard: order={order}, allowed are 2\^a, q \+ 1"):
        construct(order)


@pytest.mark.parametrize("order", [8, 12, 28])
def test_the_kept_matrix_serves_every_context(order: int) -> None:
    construct.cache_clear()
    constructed.cache_clear()
    with torch.inference_mode(), torch.device("meta"):
        plain = construct(order)
        cast = constructed(order, torch.float32, torch.device("cpu"))
    assert plain.device.type == cast.device.type == "cpu"
    assert not plain.is_inference()
    assert not cast.is_inference()
    assert torch.equal(cast, plain.float())
    assert constructed(order, torch.float32, torch.device("cpu")) is cast
    assert constructed(order, torch.float64, torch.device("cpu")).dtype == torch.float64


@pytest.mark.parametrize("width", WIDTHS)
def test_widths_of_diffusion_transformers_are_covered_cheaply(width: int) -> None:
    orders = factor(width)
    assert math.prod(orders) == width
    # A Hadamard factor and one of 2^a, the best split by hand, costs at least 2 sqrt(K).
    assert sum(orders) <= 3.1 * math.sqrt(width) or len(orders) == 1
    assert len(orders) <= 3
    assert max(orders) <= 200


@settings(max_examples=150, deadline=None)
@given(width=st.integers(1, 20000))
def test_every_width_is_factored_as_far_as_it_can_be(width: int) -> None:
    orders = factor(width)
    assert list(orders) == sorted(orders)
    assert all(order > 1 for order in orders)
    left, remainder = divmod(width, math.prod(orders))
    assert remainder == 0
    powers = (width & -width).bit_length() - 1
    if powers < 2:
        # No Hadamard matrix has an order 2 mod 4 but 2, and none an odd one but 1.
        assert left == width >> powers
    else:
        assert left % 2 == 1


@pytest.mark.parametrize(
    ("width", "orders"), [(1, ()), (2, (2,)), (77, ()), (90, (2,)), (92, (4,)), (276, (276,))]
)
def test_what_no_construction_reaches_is_left_over(width: int, orders: tuple[int, ...]) -> None:
    assert factor(width) == orders


@pytest.mark.parametrize("width", [0, -12])
def test_widths_that_are_not_positive_raise(width: int) -> None:
    with pytest.raises(ValueError, match=f"width={width}, allowed are positive integers"):
        factor(width)
