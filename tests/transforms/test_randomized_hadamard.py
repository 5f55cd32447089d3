"""Hadamard: orthogonal at every width, equal to its Kronecker product, and exactly undone by the folded weight."""

import json
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dirotq import transforms
from dirotq.transforms import Hadamard
from dirotq.transforms.paley import construct
from tests.support.draws import draw64

WIDTHS = [72, 160, 320, 1152, 1280, 2240, 3072, 4608, 5120, 5600, 5632, 12288, 15360]
LEFT_OVER = [3, 6, 77, 90, 92]  # a random orthogonal factor of order 3, 3, 77, 45, 23


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("width", WIDTHS)
def test_lengths_and_angles_are_kept(width: int) -> None:
    transform, x = Hadamard(width, generator=generator()), draw64(16, width)
    low, high = transform.online(x)
    assert high is None
    # <x H, y H> = <x, y> for all x, y is H Hᵀ = I. Relative to |x| |y|, some K; float64 gives 1e-15.
    torch.testing.assert_close(low @ low.T / width, x @ x.T / width, rtol=0, atol=1e-10)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_entry_is_one_over_the_root_of_the_width(width: int) -> None:
    transform = Hadamard(width, generator=generator())
    units = torch.zeros(3, width, dtype=torch.float64)
    units[torch.arange(3), torch.tensor([0, width // 3, width - 1])] = 1
    found = transform.online(units)[0]
    expected = torch.full_like(found, width**-0.5)
    # Two or three products by ±1 of one number and zeros; the scale is a power in float64.
    torch.testing.assert_close(found.abs(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_transpose_undoes_it(width: int) -> None:
    """x S H Hᵀ S = x, with Hᵀ applied by another route: an einsum over the factors of the index."""
    transform, x = Hadamard(width, generator=generator()), draw64(2, width)
    back = transform.online(x)[0].unflatten(-1, transform.orders)
    for axis, order in enumerate(transform.orders):
        turned = torch.tensordot(back, construct(order).double(), dims=([axis + 1], [1]))
        back = turned.movedim(-1, axis + 1)
    back = back.flatten(1) * width**-0.5 * transform.signs.double()
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("width", [72, 160, 320, 1152, *LEFT_OVER])
def test_it_is_the_kronecker_product(width: int) -> None:
    transform = Hadamard(width, generator=generator())
    factors = [] if transform.mixing is None else [transform.mixing.double()]
    factors += [construct(order).double() * order**-0.5 for order in transform.orders]
    matrix = transform.signs.double()[:, None] * reduce(torch.kron, factors)
    found = transform.online(torch.eye(width, dtype=torch.float64))[0]
    # The same products of at most three numbers, in another order.
    torch.testing.assert_close(found, matrix, rtol=1e-13, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 400), seed=st.integers(0, 2**31))
def test_product_is_unchanged_at_any_width(width: int, seed: int) -> None:
    transform = Hadamard(width, generator=generator(seed))
    x, weight = draw64(3, 2, width, seed=seed), draw64(5, width, seed=seed + 1)
    low, folded = transform.online(x)[0], transform.fold(weight)[0]
    # Float64 sums of at most 400 terms of size 1; the left-over factor's stored inverse has a condition number of 1.02.
    torch.testing.assert_close(low @ folded.T, x @ weight.T, rtol=0, atol=1e-11)


@pytest.mark.parametrize("width", WIDTHS)
def test_product_is_unchanged_at_the_widths_of_models(width: int) -> None:
    transform = Hadamard(width, generator=generator())
    x, weight = draw64(4, width), draw64(5, width)
    product = transform.online(x)[0] @ transform.fold(weight)[0].T
    torch.testing.assert_close(product / width, x @ weight.T / width, rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", LEFT_OVER)
def test_the_left_over_factor_is_stored_and_nearly_orthogonal(width: int) -> None:
    transform = Hadamard(width, generator=generator())
    mixing = transform.mixing
    assert mixing is not None
    assert mixing.dtype == torch.bfloat16
    assert transform.storage_bits() == 8 * width + 16 * mixing.numel()
    gram = mixing.double().T @ mixing.double()
    error = (gram - torch.eye(len(mixing)).double()).abs().max()
    # bfloat16 moves an entry by 2^-9 of itself at most, so a product of unit columns by 2^-8; zero would be unrounded.
    assert 0 < float(error) < 2**-8


@pytest.mark.parametrize("width", WIDTHS)
def test_storage_is_the_signs(width: int) -> None:
    assert Hadamard(width).storage_bits() == 8 * width


@pytest.mark.parametrize("width", [320, 90])
def test_low_moment_is_the_moment_of_the_low_part(width: int) -> None:
    transform, x = Hadamard(width, generator=generator()), draw64(200, width)
    low = transform.online(x)[0]
    # Float64 sums of 200 terms in another order.
    torch.testing.assert_close(
        transform.low_moment(x.T @ x / 200), low.T @ low / 200, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [(torch.float32, 2**-24), (torch.bfloat16, 2**-9), (torch.float16, 2**-11)],
    ids=str,
)
def test_online_keeps_the_dtype(dtype: torch.dtype, unit: float) -> None:
    transform, x = Hadamard(1152, generator=generator()), (1000 * draw64(8, 1152)).to(dtype)
    low = transform.online(x)[0]
    assert low.dtype == dtype
    exact = transform.online(x.double())[0]
    # A rounding of the scaled input and one after each of two factors, each of `unit` at most; sums in float32.
    assert float((low.double() - exact).norm() / exact.norm()) < 3 * unit


@pytest.mark.parametrize("width", [320, 90, 77])
def test_an_empty_copy_takes_the_tensors(width: int) -> None:
    transform = Hadamard(width, generator=generator())
    rebuilt = transforms.from_dict(json.loads(json.dumps(transform.to_dict())))
    rebuilt.load_state_dict(transform.state_dict())
    assert torch.equal(rebuilt.online(draw64(4, width))[0], transform.online(draw64(4, width))[0])
    assert rebuilt.to_dict() == transform.to_dict()


def test_a_checkpoint_names_its_own_orders() -> None:
    """A later choice of `factor` must not change what an older checkpoint means."""
    transform = transforms.from_dict({"kind": "hadamard", "width": 320, "orders": [20, 4, 4]})
    assert isinstance(transform, Hadamard)
    matrix = torch.kron(construct(20), torch.kron(construct(4), construct(4))).double() * 320**-0.5
    found = transform.online(torch.eye(320, dtype=torch.float64))[0]
    torch.testing.assert_close(found, matrix, rtol=1e-14, atol=0)
    assert transform.orders != Hadamard(320).orders
    assert transform.to_dict()["orders"] == [20, 4, 4]
    assert Hadamard(320).to_dict()["orders"] == list(Hadamard(320).orders)


def test_signs_are_balanced_and_the_generators_alone() -> None:
    signs = Hadamard(12288, generator=generator(1)).signs
    assert set(signs.tolist()) == {-1, 1}
    # The mean of 12288 signs has a standard deviation of 0.009; five of them.
    assert abs(float(signs.double().mean())) < 0.045
    torch.manual_seed(7)
    assert torch.equal(Hadamard(12288, generator=generator(1)).signs, signs)
    assert not torch.equal(Hadamard(12288, generator=generator(2)).signs, signs)
    same, other = (Hadamard(77, generator=generator(seed)).mixing for seed in (1, 2))
    assert torch.equal(Hadamard(77, generator=generator(1)).mixing, same)
    assert not torch.equal(other, same)


@pytest.mark.parametrize("orders", [[7], [0], [-2], [16, 16], [3, 20], [40]], ids=str)
def test_orders_that_do_not_fit_raise(orders: list[int]) -> None:
    with pytest.raises(ValueError, match=r"width 320: orders=\[.*divides|order=40, allowed"):
        Hadamard(320, orders=orders)


def test_protected_coordinates_are_refused() -> None:
    with pytest.raises(ValueError, match="4 coordinates were asked for"):
        Hadamard(64, 4)
