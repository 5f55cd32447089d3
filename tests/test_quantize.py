"""The loop over inputs: what it refuses, and that it then leaves the model as it was."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dirotq
from dirotq import calibrate
from dirotq.linear import QuantLinear
from dirotq.models import Layout, layout_of
from dirotq.quantize import quantize, snr_db
from tests.support.plain import Mlp, bytes_of, outlier_rows

BATCHES = [(outlier_rows(40, 48, seed=seed),) for seed in range(2)]
DIROTQ = dirotq.recipe("method=dirotq", "rank=8")
RTN = dirotq.recipe("method=rtn")
ALL = Layout("test", ("Mlp",), ("gate", "up", "down"))


def test_fp16_does_nothing() -> None:
    model = Mlp()
    before = bytes_of(model.state_dict())
    report = quantize(model, dirotq.recipe("method=fp16"), BATCHES)
    assert bytes_of(model.state_dict()) == before
    assert (report.layers, report.weight_bits, report.act_bits) == ((), 16.0, 16.0)


def test_only_what_the_layout_names_is_replaced() -> None:
    model = Mlp()
    before = bytes_of(model.state_dict())
    kept = {name: module for name, module in model.named_modules() if name != "down"}
    quantize(model, DIROTQ, BATCHES, layout=Layout("test", ("Mlp",), ("down",)))
    assert isinstance(model.down, QuantLinear)
    for name, module in kept.items():
        assert model.get_submodule(name) is module
    after = bytes_of(model.state_dict())
    assert {name for name in before if after.get(name) == before[name]} == {
        "norm.weight", "norm.bias", "gate.weight", "gate.bias", "up.weight", "down.bias",
    }  # fmt: skip


def test_linears_that_share_an_input_share_its_tensors() -> None:
    model = Mlp()
    quantize(model, DIROTQ, BATCHES)
    assert model.gate.input is model.up.input
    assert model.gate.input.readers == 2
    assert model.down.input is not model.gate.input


def test_stacked_and_single_linears_get_the_same_codes() -> None:
    """Rows do not affect each other: sharing an input only saves work."""
    together, alone = Mlp(), Mlp()
    quantize(together, DIROTQ, BATCHES)
    statistics = calibrate.collect(Mlp(), ["gate"], BATCHES)
    quantize(alone, DIROTQ, statistics=statistics, layout=Layout("test", ("Mlp",), ("gate",)))
    assert torch.equal(together.gate.codes, alone.gate.codes)
    assert torch.equal(together.gate.high, alone.gate.high)


def test_statistics_take_the_place_of_batches() -> None:
    first, second = Mlp(), Mlp()
    quantize(first, DIROTQ, BATCHES)
    quantize(second, DIROTQ, statistics=calibrate.collect(Mlp(), ["gate", "up", "down"], BATCHES))
    assert bytes_of(first.state_dict()) == bytes_of(second.state_dict())


def test_weight_only_layers_keep_their_input() -> None:
    model = Mlp()
    chosen = dirotq.recipe("method=rtn", "weight_only=[down]")
    report = quantize(model, chosen, BATCHES)
    assert model.down.input.act is None
    assert model.gate.input.act == chosen.bits.act
    rows = {row.name: row for row in report.layers}
    assert rows["down"].act_snr_db == float("inf")
    assert rows["gate"].act_snr_db < 40
    gate = 4 + 32 / 48  # asymmetric codes, and a scale and a zero point for the one group
    assert report.act_bits == pytest.approx((48 * gate + 96 * 16) / (48 + 96))


def test_activation_bits_count_the_protected_part() -> None:
    report = quantize(Mlp(), DIROTQ, BATCHES)
    protected = 8 * 8 + 16  # INT8 codes and a bfloat16 scale a token
    total = protected + 40 * 4 + 32 + protected + 88 * 4 + 2 * 32
    assert report.act_bits == pytest.approx(total / (48 + 96))


def test_report_is_measured_on_the_layer_s_own_inputs() -> None:
    model, original = Mlp(), Mlp()
    report = quantize(model, RTN, BATCHES)
    (statistics, _) = calibrate.collect(original, ["gate", "up", "down"], BATCHES)
    row = report.layers[0]
    weight, sample = original.gate.weight, statistics.sample
    # Sums of squares in float64 of the same float32 numbers.
    assert row.weight_snr_db == pytest.approx(snr_db(weight, model.gate.low_weight()), abs=1e-9)
    assert row.act_snr_db == pytest.approx(snr_db(sample, RTN.bits.act.quantize(sample)), abs=1e-9)
    # Float32 products: the reference is taken in another order.
    expected = snr_db(original.gate(sample), model.gate(sample))
    assert row.output_snr_db == pytest.approx(expected, abs=1e-3)


def test_progress_sees_every_input() -> None:
    seen: list[str] = []

    def progress(names: Sequence[str]) -> Iterable[str]:
        for name in names:
            seen.append(name)
            yield name

    quantize(Mlp(), RTN, BATCHES, progress=progress)
    assert seen == ["gate", "down"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_models_of_other_dtypes(dtype: torch.dtype) -> None:
    model = Mlp().to(dtype)
    x = BATCHES[0][0].to(dtype)
    expected = model(x)
    quantize(model, DIROTQ, [(x,)])
    assert model.gate.bias.dtype == dtype
    assert model(x).dtype == dtype
    assert snr_db(expected, model(x)) > 10


def spoil(name: str) -> Callable[[Mlp], Any]:
    def change(model: Mlp) -> None:
        model.get_submodule(name).weight.data[0, 0] = float("nan")

    return change


def after_first(names: Sequence[str]) -> Iterable[str]:
    yield names[0]
    raise KeyboardInterrupt


FAILURES = [
    pytest.param(
        {"change": spoil("down")}, ValueError, "layer down: its weight holds infinities or NaN",
        id="nan-weight",
    ),
    pytest.param({"batches": []}, ValueError, "calibration: no batches", id="no-batches"),
    pytest.param(
        {"recipe": dirotq.recipe("method=dirotq", "rank=50")}, ValueError,
        "rank=50 protects 50 coordinates of an input of width 48, allowed are integers from 1 to 47",
        id="rank-not-below-width",
    ),
    pytest.param(
        {"layout": Layout("mine", (), ("gate", "middle"))}, ValueError,
        "layout mine: no layer of Mlp matches 'middle'", id="missing-layer",
    ),
    pytest.param(
        {"layout": Layout("mine", (), ("norm",))}, ValueError,
        "layout mine: norm is a LayerNorm, only Linear layers are quantized", id="not-a-linear",
    ),
    pytest.param(
        {"recipe": dirotq.recipe("method=rtn", "weight_only=[up]")}, ValueError,
        "layers gate, up share an input, but not all are weight-only", id="half-weight-only",
    ),
    pytest.param(
        {"batches": [(torch.full((3, 48), float("nan")),)]}, ValueError,
        "layer gate: its calibration input holds infinities or NaN", id="nan-input",
    ),
    pytest.param({"progress": after_first}, KeyboardInterrupt, "^$", id="ctrl-c-half-way"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "error", "message"), FAILURES)
def test_any_error_leaves_the_model_as_it_was(
    case: dict[str, Any], error: type[BaseException], message: str
) -> None:
    model = Mlp()
    case.get("change", lambda model: None)(model)
    before, modules = bytes_of(model.state_dict()), dict(model.named_modules())
    with pytest.raises(error, match=message):
        quantize(
            model,
            case.get("recipe", DIROTQ),
            case.get("batches", BATCHES),
            layout=case.get("layout", ALL),
            progress=case.get("progress"),
        )
    assert bytes_of(model.state_dict()) == before
    assert dict(model.named_modules()) == modules
    assert not hasattr(model, "dirotq_config")
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_statistics_must_cover_and_fit_the_layers() -> None:
    part = calibrate.collect(Mlp(), ["gate", "up"], BATCHES)
    with pytest.raises(ValueError, match="layer down: the calibration statistics do not cover it"):
        quantize(Mlp(), RTN, statistics=part, layout=ALL)
    with pytest.raises(ValueError, match="layer gate has 40 input features, its statistics 48"):
        quantize(Mlp(40), RTN, statistics=part, layout=Layout("t", (), ("gate", "up")))
    with pytest.raises(ValueError, match="layer up: has calibration statistics, but is not in"):
        quantize(Mlp(), RTN, statistics=part, layout=Layout("t", (), ("gate",)))


def test_a_quantized_model_is_not_quantized_again() -> None:
    model = Mlp()
    quantize(model, RTN, BATCHES)
    with pytest.raises(ValueError, match="has no Linear layer to quantize"):
        quantize(model, RTN, BATCHES)
    with pytest.raises(ValueError, match="gate is a QuantLinear, only Linear layers"):
        quantize(model, RTN, BATCHES, layout=ALL)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(4, 4)


def test_auto_layout_takes_the_repeated_blocks() -> None:
    assert list(layout_of(Blocks()).select(Blocks())) == ["blocks.0.0", "blocks.1.0"]
    assert list(layout_of(Mlp()).select(Mlp())) == ["gate", "up", "down"]
    with pytest.raises(ValueError, match="ReLU has no Linear layer to quantize"):
        layout_of(nn.ReLU())


@pytest.mark.parametrize(
    ("error", "expected"), [(0.0, float("inf")), (0.1, 20.0), (1.0, 0.0), (10.0, -20.0)], ids=str
)
def test_snr(error: float, expected: float) -> None:
    signal: Tensor = torch.ones(10, dtype=torch.float64)
    assert snr_db(signal, signal + error) == pytest.approx(expected)
    assert snr_db(torch.zeros(2), torch.ones(2)) == -float("inf")


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_linears_that_torch_never_calls_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).train()
    model = nn.ModuleDict({"layers": nn.ModuleList([layer])})
    model.forward = lambda x: layer(x)  # type: ignore[method-assign]
    report = quantize(model, RTN, [(torch.randn(2, 5, 16),)])
    assert [row.name for row in report.layers] == ["layers.0.linear1", "layers.0.linear2"]
    assert "layers.0.self_attn.out_proj is not reached" in caplog.text


class KeywordCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(input=x)


def test_linears_called_by_keyword_are_traced() -> None:
    assert [row.name for row in quantize(KeywordCall(), RTN, [(torch.randn(4, 8),)]).layers] == [
        "fc"
    ]
