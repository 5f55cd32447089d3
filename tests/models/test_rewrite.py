"""Rewriting keeps the function, can be undone, and is repeated when a checkpoint is loaded."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dirotq
from dirotq.checkpoint import CheckpointError
from dirotq.linear import QuantLinear
from dirotq.models import Layout, layout_of, rewrite
from dirotq.models.rewrite import PointwiseLinear, SplitLinear
from tests.support.architectures import batch, build, output
from tests.support.plain import bytes_of

NAMES = ["FluxTransformer2DModel", "SanaTransformer2DModel"]
RTN = dirotq.recipe("method=rtn")


@pytest.mark.parametrize("bias", [True, False])
def test_split_linear_is_the_linear(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 5, bias=bias).double()
    split = SplitLinear.of(linear, [4, 12, 8])
    x = torch.randn(2, 3, 24, dtype=torch.float64)
    # Sums of 24 float64 products in another order.
    torch.testing.assert_close(split(x), linear(x), rtol=0, atol=1e-14)
    assert [part.in_features for part in split.parts] == [4, 12, 8]
    assert [part.bias is not None for part in split.parts] == [False, False, bias]
    memory = linear.weight.untyped_storage().data_ptr()
    assert all(part.weight.untyped_storage().data_ptr() == memory for part in split.parts)


@pytest.mark.parametrize("shape", [(2, 6, 3, 5), (6, 3, 5)], ids=["batched", "single"])
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_linear_is_the_convolution(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 7, 1, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64)
    # Sums of 6 float64 products in another order.
    torch.testing.assert_close(PointwiseLinear.of(conv)(x), conv(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 3}, {"stride": 2}, {"groups": 2}, {"padding": 1}],
    ids=lambda options: next(iter(options)),
)
def test_other_convolutions_are_not_pointwise(options: dict[str, int]) -> None:
    conv = nn.Conv2d(4, 4, **{"kernel_size": 1, **options})
    assert not rewrite.is_pointwise(conv)
    with pytest.raises(ValueError, match="layer 0 is no 1x1 convolution: Conv2d"):
        rewrite.redo(nn.Sequential(conv), {"0": ["pointwise"]})


@pytest.mark.parametrize("name", NAMES)
def test_a_rewritten_model_computes_the_same(name: str) -> None:
    model = build(name).double()
    inputs = {
        key: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in batch(name).items()
    }
    with torch.no_grad():
        expected = model(**inputs)[0]
        record = rewrite.apply(model, layout_of(model))
        found = model(**inputs)[0]
    assert record
    # float64 but for timestep embeddings, which diffusers rounds to float32 in both alike.
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_undone_is_the_same_objects(name: str) -> None:
    model = build(name)
    modules, state = dict(model.named_modules()), bytes_of(model.state_dict())
    with rewrite.applied(model, layout_of(model)) as record:
        assert all(model.get_submodule(key) is not modules[key] for key in record)
    assert dict(model.named_modules()) == modules
    assert bytes_of(model.state_dict()) == state


def test_records_are_json_and_can_be_repeated() -> None:
    model, other = build(NAMES[0]), build(NAMES[0])
    record = rewrite.apply(model, layout_of(model))
    assert record == {
        f"single_transformer_blocks.{block}.proj_out": ["split", [64, 256]] for block in range(2)
    }
    rewrite.redo(other, json.loads(json.dumps(record)))
    assert bytes_of(other.state_dict()) == bytes_of(model.state_dict())


def interrupt(items: Any) -> Any:
    yield from items[:5]
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_quantization_leaves_the_same_objects(name: str) -> None:
    model = build(name)
    modules = dict(model.named_modules())
    with pytest.raises(KeyboardInterrupt):
        dirotq.quantize(model, RTN, [batch(name)], progress=interrupt)
    assert dict(model.named_modules()) == modules
    assert not hasattr(model, "dirotq_config")


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(8, 4), nn.LayerNorm(8)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ((("fc", ("out_features", 4)),), r"widths \[4, 4, 0\]: allowed are positive integers that"),
        ((("fc", (9,)),), r"layer fc cannot be split into widths \[9, -1\].* that sum to 8"),
        (
            (("fc", (2,)), ("norm", (4,))),
            "layer norm is a LayerNorm, only Linear layers can be spl",
        ),
        ((("fc", (2,)), ("gone", (4,))), "layout mine: no layer of Concatenated matches 'gone'"),
    ],
    ids=["nothing-left", "too-wide", "no-linear", "missing"],
)
def test_layouts_that_do_not_fit(splits: Any, message: str) -> None:
    model = Concatenated()
    fc = model.fc
    with pytest.raises(ValueError, match=message):
        dirotq.quantize(model, RTN, layout=Layout("mine", (), ("fc.parts.0",), splits=splits))
    assert model.fc is fc


@functools.cache
def quantized(name: str) -> Any:
    model = build(name)
    dirotq.quantize(model, dirotq.recipe("method=dirotq", "rank=8"), [batch(name)])
    return model


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_are_bitwise(name: str, tmp_path: Path) -> None:
    model = quantized(name)
    dirotq.save(model, tmp_path / "plain")
    loaded = build(name)
    dirotq.load(loaded, tmp_path / "plain")
    model.save_pretrained(tmp_path / "diffusers")
    from_pretrained = type(model).from_pretrained(tmp_path / "diffusers")
    for other in (loaded, from_pretrained):
        assert bytes_of(other.state_dict()) == bytes_of(model.state_dict())
        assert torch.equal(output(other, name), output(model, name))
        assert dirotq.checkpoint.quantization_config(other) == (
            dirotq.checkpoint.quantization_config(model)
        )
    from_pretrained.save_pretrained(tmp_path / "again")
    file = "diffusion_pytorch_model.safetensors"
    first, again = (tmp_path / folder / file for folder in ("diffusers", "again"))
    assert first.read_bytes() == again.read_bytes()


DAMAGE = [
    ({"nowhere": ["pointwise"]}, "rewrites: FluxTransformer2DModel has no layer 'nowhere'"),
    ({"proj_out": ["fold"]}, r"rewrites: proj_out=\['fold'\], allowed are \['split', \[widths\]\]"),
    ({"proj_out": ["split", [60, 5]]}, "layer proj_out cannot be split .* that sum to 64"),
    ({"proj_out": ["split", ["a", 1]]}, r"layer proj_out cannot be split into widths \['a', 1\]"),
    ({"proj_out": ["pointwise"]}, "layer proj_out is no 1x1 convolution: Linear"),
    (["proj_out"], "rewrites is a list, allowed is a mapping"),
    ({}, "quantization_config: .*parts"),
]


@pytest.mark.parametrize(("rewrites", "message"), DAMAGE)
def test_damaged_rewrites_are_named_and_undone(tmp_path: Path, rewrites: Any, message: str) -> None:
    dirotq.save(quantized(NAMES[0]), tmp_path / "saved")
    config = tmp_path / "saved" / "config.json"
    document = json.loads(config.read_text())
    known = document["quantization_config"].pop("rewrites")
    if isinstance(rewrites, dict) and rewrites:
        rewrites = {**known, **rewrites}
    document["quantization_config"]["rewrites"] = rewrites
    config.write_text(json.dumps(document))
    loaded = build(NAMES[0])
    modules = dict(loaded.named_modules())
    with pytest.raises(CheckpointError, match=message):
        dirotq.load(loaded, tmp_path / "saved")
    assert dict(loaded.named_modules()) == modules


def test_a_part_that_stays_at_16_bits_is_saved(tmp_path: Path) -> None:
    name = NAMES[0]
    block = r"single_transformer_blocks\.\d+\.proj_out"
    model = build(name)
    layout = Layout("mine", (), (block + r"\.parts\.1",), splits=((block, ("out_features",)),))
    dirotq.quantize(model, RTN, [batch(name)], layout=layout)
    first, second = model.single_transformer_blocks[0].proj_out.parts
    assert (type(first), type(second)) == (nn.Linear, QuantLinear)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert bytes_of(loaded.state_dict()) == bytes_of(model.state_dict())
