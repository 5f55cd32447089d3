"""Numerics of SVDQuant: both SVDs, the search, and where the refinement ends."""

from functools import partial
from statistics import fmean

import pytest
import torch
from torch import Tensor

from dirotq.methods import _lowrank
from dirotq.methods._lowrank import Factorize, randomized_svd, truncated_svd
from dirotq.methods.svdquant import smoothings
from tests.support.lowrank import (
    RANK,
    WIDTH,
    decaying,
    exact,
    falling,
    normal,
    objective,
    start,
    statistics,
)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40)], ids=str)
def test_truncated_svd_is_the_leading_part(shape: tuple[int, int]) -> None:
    matrix = normal(*shape)
    up, down = truncated_svd(matrix, RANK)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    wanted = (u[:, :RANK] * s[:RANK] @ v[:RANK]).float()
    # Float32 factors of entries around 1; the Gram matrix is in float64.
    torch.testing.assert_close(up @ down.T, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(down.T @ down, torch.eye(RANK), rtol=0, atol=1e-5)


def captured(matrix: Tensor, factors: tuple[Tensor, Tensor]) -> float:
    """Share of the matrix's energy that is not left over."""
    up, down = (factor.double() for factor in factors)
    return 1 - float(((matrix.double() - up @ down.T).norm() / matrix.double().norm()) ** 2)


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5, 1.0], ids=lambda power: f"power{power}")
@pytest.mark.parametrize("shape", [(300, 256), (256, 300), (256, 256), (8, 96)], ids=str)
def test_randomized_svd_captures_what_the_exact_one_does(
    shape: tuple[int, int], power: float
) -> None:
    matrix = falling(*shape, power)
    best = captured(matrix, truncated_svd(matrix, RANK))
    for seed in range(3):
        factors = randomized_svd(matrix, RANK, start(matrix, seed=seed))
        # Asked for is 1e-4; the last block added less than 1e-9, and float32 factors leave 1e-7.
        assert captured(matrix, factors) == pytest.approx(best, rel=1e-6)
        torch.testing.assert_close(factors[1].T @ factors[1], torch.eye(RANK), rtol=0, atol=1e-5)


def test_randomized_svd_solves_in_full_what_is_flat_or_narrow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solved = []
    monkeypatch.setattr(_lowrank, "truncated_svd", lambda *a: solved.append(a) or truncated_svd(*a))
    for power in (0.5, 1.0):
        matrix = falling(300, 256, power)
        randomized_svd(matrix, RANK, start(matrix))
    assert solved == []
    for matrix in (normal(300, 256), falling(300, 255, 1.0)):
        randomized_svd(matrix, RANK, start(matrix))
    assert len(solved) == 2


@pytest.mark.parametrize("power", [0.0, -5.0, -12.0, -200.0])
@pytest.mark.parametrize("rank", [0, 3, 40])
@pytest.mark.parametrize("inside", [False, True])
def test_blocks_come_out_orthogonal_whatever_they_add(
    power: float, rank: int, inside: bool
) -> None:
    """Columns of sizes from 1 to 10^power, mixed or not, of a rank, and perhaps of the basis's own span."""
    basis = torch.linalg.qr(normal(500, 120).double())[0]
    block = normal(500, rank, seed=1).double() @ normal(rank, 40, seed=2).double()
    block = basis @ (basis.T @ block) if inside else block
    block = block * torch.logspace(0, power, 40, dtype=torch.float64)
    for each in (block, block @ normal(40, 40, seed=3).double()):
        found = _lowrank._orthonormal(each, basis)
        both = torch.cat([basis, found], dim=1)
        torch.testing.assert_close(
            both.T @ both, torch.eye(160, dtype=torch.float64), rtol=0, atol=1e-14
        )
        # What the block adds is in it, relative to its largest column.
        rest = each - both @ (both.T @ each)
        assert float(rest.abs().max()) <= 1e-12 * max(float(each.abs().max()), 1e-300)


def test_randomized_svd_of_a_lower_rank() -> None:
    for shape in ((260, 300), (300, 260)):
        matrix = normal(shape[0], 3) @ normal(3, shape[1], seed=1)
        up, down = randomized_svd(matrix, RANK, start(matrix))
        torch.testing.assert_close(up @ down.T, matrix, rtol=0, atol=1e-4)  # float32, entries to 8
    nothing = torch.zeros(260, 300)
    up, down = randomized_svd(nothing, RANK, start(nothing))
    assert float((up @ down.T).abs().max()) == 0.0


def test_a_matrix_of_lower_rank_is_reproduced() -> None:
    for shape in ((20, 60), (60, 20)):
        matrix = normal(shape[0], 3) @ normal(3, shape[1], seed=1)
        up, down = exact(matrix)
        torch.testing.assert_close(up @ down.T, matrix, rtol=0, atol=1e-4)  # float32, entries to 8
    up, down = exact(torch.zeros(20, 60))
    assert float((up @ down.T).abs().max()) == 0.0


def test_refinement_is_never_worse_than_its_first_iteration() -> None:
    task, scales = objective(decaying()), torch.ones(WIDTH)
    errors = [task.refine(scales, exact, count).error for count in (1, 2, 5, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.97 * errors[0]  # measured .87 to .93


def test_refinement_stops_at_the_first_worse_iteration() -> None:
    task, calls = objective(decaying()), 0

    def getting_worse(matrix: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        up, down = exact(matrix)
        return up / calls, down

    assert task.refine(torch.ones(WIDTH), getting_worse, 100).up.equal(
        exact(task.weight)[0].bfloat16().float()
    )
    assert calls == 2
    calls = 0
    task.refine(torch.ones(WIDTH), getting_worse, 100, patience=4)
    assert calls == 5


def test_patience_outlasts_an_iteration_that_is_worse() -> None:
    task = objective(decaying())
    up, down = exact(task.weight)

    def reached(patience: int) -> float:
        parts = iter((0.5, 0.25, 1.0, 0.25, 0.25, 0.25))
        return task.refine(torch.ones(WIDTH), lambda _: (up * next(parts), down), 6, patience).error

    assert reached(1) > reached(2) == reached(3)
    assert reached(2) == task.refine(torch.ones(WIDTH), exact, 1).error


def test_search_takes_the_best_candidate_and_the_later_of_equals() -> None:
    task = objective(decaying())
    candidates = smoothings(statistics().absmax, task.weight, 20)
    best, errors = task.search(candidates, exact)
    assert len(errors) == 39
    assert torch.equal(best, candidates[errors.index(min(errors))])
    assert min(errors) < 0.5 * errors[0]  # two outlier channels; measured .21 to .24
    marked = [best.clone(), best.clone(), candidates[0]]
    assert task.search(marked, exact)[0] is marked[1]


@pytest.mark.parametrize("seed", [0, 1])
def test_refinement_ends_alike_with_either_svd(seed: int) -> None:
    """Plain and refined. The refinement amplifies what is rounded: a relative 1e-6 in what the exact SVD is handed
    moves its end by up to 7 % on problems of this size, by 2 % in the mean of several.
    """
    weight = falling(256, 256, 0.5, seed)
    task, ones = objective(weight), torch.ones(256)

    def disturbed(by: int) -> Factorize:
        return lambda matrix: exact(matrix * (1 + 1e-6 * normal(*matrix.shape, seed=by)))

    def randomized(by: int) -> Factorize:
        return partial(randomized_svd, rank=RANK, start=start(weight, seed=by))

    first = task.refine(ones, exact, 1).error
    for by in range(3):
        # Both round the same factors to bfloat16, but for ties.
        assert task.refine(ones, randomized(by), 1).error == pytest.approx(first, rel=1e-3)
    noise = [task.refine(ones, disturbed(by), 100).error for by in range(6)]
    found = [task.refine(ones, randomized(by), 100).error for by in range(6)]
    assert max(found) <= 1.07 * max(noise)
    assert fmean(found) == pytest.approx(fmean(noise), rel=0.04)
