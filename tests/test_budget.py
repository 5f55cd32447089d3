"""budget= chooses the largest rank whose stored bits keep to it."""

from dataclasses import replace

import pytest

import dirotq
from dirotq.budget import effective_bits, within
from dirotq.formats import Integer
from dirotq.methods import DiRotQ
from dirotq.quantize import quantize
from tests.support.plain import Mlp, outlier_rows

WEIGHT, ACT = Integer(group=64), Integer(group=64, symmetric=False)
READERS = {"q": 320, "k": 320, "v": 320}


@pytest.mark.parametrize("budget", [4.6, 5.0, 6.6, 9.0])
@pytest.mark.parametrize("protect", ["bf16", "int8"])
def test_one_more_coordinate_would_be_too_much(budget: float, protect: str) -> None:
    method = within(DiRotQ(protect=protect), 320, READERS, WEIGHT, ACT, budget)
    assert effective_bits(method, 320, READERS, WEIGHT, ACT) <= budget
    more = DiRotQ(protect=protect, rank=method.rank + 1)
    assert effective_bits(more, 320, READERS, WEIGHT, ACT) > budget


@pytest.mark.parametrize("method", ["dirotq", "svdquant"])
def test_the_bits_counted_are_the_bits_stored(method: str) -> None:
    model = Mlp(160, 96)
    recipe = dirotq.recipe(f"method={method}", "budget=7", "rounding=rtn")
    report = quantize(model, recipe, [(outlier_rows(64, 160),)])
    for row in report.layers:
        assert row.rank >= 1
    by_input: dict[str, list[float]] = {}
    for row in report.layers:
        by_input.setdefault(row.input, []).append(row.effective_bits)
    for bits in by_input.values():
        mean = sum(bits) / len(bits)
        assert mean <= 7
        assert mean > 6.5  # a coordinate more or less is under half a bit here


def test_too_small_a_budget_names_the_layer_and_what_it_needs() -> None:
    with pytest.raises(
        ValueError, match=r"budget=4.1: layer q needs 4\.\d+ bits a weight at rank 1"
    ):
        within(DiRotQ(), 320, READERS, WEIGHT, ACT, 4.1)


def test_budget_and_rank_exclude_each_other() -> None:
    with pytest.raises(
        ValueError, match="budget=5 chooses the rank, allowed is rank=null beside it"
    ):
        dirotq.recipe("method=dirotq", "budget=5", "rank=8")
    with pytest.raises(ValueError, match="budget=0, allowed are numbers above 0"):
        dirotq.recipe("method=dirotq", "budget=0")


def test_smaller_transforms_leave_room_for_a_higher_rank() -> None:
    ranks = [
        within(DiRotQ(transform_bits=bits), 320, READERS, WEIGHT, ACT, 6.0).rank for bits in (16, 8)
    ]
    assert ranks[1] > 1.2 * ranks[0]


def test_bases_of_heads_cannot_be_counted() -> None:
    with pytest.raises(ValueError, match=r"per_head=true: budget= cannot count"):
        within(DiRotQ(rotation="dense"), 320, READERS, WEIGHT, ACT, 25.0)
    assert (
        within(DiRotQ(rotation="dense", per_head=False), 320, READERS, WEIGHT, ACT, 25.0).rank >= 1
    )


def test_a_recipe_of_a_method_without_a_rank_takes_no_budget() -> None:
    recipe = dirotq.recipe("method=rtn")
    with pytest.raises(ValueError, match="budget=5: method rtn has no rank to choose"):
        replace(recipe, budget=5.0)


def test_methods_without_a_rank_leave_it_out(caplog: pytest.LogCaptureFixture) -> None:
    assert dirotq.recipe("method=rtn", "budget=5").budget is None
    assert "budget=5.0: method rtn has no use for it" in caplog.text
