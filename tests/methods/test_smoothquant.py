"""SmoothQuant: the authors' scales, and which inputs get them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import dirotq
from dirotq.calibrate import InputStatistics
from dirotq.formats import Integer
from dirotq.methods import SmoothQuant
from dirotq.methods.smoothquant import smoothing_scales
from dirotq.quantize import quantize
from dirotq.rounding import gptq, round_to_nearest
from dirotq.transforms import Diagonal, Identity
from tests.support.plain import Mlp, outlier_rows

WIDTH = 40


def statistics(*members: str) -> InputStatistics:
    x = outlier_rows(400, WIDTH).double()
    return InputStatistics(
        members or ("to_q",), WIDTH, 400, x.T @ x / 400, x.abs().amax(0).float(), x.float()
    )


def weights(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, WIDTH, generator=generator) for rows in (5, 9)]


def scales(method: SmoothQuant, inputs: InputStatistics, linears: list[Tensor]) -> Tensor:
    transform = method.transform(inputs, linears, None, None)
    assert isinstance(transform, Diagonal)
    return transform.scales


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_scales_are_the_papers(alpha: float) -> None:
    inputs, linears = statistics("to_q", "to_k"), weights()
    expected = [
        float(inputs.absmax[j]) ** alpha
        / max(abs(float(row[j])) for w in linears for row in w) ** (1 - alpha)
        for j in range(WIDTH)
    ]
    found = scales(SmoothQuant(alpha=alpha), inputs, linears)
    # Stored in bfloat16, which rounds by 2^-9 of the value.
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=2**-8, atol=0)


def test_half_leaves_input_and_weight_equal_maxima() -> None:
    """Equation 4 at alpha 0.5: both sides end at sqrt(max|X_j| max|W_j|)."""
    inputs, linears = statistics(), weights()
    transform = SmoothQuant().transform(inputs, linears, None, None)
    x = transform.online(inputs.absmax.double())[0]
    w = transform.fold(torch.cat(linears))[0].abs().amax(0)
    # Both with the same scale in bfloat16, one divided and one multiplied by it: twice 2^-9.
    torch.testing.assert_close(x, w, rtol=2**-7, atol=0)


@settings(max_examples=60, deadline=None)
@given(
    act=st.lists(st.floats(0, 1e30), min_size=1, max_size=8),
    alpha=st.floats(0, 1),
    data=st.data(),
)
def test_scales_can_always_be_divided_by(
    act: list[float], alpha: float, data: st.DataObject
) -> None:
    size = len(act)
    weight = data.draw(st.lists(st.floats(0, 1e30), min_size=size, max_size=size))
    found = smoothing_scales(torch.tensor(act).double(), torch.tensor(weight).double(), alpha)
    assert float(found.min()) >= 1e-5
    assert Diagonal(size, scales=found).width == size  # which refuses zeros and infinities


def test_floors_dead_channels_and_infinities() -> None:
    act = torch.tensor([4.0, 0.0, 1e-12, 4.0], dtype=torch.float64)
    weight = torch.tensor([1.0, 1.0, 100.0, 0.0], dtype=torch.float64)
    found = smoothing_scales(act, weight, 0.5).tolist()
    assert found == pytest.approx([2.0, 1.0, 1e-5, 2 / math.sqrt(1e-5)], rel=1e-12)
    act[0] = math.inf
    assert smoothing_scales(act, weight, 0.5).tolist() == [1.0] * 4
    act[0] = math.nan
    assert smoothing_scales(act, weight, 0.5).tolist() == [1.0] * 4


UNSMOOTHED = [
    "transformer_blocks.0.attn1.to_out.0",
    "transformer_blocks.0.attn.to_add_out",
    "transformer_blocks.0.ff.net.2",
    "transformer_blocks.0.ff_context.net.2",
    "single_transformer_blocks.3.proj_out",
    "layers.0.feed_forward.linear_2",
    "model.decoder.layers.1.fc2",
    "block.mlp.down_proj",
    "down",
]
SMOOTHED = [
    "transformer_blocks.0.attn1.to_q",
    "transformer_blocks.0.attn.add_k_proj",
    "transformer_blocks.0.ff.net.0.proj",
    "single_transformer_blocks.3.proj_mlp",
    "layers.0.feed_forward.linear_1",
    "breakdown",
    "to_out.0.extra",
]


@pytest.mark.parametrize("name", [*UNSMOOTHED, *SMOOTHED])
def test_coverage_paper_leaves_output_and_down_projections(name: str) -> None:
    inputs = statistics(name)
    found = SmoothQuant(coverage="paper").transform(inputs, weights(), None, None)
    assert isinstance(found, Identity if name in UNSMOOTHED else Diagonal)
    assert isinstance(SmoothQuant().transform(inputs, weights(), None, None), Diagonal)


def test_an_input_is_left_only_when_every_reader_is() -> None:
    method = SmoothQuant(coverage="paper", unsmoothed="o$")
    assert isinstance(method.transform(statistics("go", "to"), weights(), None, None), Identity)
    assert isinstance(method.transform(statistics("go", "q"), weights(), None, None), Diagonal)


def test_the_default_alpha_beats_none_and_all_on_planted_outliers() -> None:
    x = outlier_rows(192, 160)
    errors = {}
    for alpha in (0, 0.5, 1):
        model = Mlp(160, 96)
        expected = model(x).detach()
        quantize(model, dirotq.recipe("method=smoothquant", f"method.alpha={alpha}"), [(x,)])
        errors[alpha] = float((model(x).detach() - expected).norm() / expected.norm())
    assert errors[0.5] < 0.95 * errors[0]
    assert errors[0.5] < 0.95 * errors[1]


def test_gptq_damps_relative_to_the_smoothed_input() -> None:
    fmt, weight = Integer(group=None), weights()[1]
    moment = statistics().moment
    own = float(moment.diagonal().mean())
    method = SmoothQuant(rounding="gptq")
    expected = gptq(weight, moment, fmt, mean=own)
    assert expected is not None
    encoded, fallback = method.round(weight, moment, fmt, 1e9)
    assert not fallback
    assert torch.equal(encoded.codes, expected.codes)
    # Damped by the mean that was handed in it would be rounding to nearest.
    assert not torch.equal(encoded.codes, round_to_nearest(weight, fmt).codes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -0.1}, "alpha=-0.1, allowed are numbers from 0 to 1"),
        ({"alpha": 1.5}, "alpha=1.5, allowed"),
        ({"alpha": float("nan")}, "alpha=nan, allowed"),
        ({"coverage": "most"}, "coverage=most, allowed are full, paper"),
        ({"unsmoothed": "("}, r"unsmoothed=\(: not a regular expression"),
        ({"rounding": "up"}, "rounding=up, allowed are rtn, gptq"),
    ],
    ids=str,
)
def test_bad_settings_raise_with_the_value(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothQuant(**fields)


def test_the_yaml_has_the_defaults() -> None:
    assert dirotq.recipe("method=smoothquant").method == SmoothQuant()
