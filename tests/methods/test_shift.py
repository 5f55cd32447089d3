"""The shift after GELU: where it is taken, what it gains, and that a shifted layer is the formula."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dirotq
from dirotq import calibrate
from dirotq.calibrate import InputStatistics
from dirotq.formats import NVFP4, Format, Integer
from dirotq.linear import QuantLinear
from dirotq.methods import RTN, Rotation, SmoothQuant, SVDQuant
from dirotq.methods._shift import shifted
from dirotq.quantize import quantize
from tests.support.plain import bytes_of, outlier_rows

WIDTH, HIDDEN, OUT = 64, 128, 48
SIGNED, UNSIGNED = Integer(group=64), Integer(group=64, unsigned=True)
GELU = 11 / 64  # the authors' 0.171875


class FeedForward(nn.Module):
    """A GELU's output is read by two linears, one of them without a bias."""

    def __init__(self, activation: nn.Module, seed: int = 77) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.activation = activation
        self.down = nn.Linear(HIDDEN, OUT)
        self.side = nn.Linear(HIDDEN, OUT, bias=False)
        for parameter in self.parameters():
            parameter.data.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        self.up.weight.data *= 2

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.up(x))
        return self.down(hidden) + self.side(hidden)


def rows(seed: int = 0, count: int = 256) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def statistics(activation: nn.Module) -> InputStatistics:
    (found,) = calibrate.collect(FeedForward(activation), ["down", "side"], [(rows(),)])
    return found


def of(x: Tensor) -> InputStatistics:
    moment = x.double().T @ x.double() / len(x)
    absmax = x.abs().amax(0)
    return InputStatistics(("a",), x.shape[1], len(x), moment, absmax, x, lowest=float(x.min()))


def quantized(*overrides: str, activation: nn.Module | None = None) -> FeedForward:
    model = FeedForward(activation or nn.GELU()).eval()
    chosen = dirotq.recipe("bits=w4a4_int4_sym", *overrides)
    quantize(model, chosen, [(rows(),)])
    return model


def inputs_of(model: nn.Module) -> dict[str, tuple[Format | None, float]]:
    return {
        name: (module.input.act, module.input.shift)
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear)
    }


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        pytest.param(nn.GELU(), GELU, id="gelu"),
        pytest.param(nn.GELU("tanh"), GELU, id="gelu-tanh"),
        pytest.param(nn.SiLU(), 18 / 64, id="silu"),  # its least value is -0.2785
        pytest.param(nn.ReLU(), 0.0, id="relu"),
    ],
)
def test_bounded_activations_are_shifted_by_their_bound(
    activation: nn.Module, expected: float
) -> None:
    assert shifted(statistics(activation), SIGNED) == (UNSIGNED, expected)


@pytest.mark.parametrize(
    "activation",
    [
        pytest.param(nn.Identity(), id="none"),
        pytest.param(nn.Tanh(), id="tanh"),
        pytest.param(nn.LeakyReLU(0.5), id="leaky"),
    ],
)
def test_inputs_that_go_far_below_zero_are_not(activation: nn.Module) -> None:
    assert shifted(statistics(activation), SIGNED) == (SIGNED, 0.0)


def test_outliers_planted_below_zero_undo_the_gain() -> None:
    x = nn.functional.gelu(3 * torch.randn(256, 128, generator=torch.Generator().manual_seed(1)))
    assert shifted(of(x), SIGNED) == (UNSIGNED, GELU)
    x[7, 3] = -20.0
    assert shifted(of(x), SIGNED) == (SIGNED, 0.0)
    assert shifted(of(torch.zeros(4, 64)), SIGNED) == (SIGNED, 0.0)
    assert shifted(of(outlier_rows(256, 64)), SIGNED) == (SIGNED, 0.0)


def test_a_rotated_gelu_is_not_shifted() -> None:
    found = statistics(nn.GELU())
    rotation = Rotation().transform(found, [], SIGNED, SIGNED)
    assert shifted(of(rotation.online(found.sample)[0]), SIGNED) == (SIGNED, 0.0)
    acts = inputs_of(quantized("method=rotation"))
    assert acts == dict.fromkeys(("up", "down", "side"), (SIGNED, 0.0))


@pytest.mark.parametrize(
    "act",
    [None, Integer(group=64, symmetric=False), Integer(group=None, bits=8), NVFP4(group=16)],
    ids=["none", "zero-point", "int8", "nvfp4"],
)
def test_other_formats_have_no_unsigned_form(act: Format | None) -> None:
    assert shifted(statistics(nn.GELU()), act) == (act, 0.0)


def test_an_unknown_least_number_means_no_shift() -> None:
    found = statistics(nn.GELU())
    found.lowest = InputStatistics(("a",), 1).lowest
    assert shifted(found, SIGNED) == (SIGNED, 0.0)


def test_methods_shift_what_they_leave_unrotated() -> None:
    found = statistics(nn.GELU())
    for method in (SVDQuant(), SmoothQuant()):
        assert method.activation(found, SIGNED) == (UNSIGNED, GELU)
    for method in (SVDQuant(shift=False), SmoothQuant(shift=False), RTN(), Rotation()):
        assert method.activation(found, SIGNED) == (SIGNED, 0.0)
    shifts = inputs_of(quantized("method=svdquant", "rank=8"))
    assert shifts == {"up": (SIGNED, 0.0), "down": (UNSIGNED, GELU), "side": (UNSIGNED, GELU)}


def test_the_step_is_half_as_wide() -> None:
    """15 steps of the largest value plus the shift, instead of 7 of the largest value."""
    x = statistics(nn.GELU()).sample
    signed = SIGNED.step(SIGNED.grid(x))
    unsigned = UNSIGNED.step(UNSIGNED.grid(x + GELU))
    top = x.unflatten(-1, (-1, 64)).amax(-1)
    # Two scales in bfloat16, each 2^-9 off at most: their ratio is a little over 2^-8.
    torch.testing.assert_close(signed / unsigned, 15 / 7 * top / (top + GELU), rtol=2**-7, atol=0)
    assert float((signed / unsigned).mean()) > 1.9


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", ["svdquant,rank=8", "smoothquant"])
def test_a_shifted_layer_is_unsigned_codes_and_a_bias(method: str, bias: bool) -> None:
    """In float64: codes times steps times the decoded weight, and what the shift adds taken off the bias."""
    model = quantized(*f"method={method}".split(","))
    layer = model.down if bias else model.side
    assert isinstance(layer, QuantLinear)
    hidden = model.activation(model.up(rows(3))).detach()
    transform, weight = layer.input.transform, layer.low_weight().double()
    scales = transform.scales.float()
    codes = UNSIGNED.encode(hidden / scales + GELU / scales)
    assert codes.codes.dtype == torch.uint8
    assert codes.grid.zeros is None
    steps = codes.grid.scales.double().repeat_interleave(64, 1)
    offset = -(weight @ (GELU / scales.double()))
    if bias:
        offset = offset + layer.bias.double()
    expected = (codes.codes.double() * steps) @ weight.T + offset
    if layer.high is not None:
        branch = (hidden / scales) @ transform.down.float()  # of the unshifted input
        expected = expected + branch.bfloat16().double() @ layer.high.double().T
    # Float32 sums of 128 terms, most of them below 4.
    torch.testing.assert_close(layer(hidden).double(), expected, rtol=1e-5, atol=1e-4)


def test_without_rounding_the_shift_changes_nothing() -> None:
    found, model = statistics(nn.GELU()), FeedForward(nn.GELU())
    weights = [model.down.weight.detach()]
    transform = SmoothQuant().transform(found, weights, SIGNED, SIGNED)
    x, whole = found.sample.double(), torch.full((HIDDEN,), GELU, dtype=torch.float64)
    folded = transform.fold(weights[0])[0]
    shift = transform.online(whole)[0]
    y = (transform.online(x)[0] + shift) @ folded.T - shift @ folded.T
    # Float64 sums of 128 terms.
    torch.testing.assert_close(y, x @ weights[0].double().T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", ["svdquant,rank=8", "smoothquant"])
def test_shifted_codes_cost_less_than_signed_ones(method: str) -> None:
    """Weights at 8 bits, so that the input's error is what is seen: with signed codes 1.61 to 1.66 times as large.

    Not the 2.06 of the steps: half of these inputs lie between the bound and 0, which signed codes of any step have.
    """
    errors = {}
    for shift in ("true", "false"):
        model = quantized(
            *f"method={method}".split(","),
            f"method.shift={shift}",
            "bits.weight.bits=8",
            "rounding=rtn",
        )
        original = FeedForward(nn.GELU())
        hidden = original.activation(original.up(rows(5))).detach()
        expected = original.down(hidden).detach()
        errors[shift] = float((model.down(hidden) - expected).norm() / expected.norm())
    assert errors["false"] > 1.5 * errors["true"]


def test_a_checkpoint_carries_shift_and_format(tmp_path: Path) -> None:
    model = quantized("method=svdquant", "rank=8")
    dirotq.save(model, tmp_path / "saved")
    loaded = FeedForward(nn.GELU(), seed=5).eval()
    dirotq.load(loaded, tmp_path / "saved")
    assert inputs_of(loaded) == inputs_of(model)
    assert bytes_of(loaded.state_dict()) == bytes_of(model.state_dict())
    assert torch.equal(loaded(rows(2)), model(rows(2)))
    moved = copy.deepcopy(model).bfloat16()  # casting must not reach the shift
    hidden = model.activation(model.up(rows(2)))
    assert torch.equal(moved.side(hidden), model.side(hidden))


def test_the_shift_costs_no_bits() -> None:
    reports = []
    for shift in ("true", "false"):
        model = FeedForward(nn.GELU())
        chosen = dirotq.recipe("bits=w4a4_int4_sym", "method=smoothquant", f"method.shift={shift}")
        reports.append(quantize(model, chosen, [(rows(),)]))
    assert reports[0].weight_bits == reports[1].weight_bits
    assert reports[0].act_bits == reports[1].act_bits == 4 + 16 / 64
