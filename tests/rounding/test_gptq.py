"""GPTQ against optimal brain quantization written out: one column at a time, the inverse Hessian updated explicitly."""

import pytest
import torch
from torch import Tensor

from dirotq.formats import FP4H, MXFP4, NVFP4, Format, Integer
from dirotq.rounding import GPTQOptions, gptq, round_to_nearest
from tests.support.rounding import Problem, better_rows, decode, problem, textbook

SEEDS = range(12)
# Formats compute in float32: a value closer than this to the middle between two codes may go either way.
TIE = 1e-6
FORMATS = [
    pytest.param(Integer(group=None), id="row"),
    pytest.param(Integer(group=8), id="g8"),
    pytest.param(Integer(group=7), id="g7-short"),
    pytest.param(Integer(group=8, bits=8), id="int8"),
    pytest.param(Integer(group=8, symmetric=False), id="asymmetric"),
    pytest.param(Integer(group=7, symmetric=False), id="asymmetric-short"),
]
FLOATS = [
    pytest.param(NVFP4(group=16), id="nvfp4"),
    pytest.param(NVFP4(group=16, scope="tensor"), id="nvfp4-tensor"),
    pytest.param(MXFP4(group=32), id="mxfp4"),
    pytest.param(FP4H(group=32), id="fp4h-short"),
]


def codes_of(case: Problem, fmt: Format, **arguments: object) -> Tensor:
    encoded = gptq(case.weight, case.moment, fmt, **arguments)
    assert encoded is not None
    return encoded.codes


def damping_of(case: Problem) -> float:
    return 0.01 * float(case.moment.diagonal().mean())


def expected_of(case: Problem, fmt: Format, damping: float) -> Tensor | None:
    """The codes written out, or None where a tie leaves them open."""
    codes, margin = textbook(case, fmt, damping)
    return better_rows(case, fmt, codes) if margin > TIE else None


@pytest.mark.parametrize("fmt", FORMATS)
def test_codes_are_the_textbook_s(fmt: Format) -> None:
    compared = 0
    for seed in SEEDS:
        case = problem(seed)
        expected = expected_of(case, fmt, damping_of(case))
        if expected is not None:
            compared += 1
            assert torch.equal(codes_of(case, fmt), expected), seed
    assert compared >= len(SEEDS) // 2


@pytest.mark.parametrize("fmt", [*FORMATS, *FLOATS])
def test_wide_problems_agree_with_the_textbook(fmt: Format) -> None:
    """Six thousand codes, none of them near enough to a tie for the order of summation to matter."""
    case = problem(7, rows=32, width=200, samples=300)
    expected = better_rows(case, fmt, textbook(case, fmt, damping_of(case))[0])
    assert torch.equal(codes_of(case, fmt), expected)


@pytest.mark.parametrize("block", [1, 5, 24, 1000], ids=lambda block: f"block{block}")
def test_block_size_does_not_change_codes(block: int) -> None:
    fmt, compared = Integer(group=8), 0
    for seed in SEEDS:
        case = problem(seed)
        expected = expected_of(case, fmt, damping_of(case))
        if expected is not None:
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
        total = case.errors(nearest).sum()
        ratios.append(float(case.errors(fmt.decode(found)).sum() / total))
    # Five rows of 24 strongly correlated inputs: about half the energy in the median.
    assert max(ratios) < 1
    assert sorted(ratios)[20] < 0.6


def test_a_row_that_greed_makes_worse_keeps_its_nearest_codes() -> None:
    """Seed 11's last row, on a grid for the whole row, found among the problems above."""
    case, fmt = problem(11), Integer(group=None)
    greedy = textbook(case, fmt, damping_of(case))[0]
    nearest = round_to_nearest(case.weight, fmt)
    grid = nearest.grid
    assert case.errors(decode(fmt, greedy, grid))[-1] > case.errors(fmt.decode(nearest))[-1]
    codes = codes_of(case, fmt)
    assert torch.equal(codes[-1], nearest.codes[-1])
    assert torch.equal(codes[:-1], greedy[:-1])


@pytest.mark.parametrize("fmt", [*FORMATS, *FLOATS])
def test_without_correlation_it_is_rounding_to_nearest(fmt: Format) -> None:
    case = problem(0)
    diagonal = torch.diag(torch.rand(24, generator=torch.Generator().manual_seed(1)).double() + 0.1)
    encoded = gptq(case.weight, diagonal, fmt)
    nearest = round_to_nearest(case.weight, fmt)
    assert encoded is not None
    assert torch.equal(encoded.codes, nearest.codes)
    assert encoded.codes.dtype == fmt.code_dtype
    assert torch.equal(encoded.grid.scales.float(), nearest.grid.scales.float())


def test_rounds_on_the_given_grid() -> None:
    case, fmt = problem(4), Integer(group=8)
    grid = fmt.grid(0.9 * case.weight)
    encoded = gptq(case.weight, case.moment, fmt, grid=grid)
    codes, margin = textbook(case, fmt, damping_of(case), grid)
    assert margin > TIE
    assert encoded is not None
    assert encoded.grid is grid
    assert torch.equal(encoded.codes, better_rows(case, fmt, codes, grid))


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
        expected = expected_of(case, fmt, 0.02 * mean)
        assert expected is not None
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


def test_dead_columns_of_an_asymmetric_format_decode_next_to_zero() -> None:
    case = problem(3, width=8)
    moment = case.moment.clone()
    moment[5], moment[:, 5] = 0.0, 0.0
    fmt = Integer(group=4, symmetric=False)
    encoded = gptq(case.weight, moment, fmt)
    assert encoded is not None
    nearest = fmt.encode(torch.zeros_like(case.weight), encoded.grid)
    assert torch.equal(encoded.codes[:, 5], nearest.codes[:, 5])


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
    expected = expected_of(case, fmt, 0.08)
    assert expected is not None
    assert torch.equal(codes_of(case, fmt, options=GPTQOptions(retries=3)), expected)
    assert torch.equal(codes_of(case, fmt), expected)


def test_singular_moment_is_damped() -> None:
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)).double()
    case, fmt = Problem(problem(0, width=16).weight, x.T @ x / 3), Integer(group=None)
    nearest = fmt.decode(round_to_nearest(case.weight, fmt))
    found = gptq(case.weight, case.moment, fmt)
    assert found is not None
    assert case.errors(fmt.decode(found)).sum() < 0.5 * case.errors(nearest).sum()


@pytest.mark.parametrize("value", [5e3, float("nan"), float("inf")], ids=str)
def test_hopeless_moment_returns_none(value: float) -> None:
    moment = torch.tensor([[1.0, value], [value, 1.0]])
    assert gptq(torch.ones(2, 2), moment, Integer(group=None)) is None


def test_a_moment_that_float32_could_not_factor() -> None:
    """Directions with 1 to 1e-12 of the energy, half of them empty, damped by 1e-12."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(24, 24, generator=g, dtype=torch.float64))[0]
    energy = torch.logspace(0, -12, 24, dtype=torch.float64)
    energy[12:] = 0.0
    case = Problem(problem(0).weight, basis * energy @ basis.T)
    damped = case.moment + 1e-12 * case.moment.diagonal().mean() * torch.eye(24)
    assert int(torch.linalg.cholesky_ex(damped.float())[1]) > 0
    fmt = Integer(group=8)
    found = gptq(case.weight, case.moment, fmt, options=GPTQOptions(damping=1e-12, retries=0))
    assert found is not None
    nearest = fmt.decode(round_to_nearest(case.weight, fmt))
    assert case.errors(fmt.decode(found)).sum() < 0.9 * case.errors(nearest).sum()


@pytest.mark.parametrize(("rows", "width"), [(1, 24), (5, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("fmt", [*FORMATS, *FLOATS])
def test_single_rows_and_columns(rows: int, width: int, fmt: Format) -> None:
    case = problem(1, rows, width)
    encoded = gptq(case.weight, case.moment, fmt)
    assert encoded is not None
    assert encoded.codes.shape == (rows, width)
    assert fmt.decode(encoded).shape == (rows, width)
    if width == 1:
        assert torch.equal(encoded.codes, round_to_nearest(case.weight, fmt).codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_a_weight_s_dtype_does_not_matter(dtype: torch.dtype) -> None:
    case = problem(0)
    weight = case.weight.bfloat16().to(dtype)
    fmt = Integer(group=8)
    codes = codes_of(Problem(weight, case.moment), fmt)
    assert torch.equal(codes, codes_of(Problem(weight.float(), case.moment), fmt))


def test_shapes_that_do_not_fit_raise() -> None:
    with pytest.raises(ValueError, match=r"weight \(2, 3\) and moment \(4, 4\), expected \[N, K\]"):
        gptq(torch.ones(2, 3), torch.eye(4), Integer(group=None))


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
