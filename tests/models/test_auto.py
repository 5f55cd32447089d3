"""The layout found from structure, on the true classes of many architectures."""

import re

import diffusers
import pytest
import torch
from torch import nn

import dirotq
from dirotq.models import auto, coverage, flux
from tests.support.architectures import ARGUMENTS, batch, build, output

# What stands in the blocks but must stay 16-bit input, by architecture: names within a block.
MODULATIONS = {
    "FluxTransformer2DModel": {"norm1.linear", "norm1_context.linear", "norm.linear"},
    "SanaTransformer2DModel": set(),
    "SD3Transformer2DModel": {"norm1.linear", "norm1_context.linear"},
    "WanTransformer3DModel": set(),
    "QwenImageTransformer2DModel": {"img_mod.1", "txt_mod.1"},
    "ZImageTransformer2DModel": {"adaLN_modulation.0"},
    "Flux2Transformer2DModel": set(),
    "Lumina2Transformer2DModel": {"norm1.linear"},
    "SanaVideoTransformer3DModel": set(),
}
BLOCK = re.compile(r"(\w+_blocks|blocks|layers|\w+_refiner)\.\d+\.")


@pytest.mark.parametrize("name", ARGUMENTS)
def test_blocks_are_quantized_and_the_rest_is_kept(name: str) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    model = build(name)
    expected = output(model, name)
    layout = auto.layout(model)
    found = coverage(model, layout)
    for layer, kind in found.items():
        assert (kind == "kept") == (BLOCK.match(layer) is None), layer
    weight_only = {layer for layer, kind in found.items() if kind == "weight-only"}
    assert {BLOCK.sub("", layer) for layer in weight_only} == MODULATIONS[name]
    report = dirotq.quantize(model, dirotq.recipe("method=rtn"), [batch(name)], layout=layout)
    assert {row.name for row in report.layers} == {k for k, v in found.items() if v != "kept"}
    result = output(model, name)
    assert result.shape == expected.shape
    assert torch.isfinite(result).all()
    assert not torch.equal(result, expected)


def test_auto_differs_from_flux_s_own_layout_in_the_split_alone() -> None:
    model = build("FluxTransformer2DModel")
    own, found = coverage(model, flux.LAYOUT), coverage(model, auto.layout(model))
    joined = {re.sub(r"\.parts\.\d$", "", layer): kind for layer, kind in own.items()}
    assert joined == found


def test_convolutions_of_blocks_become_linears() -> None:
    model = build("SanaVideoTransformer3DModel")
    found = coverage(model, auto.layout(model))
    assert found["transformer_blocks.1.ff.conv_inverted.linear"] == "quantized"
    assert found["transformer_blocks.1.ff.conv_point.linear"] == "quantized"


class Parts(nn.Module):
    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)


def listed(*items: nn.Module) -> nn.ModuleList:
    return nn.ModuleList(items)


def block() -> nn.Module:
    return Parts(fc=nn.Linear(4, 4), time_mod=nn.Linear(4, 4))


# Kinds of layers, by name; what is not in here is kept.
STRUCTURES = [
    pytest.param(
        Parts(embed=nn.Linear(4, 4), blocks=listed(block(), block()), head=nn.Linear(4, 4)),
        {
            f"blocks.{index}.{name}": kind
            for index in range(2)
            for name, kind in (("fc", "quantized"), ("time_mod", "weight-only"))
        },
        id="blocks",
    ),
    pytest.param(
        Parts(attn=Parts(to_out=listed(nn.Linear(4, 4), nn.Dropout())), fc=nn.Linear(4, 4)),
        {"attn.to_out.0": "quantized", "fc": "quantized"}, id="a-list-of-unlike-modules-is-no-blocks",
    ),
    pytest.param(
        Parts(caption_projection=listed(nn.Linear(4, 4)), blocks=listed(nn.Linear(4, 4))),
        {"blocks.0": "quantized"}, id="lists-of-embedders",
    ),
    pytest.param(
        Parts(norm=nn.Linear(4, 4), time_embed=nn.Linear(4, 4)), {"norm": "quantized"}, id="no-blocks"
    ),
    pytest.param(
        Parts(blocks=listed(nn.Conv2d(4, 4, 1)), fc=nn.Linear(4, 4), conv=nn.Conv2d(4, 4, 1)),
        {"blocks.0.linear": "quantized"}, id="convolutions-alone",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "expected"), STRUCTURES)
def test_structures(model: nn.Module, expected: dict[str, str]) -> None:
    found = coverage(model, auto.layout(model))
    assert {name: kind for name, kind in found.items() if kind != "kept"} == expected


@pytest.mark.parametrize(
    "model", [nn.ReLU(), Parts(embedder=nn.Linear(4, 4))], ids=["none", "kept"]
)
def test_nothing_to_quantize(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="has no Linear layer to quantize"):
        auto.layout(model)
