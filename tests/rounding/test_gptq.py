"""GPTQ against optimal brain quantization written out: one column at a time, the inverse Hessian updated explicitly."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from dirotq.formats import Format, Integer
from dirotq.rounding import GPTQOptions, gptq, round_to_nearest

SEEDS = range(12)
# The library works in float32: a value closer than this to the middle between two codes may go either way.
TIE = 1e-4
FORMATS = [Integer(group=None), Integer(group=8), Integer(group=7), Integer(group=8, bits=8)]


@dataclass
class Problem:
    weight: Tensor
    moment: Tensor


def problem(seed: int, rows: int = 5, width: int = 24) -> Problem:
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=g, dtype=torch.float64)
    x = torch.randn(96, width, generator=g, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, width, generator=g, dtype=torch.float64)
    return Problem(weight.float(), x.T @ x / 96)


def textbook(weight: Tensor, moment: Tensor, fmt: Format, damping: float) -> tuple[Tensor, float]:
    """Codes [N, K] and the smallest distance, in steps, of any value to a tie; float64 throughout."""
    width = weight.shape[1]
    hessian = moment.double() + damping * torch.eye(width, dtype=torch.float64)
    inverse = torch.linalg.inv(hessian)
    scale = fmt.expand(fmt.grid(weight), width)[0].double()
    left = weight.double().clone()
    codes = torch.zeros(weight.shape, dtype=torch.int8)
    top = 2 ** (fmt.code_bits - 1) - 1
    margin = 1.0
    todo = sorted(range(width), key=lambda j: -float(moment[j, j]))
    while todo:
        j = todo.pop(0)
        steps = left[:, j] / scale[:, j]
        codes[:, j] = steps.round().clamp(-top, top).to(torch.int8)
        inside = steps[steps.abs() < top]
        if len(inside):
            margin = min(margin, float(((inside - inside.floor()) - 0.5).abs().min()))
        error = (left[:, j] - codes[:, j] * scale[:, j]) / inverse[j, j]
        for i in todo:
            left[:, i] -= error * inverse[j, i]
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, margin


def codes_of(case: Problem, fmt: Format, **arguments: object) -> Tensor:
    encoded = gptq(case.weight, case.moment, fmt, **arguments)
    assert encoded is not None
    return encoded.codes


def weighted_error(case: Problem, decoded: Tensor) -> float:
    error = case.weight.double() - decoded.double()
    return float((error @ case.moment @ error.T).diagonal().sum())


@pytest.mark.parametrize("fmt", FORMATS, ids=["row", "g8", "g7-short", "int8"])
def test_codes_are_the_textbook_s(fmt: Format) -> None:
    compared = 0
    for seed in SEEDS:
        case = problem(seed)
        damping = 0.01 * float(case.moment.diagonal().mean())
        expected, margin = textbook(case.weight, case.moment, fmt, damping)
        if margin < TIE:
            continue
        compared += 1
        assert torch.equal(codes_of(case, fmt), expected), seed
    assert compared >= len(SEEDS) // 2


@pytest.mark.parametrize("block", [1, 5, 24, 1000], ids=lambda block: f"block{block}")
def test_block_size_does_not_change_codes(block: int) -> None:
    fmt, compared = Integer(group=8), 0
    for seed in SEEDS:
        case = problem(seed)
        damping = 0.01 * float(case.moment.diagonal().mean())
        expected, margin = textbook(case.weight, case.moment, fmt, damping)
        if margin >= TIE:
            compared += 1
            assert torch.equal(codes_of(case, fmt, options=GPTQOptions(block=block)), expected)
    assert compared >= len(SEEDS) // 2


def test_error_is_below_rounding_to_nearest() -> None:
    fmt, ratios = Integer(group=8), []
    for seed in range(40):
        case = problem(seed)
        found = gptq(case.weight, case.moment, fmt)
        assert found is not None
        nearest = fmt.decode(round_to_nearest(case.weight, fmt))
        ratios.append(weighted_error(case, fmt.decode(found)) / weighted_error(case, nearest))
    # Five rows of 24 strongly correlated inputs: never worse, and about half the energy in the median.
    assert max(ratios) < 1
    assert sorted(ratios)[20] < 0.6


@pytest.mark.parametrize("fmt", FORMATS, ids=["row", "g8", "g7-short", "int8"])
def test_without_correlation_it_is_rounding_to_nearest(fmt: Format) -> None:
    case = problem(0)
    diagonal = torch.diag(torch.rand(24, generator=torch.Generator().manual_seed(1)).double() + 0.1)
    encoded = gptq(case.weight, diagonal, fmt)
    nearest = round_to_nearest(case.weight, fmt)
    assert encoded is not None
    assert torch.equal(encoded.codes, nearest.codes)
    assert torch.equal(encoded.grid.scales, nearest.grid.scales)


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**30], ids=["tiny", "huge"])
def test_only_the_shape_of_the_moment_matters(factor: float) -> None:
    """A power of two changes no digit, so the codes are equal bit for bit."""
    case = problem(0)
    fmt = Integer(group=8)
    scaled = Problem(case.weight, case.moment * factor)
    assert torch.equal(codes_of(scaled, fmt), codes_of(case, fmt))


def test_mean_sets_the_damping() -> None:
    case, fmt = problem(3), Integer(group=None)
    for mean in (0.1, 50.0):
        expected, margin = textbook(case.weight, case.moment, fmt, 0.02 * mean)
        assert margin > TIE
        options = GPTQOptions(damping=0.02)
        assert torch.equal(codes_of(case, fmt, mean=mean, options=options), expected)


def test_dead_columns_are_zero_and_change_no_other() -> None:
    case, fmt = problem(1, width=12), Integer(group=None)
    alive = [0, 1, 3, 4, 6, 7, 8, 9, 10]
    moment = torch.zeros(12, 12, dtype=torch.float64)
    moment[torch.tensor(alive)[:, None], torch.tensor(alive)] = case.moment[:9, :9]
    weight = case.weight.clone()
    weight[:, [2, 5, 11]] = 1e-3  # too small to change a row's scale
    codes = codes_of(Problem(weight, moment), fmt, mean=2.0)
    assert int(codes[:, [2, 5, 11]].abs().max()) == 0
    reduced = Problem(weight[:, alive], case.moment[:9, :9])
    assert torch.equal(codes[:, alive], codes_of(reduced, fmt, mean=2.0))


def test_dead_columns_do_not_pass_on_their_error() -> None:
    case = problem(2, width=8)
    moment = case.moment.clone()
    moment[3], moment[:, 3] = 0.0, 0.0
    weight = case.weight.clone()
    weight[:, 3] = 100.0  # no input ever reaches it
    assert int(codes_of(Problem(weight, moment), Integer(group=1))[:, 3].abs().max()) == 0


def test_all_columns_dead() -> None:
    case = Problem(torch.ones(2, 4), torch.zeros(4, 4))
    assert int(codes_of(case, Integer(group=None)).abs().max()) == 0
    assert int(codes_of(case, Integer(group=None), mean=0.0).abs().max()) == 0


def indefinite(width: int = 6) -> Problem:
    """Diagonal 1, smallest eigenvalue -0.05: one per cent of damping is too little, eight are enough."""
    g = torch.Generator().manual_seed(4)
    direction = torch.ones(width, 1, dtype=torch.float64) / width**0.5
    moment = torch.eye(width, dtype=torch.float64) - 1.05 * direction @ direction.T
    return Problem(torch.randn(3, width, generator=g), moment / moment[0, 0])


def test_damping_is_doubled_until_it_is_enough() -> None:
    case, fmt = indefinite(), Integer(group=None)
    lowest = float(torch.linalg.eigvalsh(case.moment)[0])
    assert -0.08 < lowest < -0.04
    assert gptq(case.weight, case.moment, fmt, options=GPTQOptions(retries=2)) is None
    expected, margin = textbook(case.weight, case.moment, fmt, 0.08)
    assert margin > TIE
    assert torch.equal(codes_of(case, fmt, options=GPTQOptions(retries=3)), expected)
    assert torch.equal(codes_of(case, fmt), expected)


def test_singular_moment_is_damped() -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).double()
    case, fmt = Problem(problem(0, width=16).weight, x.T @ x / 3), Integer(group=None)
    nearest = fmt.decode(round_to_nearest(case.weight, fmt))
    found = gptq(case.weight, case.moment, fmt)
    assert found is not None
    assert weighted_error(case, fmt.decode(found)) < 0.5 * weighted_error(case, nearest)


@pytest.mark.parametrize("value", [5e3, float("nan"), float("inf")], ids=str)
def test_hopeless_moment_returns_none(value: float) -> None:
    moment = torch.tensor([[1.0, value], [value, 1.0]])
    assert gptq(torch.ones(2, 2), moment, Integer(group=None)) is None


def test_inputs_are_not_changed() -> None:
    case = problem(0)
    weight, moment = case.weight.clone(), case.moment.clone()
    codes_of(case, Integer(group=8))
    assert torch.equal(case.weight, weight)
    assert torch.equal(case.moment, moment)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"damping": 0.0}, "damping=0.0, allowed are positive numbers"),
        ({"damping": float("nan")}, "damping=nan, allowed are positive numbers"),
        ({"retries": -1}, "retries=-1, allowed are integers from 0"),
        ({"block": 0}, "block=0, allowed are positive integers"),
    ],
    ids=str,
)
def test_bad_options_raise_with_the_value(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTQOptions(**fields)
