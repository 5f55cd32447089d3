"""Rotation: a randomized Hadamard of each input, with signs of its own."""

import pytest
import torch

import dirotq
from dirotq.calibrate import InputStatistics
from dirotq.methods import Rotation
from dirotq.quantize import quantize
from dirotq.transforms import Hadamard
from tests.support.plain import Mlp, bytes_of, outlier_rows

WIDTH = 48


def rotated(method: Rotation, name: str = "layer", width: int = WIDTH) -> Hadamard:
    x = outlier_rows(100, width).double()
    inputs = InputStatistics((name,), width, 100, x.T @ x / 100, x.abs().amax(0).float(), x.float())
    transform = method.transform(inputs, [torch.ones(1, width)], None, None)
    assert isinstance(transform, Hadamard)
    return transform


def test_the_whole_width_is_mixed_evenly() -> None:
    """A single hot channel ends in every coordinate with the same size."""
    hot = torch.zeros(WIDTH, dtype=torch.float64)
    hot[5] = 100
    found = rotated(Rotation()).online(hot)[0]
    expected = torch.full_like(found, 100 * WIDTH**-0.5)
    torch.testing.assert_close(found.abs(), expected, rtol=1e-14, atol=0)  # one float64 product


def test_signs_depend_on_seed_and_input_alone() -> None:
    signs = rotated(Rotation()).signs
    assert set(signs.tolist()) == {-1, 1}
    torch.manual_seed(99)
    assert torch.equal(rotated(Rotation()).signs, signs)
    assert not torch.equal(rotated(Rotation(seed=1)).signs, signs)
    assert not torch.equal(rotated(Rotation(), name="other").signs, signs)


def test_another_seed_gives_other_bytes() -> None:
    states = []
    for seed in (0, 1):
        model = Mlp()
        quantize(model, dirotq.recipe("method=rotation", f"seed={seed}"), [(outlier_rows(64, 48),)])
        states.append(bytes_of(model.state_dict()))
    assert states[0]["gate.codes"] != states[1]["gate.codes"]
    assert states[0]["norm.weight"] == states[1]["norm.weight"]


@pytest.mark.parametrize("rounding", ["rtn", "gptq"])
@pytest.mark.parametrize("width", [45, 46, 92], ids=lambda width: f"K{width}")
def test_widths_without_a_hadamard_matrix_are_quantized(width: int, rounding: str) -> None:
    model, x = Mlp(width, 2 * width), outlier_rows(128, width)
    expected = model(x).detach()
    settings = ["method=rotation", f"rounding={rounding}", "bits=w8a8_int8"]
    report = quantize(model, dirotq.recipe(*settings), [(x,)])
    assert not any(row.fallback for row in report.layers)
    # Eight bits leave some 1 %; a weight folded with another matrix than the input's would leave 100 %.
    assert float((model(x).detach() - expected).norm() / expected.norm()) < 0.03


def test_the_yaml_has_the_defaults() -> None:
    assert dirotq.recipe("method=rotation").method == Rotation()
    assert Rotation().rounding == "gptq"
