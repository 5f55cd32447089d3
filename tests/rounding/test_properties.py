"""What holds for GPTQ on any moment: never above nearest, in any row; the moment's unit does not matter."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dirotq.formats import FP4H, MXFP4, NVFP4, Format, Integer
from dirotq.rounding import GPTQOptions, gptq, round_to_nearest, search_grid
from tests.support.rounding import Problem, problem

FORMATS: list[Format] = [
    Integer(group=None),
    Integer(group=8),
    Integer(group=7, symmetric=False),
    NVFP4(group=16, scope="tensor"),
    MXFP4(group=32),
    FP4H(group=32),
]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Random shapes; moments of any rank, steep or flat, with dead columns or without."""
    width = draw(st.integers(1, 40))
    case = problem(
        draw(st.integers(0, 2**16)), draw(st.integers(1, 6)), width, draw(st.integers(1, 80))
    )
    decades = draw(st.sampled_from([0, 3, 12]))
    size = torch.logspace(0, -decades, width, dtype=torch.float64).sqrt()
    for column in draw(st.lists(st.integers(0, width - 1), max_size=3)):
        size[column] = 0.0
    return Problem(case.weight, case.moment * size * size[:, None])


def decoded(case: Problem, fmt: Format, **arguments: object) -> Tensor | None:
    encoded = gptq(case.weight, case.moment, fmt, **arguments)
    return None if encoded is None else fmt.decode(encoded)


@settings(max_examples=150, deadline=None)
@given(
    case=problems(),
    fmt=st.sampled_from(FORMATS),
    damping=st.sampled_from([1e-8, 1e-2, 10.0]),
    searched=st.booleans(),
)
def test_no_row_is_worse_than_nearest(
    case: Problem, fmt: Format, damping: float, searched: bool
) -> None:
    grid = search_grid(case.weight, fmt, case.moment.diagonal()) if searched else None
    found = decoded(case, fmt, grid=grid, options=GPTQOptions(damping=damping))
    assert found is not None
    nearest = fmt.decode(round_to_nearest(case.weight, fmt, grid))
    slack = case.slack(nearest) + case.slack(found)
    assert bool((case.errors(found) <= case.errors(nearest) + slack).all())


@settings(max_examples=40, deadline=None)
@given(case=problems(), fmt=st.sampled_from(FORMATS), power=st.integers(-200, 200))
def test_the_moment_s_unit_does_not_matter(case: Problem, fmt: Format, power: int) -> None:
    """A power of four changes no digit, of the moment or of its factor, so the codes are equal bit for bit."""
    scaled = Problem(case.weight, case.moment * 4.0**power)
    first, second = decoded(case, fmt), decoded(scaled, fmt)
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


@settings(max_examples=40, deadline=None)
@given(case=problems(), fmt=st.sampled_from(FORMATS))
def test_rows_do_not_depend_on_each_other(case: Problem, fmt: Format) -> None:
    grid = fmt.grid(case.weight)
    whole = gptq(case.weight, case.moment, fmt, grid=grid)
    assert whole is not None
    single = gptq(case.weight[:1], case.moment, fmt, grid=grid.rows(slice(0, 1)))
    assert single is not None
    first, second = fmt.decode(single), fmt.decode(whole)[:1]
    one = Problem(case.weight[:1], case.moment)
    # Greedy and nearest codes can be equally good; which are taken then is up to the order of summation.
    slack = one.slack(first) + one.slack(second)
    assert bool(((one.errors(first) - one.errors(second)).abs() <= slack).all())


@pytest.mark.parametrize("block", [1, 3, 64], ids=lambda block: f"block{block}")
@settings(max_examples=25, deadline=None)
@given(case=problems())
def test_blocks_of_any_size_give_the_same_codes(block: int, case: Problem) -> None:
    fmt = Integer(group=8)
    first, second = decoded(case, fmt), decoded(case, fmt, options=GPTQOptions(block=block))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
