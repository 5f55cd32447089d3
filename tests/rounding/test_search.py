"""The scale search: every group takes its best candidate, and the grid stays one that the format could have made."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dirotq.formats import FP4H, FP8, MXFP4, NVFP4, Format, Grid, Integer
from dirotq.methods import RTN, DiRotQ, Method
from dirotq.quantize import quantize
from dirotq.recipes import Bits, Recipe
from dirotq.rounding import FACTORS, gptq, round_to_nearest, search_grid
from tests.support.plain import Mlp, outlier_rows
from tests.support.rounding import problem

FORMATS: list[Format] = [
    Integer(group=None),
    Integer(group=8),
    Integer(group=7, symmetric=False),
    NVFP4(group=16),
    NVFP4(group=16, scope="tensor"),
    MXFP4(group=32),
    FP4H(group=32),
    FP8(group=8),
]


def group_errors(weight: Tensor, fmt: Format, grid: Grid, diagonal: Tensor) -> list[Tensor]:
    """Weighted squared error of each group, [N] a group, group by group."""
    error = (weight - fmt.decode(round_to_nearest(weight, fmt, grid))).double().square() * diagonal
    size = fmt.group or weight.shape[1]
    return [error[:, start : start + size].sum(1) for start in range(0, weight.shape[1], size)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    width=st.integers(1, 40),
    fmt=st.sampled_from(FORMATS),
    weighted=st.booleans(),
)
def test_no_group_is_worse_than_any_candidate(
    seed: int, width: int, fmt: Format, weighted: bool
) -> None:
    weight = problem(seed, 3, width).weight
    g = torch.Generator().manual_seed(seed)
    diagonal = torch.exp(4 * torch.randn(width, generator=g, dtype=torch.float64))
    if not weighted:
        diagonal = torch.ones(width, dtype=torch.float64)
    found = search_grid(weight, fmt, diagonal if weighted else None)
    own = fmt.grid(weight)
    errors = group_errors(weight, fmt, found, diagonal)
    for factor in FACTORS:
        candidate = fmt.grid(weight * factor, base=own.base)
        for best, other in zip(errors, group_errors(weight, fmt, candidate, diagonal), strict=True):
            assert bool((best <= other * (1 + 1e-12)).all())


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_it_is_a_grid_of_the_format(fmt: Format) -> None:
    weight = problem(0, 4, 40).weight
    found, own = search_grid(weight, fmt), fmt.grid(weight)
    assert (found.scales.dtype, found.scales.shape) == (own.scales.dtype, own.scales.shape)
    assert (found.zeros is None) == (own.zeros is None)
    assert (found.base is None) == (own.base is None)
    if own.base is not None and found.base is not None:
        assert torch.equal(found.base, own.base)
    assert bool((fmt.step(found) <= fmt.step(own)).all())


def test_a_group_s_choice_does_not_depend_on_the_others() -> None:
    weight, fmt = problem(2, 4, 24).weight, Integer(group=8)
    whole = search_grid(weight, fmt)
    for group in range(3):
        alone = search_grid(weight[:, 8 * group : 8 * group + 8], fmt)
        assert torch.equal(alone.scales[:, 0], whole.scales[:, group])


def test_a_coordinate_without_input_is_clipped_for_the_others_sake() -> None:
    weight = torch.full((1, 8), 0.9)
    weight[0, 0] = 1.0
    diagonal = torch.ones(8)
    fmt = Integer(group=8)
    diagonal[0] = 0.0
    found = search_grid(weight, fmt, diagonal)
    assert torch.equal(found.scales, fmt.grid(weight * 0.9).scales)
    diagonal[0] = 1e6
    assert torch.equal(search_grid(weight, fmt, diagonal).scales, fmt.grid(weight).scales)


@pytest.mark.parametrize("value", [0.0, -1e-18], ids=str)
def test_without_any_input_the_scale_stays(value: float) -> None:
    weight, fmt = problem(0).weight, Integer(group=8)
    found = search_grid(weight, fmt, torch.full((24,), value, dtype=torch.float64))
    assert torch.equal(found.scales, fmt.grid(weight).scales)


def test_gains_on_a_normal_weight() -> None:
    """Groups of 64 normal values: RTN's squared error falls by some 12 %."""
    weight = problem(0, 64, 256).weight
    fmt = Integer(group=64)
    plain = (weight - fmt.decode(round_to_nearest(weight, fmt))).square().sum()
    grid = search_grid(weight, fmt)
    searched = (weight - fmt.decode(round_to_nearest(weight, fmt, grid))).square().sum()
    assert float(searched / plain) < 0.92


def test_no_factors_raise() -> None:
    with pytest.raises(ValueError, match="at least one is needed"):
        search_grid(torch.ones(2, 2), Integer(group=None), factors=())


def test_methods_round_on_the_searched_grid() -> None:
    case, fmt = problem(0), Integer(group=8)
    grid = search_grid(case.weight, fmt, case.moment.diagonal())
    nearest = round_to_nearest(case.weight, fmt, grid)
    found, fallback = RTN(scale_search=True).round(case.weight, case.moment, fmt, 1.0)
    assert not fallback
    assert torch.equal(found.codes, nearest.codes)
    assert torch.equal(found.grid.scales, grid.scales)
    method = RTN(rounding="gptq", scale_search=True)
    found, fallback = method.round(case.weight, case.moment, fmt, 1.0)
    expected = gptq(case.weight, case.moment, fmt, grid=grid)
    assert not fallback
    assert expected is not None
    assert torch.equal(found.codes, expected.codes)
    hopeless = torch.full((24, 24), 5e9).fill_diagonal_(1.0)
    found, fallback = method.round(case.weight, hopeless, fmt, 1.0)
    assert fallback
    assert torch.equal(found.grid.scales, search_grid(case.weight, fmt).scales)


@pytest.mark.parametrize("kind", [RTN, DiRotQ], ids=lambda kind: kind.name)
@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
def test_quantized_layers_err_less_with_it(kind: type[Method], rounding: str) -> None:
    """Weights only, so that no activation's error hides the weight's."""
    bits = Bits(name="w4a16", weight=Integer(group=32), act=None)
    snr = {}
    for searched in (False, True):
        method = kind(rounding=rounding, scale_search=searched)
        report = quantize(Mlp(160, 96).eval(), Recipe(method, bits), [(outlier_rows(2048, 160),)])
        assert not any(layer.fallback for layer in report.layers)
        snr[searched] = sum(layer.output_snr_db for layer in report.layers) / len(report.layers)
    assert snr[True] > snr[False] + 0.2
