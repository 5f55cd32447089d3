"""The low-rank split is exact for whatever is stored, and stores what it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dirotq import transforms
from dirotq.transforms import LowRank

WIDTH, RANK, ROWS = 40, 6, 9


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def example(width: int = WIDTH, high: int = RANK, rows: int = ROWS) -> LowRank:
    scales = normal(width).exp()
    return LowRank(width, high, scales, normal(width, high, seed=1), normal(rows, high, seed=2))


@settings(max_examples=25, deadline=None)
@given(width=st.integers(2, 90), data=st.data())
def test_residual_and_branch_add_up_to_the_product(width: int, data: st.DataObject) -> None:
    high = data.draw(st.integers(1, width - 1))
    transform = example(width, high, rows=5)
    x, weight = normal(7, width, seed=3), normal(5, width, seed=4)
    (low, kept), (residual, up) = transform.online(x), transform.fold(weight)
    assert low.shape[-1] == residual.shape[-1] == transform.low_width == width
    assert kept is not None
    assert kept.shape[-1] == up.shape[-1] == high
    total, expected = low @ residual.T + kept @ up.T, x @ weight.T
    # Float64: two sums that cancel, each some sqrt(width * high) times the product.
    torch.testing.assert_close(total, expected, rtol=1e-11, atol=1e-11 * width)


def test_the_folded_factor_is_what_a_layer_stores() -> None:
    _, up = example().fold(normal(ROWS, WIDTH, seed=4))
    assert up.dtype == torch.float64
    assert torch.equal(up, up.bfloat16().double())
    assert torch.equal(up, normal(ROWS, RANK, seed=2).bfloat16().double())


def test_the_moment_of_the_low_part_is_that_of_the_smoothed_input() -> None:
    x, transform = normal(100, WIDTH), example()
    low, _ = transform.online(x)
    # Float64 sums of 100 terms in another order.
    torch.testing.assert_close(
        transform.low_moment(x.T @ x), low.T @ low, rtol=1e-10, atol=1e-10 * float(low.T.norm())
    )


def test_it_stores_scales_and_down_and_comes_back_empty() -> None:
    transform = example()
    assert set(transform.state_dict()) == {"scales", "down"}
    assert {t.dtype for t in transform.state_dict().values()} == {torch.bfloat16}
    assert transform.storage_bits() == 16 * WIDTH * (1 + RANK)
    loaded = transforms.from_dict(transform.to_dict())
    loaded.load_state_dict(transform.state_dict())
    x = normal(3, WIDTH)
    for mine, theirs in zip(transform.online(x), loaded.online(x), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(RuntimeError, match="no up factor: it was loaded"):
        loaded.fold(normal(ROWS, WIDTH))


def test_the_online_parts_have_the_dtype_of_the_input() -> None:
    low, high = example().online(normal(2, 3, WIDTH).float())
    assert low.dtype == high.dtype == torch.float32
    assert (low.shape, high.shape) == ((2, 3, WIDTH), (2, 3, RANK))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"high": 0}, "at least one column"),
        ({"high": WIDTH}, f"{WIDTH} protected coordinates, allowed are 0 to {WIDTH - 1}"),
        ({"scales": torch.ones(3)}, r"scales of shape \(3,\), expected \(40,\)"),
        ({"down": torch.ones(WIDTH, 5)}, r"down of shape \(40, 5\), expected \(40, 6\)"),
        ({"up": torch.ones(ROWS, 5)}, r"up of shape \(5,\), expected \(6,\)"),
        ({"scales": torch.zeros(WIDTH)}, "positive and finite"),
        ({"scales": torch.full((WIDTH,), torch.inf)}, "positive and finite"),
    ],
    ids=["none", "all", "scales", "down", "up", "zero", "infinite"],
)
def test_bad_tensors_raise(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRank(**{"width": WIDTH, "high": RANK, **fields})


def test_a_weight_of_other_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="made for 9 output rows, given 4"):
        example().fold(normal(4, WIDTH))
