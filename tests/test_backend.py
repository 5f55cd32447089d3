"""Backends: kernels match the simulated layers, what they do not fit is said, and nothing stored changes."""

import copy

import pytest
import torch
from torch import Tensor, nn

import dirotq
from dirotq.formats import FP4H
from dirotq.linear import QuantLinear

pytest.importorskip("triton")
from dirotq_kernels.transform_slack import transform_slack

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP8 = ("bits=w4a4_fp4h", "protect=fp8x2", "rank=16", "rounding=rtn")


class Block(nn.Module):
    """Two linears that share an input, and one behind them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, 48), nn.Linear(width, 48, bias=False)
        self.down = nn.Linear(48, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.gate(x) * torch.sigmoid(self.up(x)))


def build(*settings: str, width: int = 80) -> tuple[nn.Module, Tensor]:
    """A small quantized model with outliers in its input, and an input that calibration did not see."""
    torch.manual_seed(0)
    model = nn.ModuleList([Block(width)])[0].to(DEVICE)
    scale = torch.ones(width)
    scale[:3] = 20.0
    inputs = [torch.randn(64, width, device=DEVICE) * scale.to(DEVICE) for _ in range(4)]
    dirotq.quantize(model, dirotq.recipe(*settings), [(x,) for x in inputs[:3]])
    return model.to(torch.bfloat16), inputs[3].bfloat16()


def error(found: Tensor, wanted: Tensor) -> float:
    """Relative, in float64."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("bits", ["w4a4_fp4h", "w4a8_fp4h"])
@pytest.mark.parametrize("method", ["dirotq", "rtn", "rotation"])
def test_fp8_products_match_the_simulated_layers(bits: str, method: str) -> None:
    """Within a few roundings of bfloat16, 2^-9: of the output, of two terms of the protected part, and near ties."""
    # 64 low and 16 protected coordinates, or 96 low ones; 48 is no multiple of 32.
    width = 80 if method == "dirotq" else 96
    model, x = build(*FP8, f"bits={bits}", f"method={method}", "weight_only=[down]", width=width)
    with torch.no_grad():
        wanted = [layer(x) for layer in (model.gate, model.up)]
        chosen = dirotq.set_backend(model, "auto")
        assert (chosen["gate"], chosen["up"]) == ("fp8", "fp8")
        for layer, reference in zip((model.gate, model.up), wanted, strict=True):
            assert error(layer(x), reference) < 4 * 2.0**-9


@pytest.mark.parametrize("bits", ["w4a16_int4", "w4a16_fp4h"])
@pytest.mark.parametrize("rows", [1, 16, 17])
def test_weight_only_matches_the_simulated_layers(bits: str, rows: int) -> None:
    model, x = build("method=rtn", f"bits={bits}")
    with torch.no_grad():
        wanted = model.gate(x[:rows])
        assert set(dirotq.set_backend(model, "triton").values()) == {"weight_only"}
        assert error(model.gate(x[:rows]), wanted) < 2.0**-8


@pytest.mark.parametrize(
    "settings",
    [
        ("method=dirotq", "bits=w4a4_int4", "rank=16", "rounding=rtn"),
        ("method=dirotq", "bits=w4a4_nvfp4", "rank=16", "protect=int8", "rotation=dense"),
        ("method=svdquant", "bits=w4a4_int4", "rank=8", "rounding=rtn"),
        ("method=smoothquant", "bits=w8a8_int8"),
        ("method=rotation", "bits=w4a4_mxfp4"),
        ("method=smoothquant", "bits=w4a16_int4"),
    ],
    ids=lambda settings: "-".join(text.partition("=")[2] for text in settings[:2]),
)
def test_dequantized_products_match_the_simulated_layers(settings: tuple[str, ...]) -> None:
    """Within roundings to bfloat16, 2^-9: of both operands, of the protected part and of the output."""
    model, x = build(*settings)
    with torch.no_grad():
        wanted = [layer(x) for layer in (model.gate, model.up)]
        chosen = dirotq.set_backend(model, "auto")
        for layer, reference in zip((model.gate, model.up), wanted, strict=True):
            assert error(layer(x), reference) < 4 * 2.0**-9
    assert {text.partition(":")[0] for text in chosen.values()} == {"dequantized"}


def test_auto_says_why_a_layer_has_no_product_of_packed_weights() -> None:
    model, x = build("method=rtn", "bits=w4a4_int4", "rounding=rtn")
    chosen = dirotq.set_backend(model, "auto")
    assert all(text.startswith("dequantized: weights in Integer(") for text in chosen.values())
    source = model.gate.kernel.source
    assert model.up.kernel.source is source
    with torch.no_grad():
        model(x)
    assert source._kept is None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (("protect=int8",), "protected coordinates in Integer"),
        (("rotation=dense",), "a dense transform"),
        (("rank=12",), "68 low and 12 protected coordinates"),
        (("method=smoothquant",), "a diagonal transform"),
    ],
)
def test_what_does_not_fit_raises_by_name_and_changes_nothing(
    settings: tuple[str, ...], reason: str
) -> None:
    model, _ = build(*FP8, *settings)
    with pytest.raises(
        ValueError, match=f"backend=triton: layer .*: .*{reason}.*; by auto it is dequantized"
    ):
        dirotq.set_backend(model, "triton")
    assert all(m.kernel is None for m in model.modules() if isinstance(m, QuantLinear))


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend=cuda, allowed are reference, auto, triton"):
        dirotq.set_backend(nn.Linear(2, 2), "cuda")


def test_an_input_is_transformed_once_for_all_its_readers() -> None:
    model, x = build(*FP8)
    dirotq.set_backend(model, "triton")
    source = model.gate.kernel.source
    assert model.up.kernel.source is source
    made: list[int] = []
    original = source.compute
    source.compute = lambda rows: (made.append(1), original(rows))[1]
    with torch.no_grad():
        first = model(x)
        assert len(made) == 1
        assert source._kept is None
        assert torch.equal(model(x), first)


def test_an_input_is_kept_for_its_readers_by_kernels_alone() -> None:
    """With one of two layers simulated, nothing is left waiting for it."""
    model, x = build(*FP8)
    model.up.format = FP4H(group=64)
    chosen = dirotq.set_backend(model, "auto")
    assert chosen["gate"] == "fp8"
    assert chosen["up"].startswith("dequantized: weights in FP4H(group=64")
    model.gate(x)
    assert model.gate.kernel.source._kept is None


def test_scales_of_earlier_versions_have_no_kernel() -> None:
    model, _ = build(*FP8)
    model.gate.base *= 1.5
    assert "no powers of two" in dirotq.set_backend(model, "auto")["gate"]
    before = model.up.kernel
    with pytest.raises(ValueError, match="backend=triton: layer gate: rows over scales"):
        dirotq.set_backend(model, "triton")
    assert model.up.kernel is before


def test_nothing_stored_changes_and_the_definition_comes_back() -> None:
    model, x = build(*FP8)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        wanted = model(x)
        dirotq.set_backend(model, "triton")
        assert model.state_dict().keys() == before.keys()
        model.half().to(torch.bfloat16)
        assert model.gate.kernel.row_scales.dtype == torch.float32
        dirotq.set_backend(model, "reference")
        assert torch.equal(model(x), wanted)


def test_all_inputs_share_the_largest_slack() -> None:
    """A float that differed would make torch.compile build a graph for every block of a model."""
    model, _ = build(*FP8)
    dirotq.set_backend(model, "triton")
    sources = (model.gate.kernel.source, model.down.kernel.source)
    own = [transform_slack(source.source.transform) for source in sources]
    assert own[0] != own[1]
    assert [source.slack for source in sources] == [max(own)] * 2


@pytest.mark.parametrize("bits", ["w4a4_fp4h", "w4a4_int4", "w4a4_nvfp4"])
def test_compiles_to_one_graph(bits: str) -> None:
    model, x = build(*FP8, f"bits={bits}")
    dirotq.set_backend(model, "auto")
    with torch.no_grad():
        wanted = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), wanted)
