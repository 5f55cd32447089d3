"""Bootstrap intervals: coverage, pairing, determinism and refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dirotq.metrics import statistics
from dirotq.metrics.statistics import (
    Estimate,
    bootstrap_mean,
    bootstrap_statistic,
    distinguishable,
    paired_difference,
)


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    return estimate.ci_low, estimate.ci_high


@pytest.mark.parametrize(("level", "least", "most"), [(0.95, 0.91, 0.97), (0.8, 0.74, 0.85)])
def test_coverage_on_gaussian_data(level: float, least: float, most: float) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(400):
        low, high = bounds(
            bootstrap_mean(rng.normal(3.0, 2.0, 60), seed=trial, resamples=400, level=level)
        )
        hits += low <= 3.0 <= high
    assert least <= hits / 400 <= most


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30), st.integers(0, 2**32))
def test_interval_lies_within_the_samples(values: list[float], seed: int) -> None:
    estimate = bootstrap_mean(values, seed=seed, resamples=50)
    low, high = bounds(estimate)
    # Sums of up to 30 values of 1e3 round at about 1e-12.
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    assert estimate.value == pytest.approx(np.mean(values), abs=1e-9)
    assert estimate == bootstrap_mean(values, seed=seed, resamples=50)


def test_interval_is_the_normal_one_for_many_samples() -> None:
    values = np.random.default_rng(1).normal(size=4000)
    low, high = bounds(bootstrap_mean(values, seed=0))
    half = 1.96 * values.std() / np.sqrt(4000)
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.003)


def test_seed_and_kind_of_samples() -> None:
    values = np.random.default_rng(2).normal(size=20)
    estimate = bootstrap_mean(values, seed=3)
    assert bootstrap_mean(torch.from_numpy(values), seed=3) == estimate
    assert bootstrap_mean(values.tolist(), seed=3) == estimate
    assert bootstrap_mean(values, seed=4) != estimate


def test_many_samples_are_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).normal(size=100)
    monkeypatch.setattr(statistics, "_CHUNK", 700)
    low, high = bounds(bootstrap_mean(values, seed=0, resamples=500))
    assert low < values.mean() < high


def test_pairing_finds_a_difference_that_the_means_hide() -> None:
    rng = np.random.default_rng(4)
    prompts = rng.normal(20, 5, 50)
    a, b = prompts + 0.5 + rng.normal(0, 0.2, 50), prompts
    paired = paired_difference(a, b, seed=0)
    assert paired.value == pytest.approx(0.5, abs=0.1)
    assert distinguishable(paired)
    apart = bounds(bootstrap_mean(a, seed=0)), bounds(bootstrap_mean(b, seed=0))
    assert apart[0][0] < apart[1][1]
    assert not distinguishable(paired_difference(b + rng.normal(0, 1, 50), b, seed=0))


def test_paired_difference_changes_sign() -> None:
    a, b = [1.0, 2.0, 4.0], [0.5, 2.5, 3.0]
    forth, back = paired_difference(a, b, seed=0), paired_difference(b, a, seed=0)
    assert forth.value == -back.value
    assert bounds(forth) == pytest.approx(tuple(-x for x in reversed(bounds(back))))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.2, True),
        (-2.0, -1.0, True),
        (-1.0, 1.0, False),
        (0.0, 1.0, False),
        (-1.0, 0.0, False),
        (None, None, False),
    ],
    ids=["above", "below", "across", "touch low", "touch high", "none"],
)
def test_distinguishable(low: float | None, high: float | None, expected: bool) -> None:
    assert distinguishable(Estimate(0.5, low, high, 9)) is expected


def test_one_sample_has_no_interval() -> None:
    expected = Estimate(2.0, None, None, 1)
    assert bootstrap_mean([2.0], seed=0) == expected
    assert paired_difference([3.0], [1.0], seed=0) == expected
    assert bootstrap_statistic(lambda rows: 2.0 * len(rows), 1, seed=0) == expected


def test_statistic_of_a_mean_is_the_mean() -> None:
    values = np.random.default_rng(5).normal(size=80)
    estimate = bootstrap_statistic(lambda rows: float(values[rows].mean()), 80, seed=0)
    assert estimate.value == values.mean()
    assert bounds(estimate) == pytest.approx(bounds(bootstrap_mean(values, seed=0)), abs=0.05)


def test_statistic_is_moved_onto_the_value() -> None:
    def distinct(rows: NDArray[np.int64]) -> float:
        return float(len(np.unique(rows)))

    # A resample holds about 63 of 100 prompts: without the shift the value lies outside.
    estimate = bootstrap_statistic(distinct, 100, seed=0)
    low, high = bounds(estimate)
    assert estimate.value == 100
    assert low < 100 < high
    assert bounds(bootstrap_statistic(distinct, 100, seed=0, minimum=99.0))[0] == 99.0


def test_statistic_keeps_pairs_together() -> None:
    seen: list[NDArray[np.int64]] = []

    def statistic(rows: NDArray[np.int64]) -> float:
        seen.append(rows)
        return 0.0

    bootstrap_statistic(statistic, 7, seed=0, resamples=5)
    assert len(seen) == 6
    assert seen[0].tolist() == list(range(7))
    assert all(rows.shape == (7,) and rows.min() >= 0 and rows.max() < 7 for rows in seen)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, r"at least 1, got \[0\]"),
        ([[1.0, 2.0]], {}, r"got \[1, 2\]"),
        ([1.0, float("inf")], {}, "sample 1 is not finite"),
        ([1.0, 2.0], {"resamples": 0}, "resamples must be at least 1, got 0"),
        ([1.0, 2.0], {"level": 1.0}, "between 0 and 1, got 1.0"),
    ],
    ids=["empty", "matrix", "infinite", "resamples", "level"],
)
def test_refusals(values: list[float], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(values, seed=0, **options)  # type: ignore[arg-type]


def test_more_refusals() -> None:
    with pytest.raises(ValueError, match="differ in number: 2 and 1"):
        paired_difference([1.0, 2.0], [1.0], seed=0)
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        bootstrap_statistic(lambda _: 0.0, 0, seed=0)
    with pytest.raises(ValueError, match="not finite"):
        bootstrap_statistic(lambda _: float("nan"), 3, seed=0)
