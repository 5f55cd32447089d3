"""What holds for every method of conf/method and every bits of conf/bits, found by themselves."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

import dirotq
from dirotq.config import config_folder
from dirotq.linear import QuantLinear
from dirotq.quantize import Report, quantize, snr_db
from dirotq.recipes import Recipe
from tests.support.decode import decode
from tests.support.plain import Mlp, bytes_of, outlier_rows

WIDTH, HIDDEN, ROWS = 160, 96, 192


def stems(group: str) -> list[str]:
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


METHODS, BITS = stems("method"), stems("bits")
QUANTIZING = [name for name in METHODS if dirotq.recipe(f"method={name}").method.quantizes]
# Settings that take another path through the same method.
QUANTIZING += [
    "dirotq,rotation=dense",
    "dirotq,basis=joint,protect=int8,method.transform_bits=8",
    "rtn,rounding=gptq",
]
every_method = pytest.mark.parametrize("method", METHODS)
every_pair = pytest.mark.parametrize(
    ("method", "bits"), [(method, bits) for method in QUANTIZING for bits in BITS]
)


@cache  # composing takes longer than quantizing
def recipe(method: str, bits: str = "w4a4_int4", seed: int = 0) -> Recipe:
    """`method` may carry further overrides after commas."""
    return dirotq.recipe(*f"method={method}".split(","), f"bits={bits}", f"seed={seed}")


def quantized(chosen: Recipe) -> tuple[Mlp, Report]:
    model = Mlp(WIDTH, HIDDEN).eval()
    report = quantize(model, chosen, [(outlier_rows(ROWS, WIDTH),)])
    return model, report


@cache
def shared(method: str, bits: str) -> tuple[Mlp, Report]:
    """Quantized once for all tests that only look at it."""
    return quantized(recipe(method, bits))


def test_there_are_methods_and_bits() -> None:
    assert {"fp16", "rtn", "dirotq"} <= set(METHODS)
    assert {"w16a16", "w4a4_int4"} <= set(BITS)


@pytest.mark.parametrize("method", ["fp16", *QUANTIZING])
def test_identity_format_leaves_the_output_unchanged(method: str) -> None:
    model, _ = quantized(recipe(method, "w16a16"))
    x = outlier_rows(32, WIDTH, seed=1)
    expected = Mlp(WIDTH, HIDDEN).double()(x.double()).detach()
    error = (model(x).detach().double() - expected).norm() / expected.norm()
    # Three float32 products over at most 160 terms, their operands mixed and folded back: some 2^-24 * sqrt(160).
    assert error.item() < 3e-6
    replaced = [name for name, m in model.named_modules() if isinstance(m, QuantLinear)]
    assert replaced == (["gate", "up", "down"] if method in QUANTIZING else [])


@every_pair
def test_same_seed_same_bytes(method: str, bits: str) -> None:
    first, report = shared(method, bits)
    torch.manual_seed(1234)  # global state must not matter
    torch.rand(7)
    second, again = quantized(recipe(method, bits))
    assert bytes_of(first.state_dict()) == bytes_of(second.state_dict())
    assert report.layers == again.layers


@every_pair
def test_checkpoint_round_trip_is_bitwise(method: str, bits: str, tmp_path: Path) -> None:
    model, _ = shared(method, bits)
    dirotq.save(model, tmp_path / "saved")
    loaded = Mlp(WIDTH, HIDDEN, seed=5).eval()
    dirotq.load(loaded, tmp_path / "saved")
    assert bytes_of(loaded.state_dict()) == bytes_of(model.state_dict())
    for rows in (16, 1):  # a single row takes another path through the matrix product
        x = outlier_rows(rows, WIDTH, seed=2)
        assert torch.equal(loaded(x), model(x))


@every_pair
def test_packed_tensors_decode_to_the_simulated_weight(method: str, bits: str) -> None:
    model, _ = shared(method, bits)
    for layer in (model.gate, model.up, model.down):
        assert isinstance(layer, QuantLinear)
        fmt, width = layer.format, layer.input.transform.low_width
        if fmt is None:
            assert layer.codes is None
            continue
        expected = decode(fmt, layer.codes, layer.scales, layer.base, width)
        assert torch.equal(layer.low_weight(), expected)


@every_pair
def test_effective_bits_are_the_bytes_stored(method: str, bits: str) -> None:
    model, report = shared(method, bits)
    stored = {
        name: tensor.numel() * tensor.element_size() * 8
        for name, tensor in model.state_dict().items()
        if not name.startswith("norm.") and not name.endswith("bias")
    }
    weights = WIDTH * HIDDEN * 3
    # Sums of the same few integers in another order.
    assert report.weight_bits == pytest.approx(sum(stored.values()) / weights, rel=1e-12)
    spread = sum(row.effective_bits * row.in_features * row.out_features for row in report.layers)
    assert spread == pytest.approx(sum(stored.values()), rel=1e-12)


@every_pair
def test_nothing_outside_the_layout_is_touched(method: str, bits: str) -> None:
    before = Mlp(WIDTH, HIDDEN)
    model, _ = shared(method, bits)
    assert bytes_of(model.norm.state_dict()) == bytes_of(before.norm.state_dict())
    assert torch.equal(model.gate.bias, before.gate.bias)
    assert model.up.bias is None
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert not model.training


@every_pair
def test_report_has_a_row_a_layer(method: str, bits: str) -> None:
    model, report = shared(method, bits)
    shapes = {"gate": (WIDTH, HIDDEN), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
    assert {r.name: (r.in_features, r.out_features) for r in report.layers} == shapes
    assert [r.input for r in report.layers] == ["gate", "gate", "down"]
    for row in report.layers:
        layer = model.get_submodule(row.name)
        assert row.rank == layer.input.transform.high
        assert not row.fallback
        assert (row.act_snr_db == float("inf")) == (layer.input.act is None)
        assert row.output_snr_db > 5  # dB; 4 bits and outliers in a plain RTN leave some 10
    assert report.seconds > 0


# dB over rounding to nearest. Smoothing moves outlying channels into the weight, but not directions: measured 2.0.
MARGINS = {"smoothquant": 1.5}


@pytest.mark.parametrize("method", [name for name in QUANTIZING if not name.startswith("rtn")])
def test_outliers_hurt_less_than_rounding_to_nearest(method: str) -> None:
    """Planted outliers, INT4 on both sides: at least 3 dB, unless the method's own margin is another."""
    x = outlier_rows(256, WIDTH, seed=3)
    reference = Mlp(WIDTH, HIDDEN)(x)
    nearest, ours = (snr_db(reference, quantized(recipe(m))[0](x)) for m in ("rtn", method))
    assert ours >= nearest + MARGINS.get(method.partition(",")[0], 3)


@every_method
def test_recipe_survives_json_and_names_the_method(method: str) -> None:
    import json

    fields = recipe(method).to_dict()
    assert json.loads(json.dumps(fields)) == fields
    assert fields["method"]["name"] == method
    assert fields["bits"] == "w4a4_int4"


@every_method
def test_a_single_linear_is_a_model(method: str) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 8))
    report = quantize(model, recipe(method), [(outlier_rows(16, WIDTH),)])
    assert len(report.layers) == (method in QUANTIZING)
    assert model(outlier_rows(2, WIDTH)).shape == (2, 8)
