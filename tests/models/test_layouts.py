"""The layouts of FLUX and SANA on the true classes: exactly which layers, and what quantizing them gives."""

import re

import pytest
import torch
from torch import nn

import dirotq
from dirotq import calibrate
from dirotq.models import Layout, coverage, flux, layout_of, pixart, rewrite, sana
from dirotq.quantize import snr_db
from tests.support.architectures import batch, build, output, plant_outliers
from tests.support.tiny import build_transformer

FLUX, SANA = "FluxTransformer2DModel", "SanaTransformer2DModel"
LAYOUTS = [flux.LAYOUT, pixart.LAYOUT, sana.LAYOUT]


def instance(layout: Layout) -> nn.Module:
    (name,) = layout.classes
    return build_transformer() if name == "PixArtTransformer2DModel" else build(name)


def expand(prefix: str, *names: str) -> set[str]:
    return {f"{prefix}.{block}.{name}" for block in range(2) for name in names}


def kinds(model: nn.Module) -> dict[str, set[str]]:
    found = coverage(model)
    return {
        kind: {name for name, its in found.items() if its == kind}
        for kind in ("quantized", "weight-only", "kept")
    }


def test_flux_layers() -> None:
    attention = [f"attn.to_{letter}" for letter in "qkv"]
    assert kinds(build(FLUX)) == {
        "quantized": expand(
            "transformer_blocks", *attention, "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
            "attn.add_v_proj", "attn.to_add_out", "ff.net.0.proj", "ff.net.2",
            "ff_context.net.0.proj", "ff_context.net.2",
        )
        | expand(
            "single_transformer_blocks", *attention, "proj_mlp", "proj_out.parts.0",
            "proj_out.parts.1",
        ),
        "weight-only": expand("transformer_blocks", "norm1.linear", "norm1_context.linear")
        | expand("single_transformer_blocks", "norm.linear"),
        "kept": {
            "x_embedder", "context_embedder", "norm_out.linear", "proj_out",
            *(
                f"time_text_embed.{part}_embedder.linear_{number}"
                for part in ("timestep", "guidance", "text")
                for number in (1, 2)
            ),
        },
    }  # fmt: skip


def test_sana_layers() -> None:
    assert kinds(build(SANA)) == {
        "quantized": expand(
            "transformer_blocks", "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0",
            "attn2.to_q", "attn2.to_out.0", "ff.conv_inverted.linear", "ff.conv_point.linear",
        ),
        "weight-only": set(),
        "kept": expand("transformer_blocks", "attn2.to_k", "attn2.to_v")
        | {
            "patch_embed.proj", "time_embed.emb.timestep_embedder.linear_1",
            "time_embed.emb.timestep_embedder.linear_2", "time_embed.linear",
            "caption_projection.linear_1", "caption_projection.linear_2", "proj_out",
        },
    }  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_pattern_names_a_layer(layout: Layout) -> None:
    model = instance(layout)
    assert layout_of(model) is layout
    with rewrite.applied(model, layout):
        for pattern in (*layout.quantize, *layout.weight_only):
            assert layout.matching(model, pattern)


def test_coverage_leaves_the_model_as_it_was() -> None:
    model = build(FLUX)
    modules = dict(model.named_modules())
    coverage(model)
    assert dict(model.named_modules()) == modules


def test_what_variants_lack_is_optional() -> None:
    model = build(SANA)
    for block in model.transformer_blocks:
        block.attn2 = None
    assert not any("attn2" in name for name in coverage(model))
    strict = Layout("mine", (), sana.LAYOUT.quantize, pointwise=sana.LAYOUT.pointwise)
    with pytest.raises(
        ValueError, match=r"layout mine: no layer of Sana.* matches '.*attn2.*to_q'"
    ):
        coverage(model, strict)


def test_optional_names_one_of_the_patterns() -> None:
    with pytest.raises(ValueError, match="layout mine: optional='b', allowed are its own patterns"):
        Layout("mine", (), ("a",), optional=("b",))


@pytest.mark.parametrize("name", [FLUX, SANA])
def test_inputs_are_found_by_tracing(name: str) -> None:
    model = build(name)
    layout = layout_of(model)
    with rewrite.applied(model, layout):
        groups = calibrate.trace_inputs(model, layout.select(model), batch(name))
    shared = {members for members in groups if len(members) > 1}
    if name == FLUX:
        expected = [
            [("proj_mlp", "attn.to_q", "attn.to_k", "attn.to_v")],
            [
                ("attn.to_q", "attn.to_k", "attn.to_v"),
                ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            ],
        ]
        blocks = ["single_transformer_blocks", "transformer_blocks"]
    else:
        expected, blocks = [[("attn1.to_q", "attn1.to_k", "attn1.to_v")]], ["transformer_blocks"]
    assert shared == {
        tuple(f"{block}.{index}.{leaf}" for leaf in members)
        for block, groups_of in zip(blocks, expected, strict=True)
        for members in groups_of
        for index in range(2)
    }


def test_halves_of_a_split_input_have_their_own_statistics() -> None:
    model, seen = build(FLUX), []
    block = model.single_transformer_blocks[0]
    handle = block.proj_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output(model, FLUX, seed=3)
    handle.remove()
    whole = seen[0].flatten(0, 1)
    names = [f"single_transformer_blocks.0.proj_out.parts.{part}" for part in (0, 1)]
    with rewrite.applied(model, flux.LAYOUT):
        found = calibrate.collect(model, names, [batch(FLUX, 3)])
    assert [entry.members for entry in found] == [(name,) for name in names]
    assert [entry.width for entry in found] == [64, 256]
    for entry, part in zip(found, whole.split([64, 256], dim=1), strict=True):
        # The same float32 products; only what runs before them may differ by rounding.
        expected = (part.T @ part).double() / part.shape[0]
        torch.testing.assert_close(entry.moment, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [FLUX, SANA])
def test_only_the_layout_s_layers_change(name: str) -> None:
    model, wanted = build(name), kinds(build(name))
    before = build(name).state_dict()
    report = dirotq.quantize(model, dirotq.recipe("method=rtn"), [batch(name)])
    rows = {row.name: row for row in report.layers}
    assert set(rows) == wanted["quantized"] | wanted["weight-only"]
    assert {n for n, row in rows.items() if row.act_snr_db == float("inf")} == wanted["weight-only"]
    after = model.state_dict()
    layers = {re.sub(r"\.(parts\.\d+|linear)$", "", n) for n in rows} | set(rows)
    for tensor_name, tensor in before.items():
        if tensor_name.rpartition(".")[0] not in layers:
            assert torch.equal(after[tensor_name], tensor), tensor_name
    assert torch.isfinite(output(model, name)).all()


def test_dirotq_beats_rtn_on_flux_with_outliers() -> None:
    snrs = {}
    for method in ("rtn", "dirotq"):
        model = build(FLUX)
        plant_outliers(model)
        expected = output(model, FLUX)
        options = ["rank=8"] if method == "dirotq" else []
        recipe = dirotq.recipe(f"method={method}", *options)
        dirotq.quantize(model, recipe, [batch(FLUX, seed) for seed in range(4)])
        snrs[method] = snr_db(expected, output(model, FLUX))
    # Seen: 23.6 dB, and 34 dB and more.
    assert snrs["dirotq"] > snrs["rtn"] + 6


def test_attention_outputs_have_heads() -> None:
    model = build(FLUX)
    layout = layout_of(model)
    with rewrite.applied(model, layout):
        heads = {name: layout.heads_of(model, name) for name in layout.select(model)}
    several = {name for name, count in heads.items() if count > 1}
    assert several == {
        name for name in heads if name.endswith(("to_out.0", "to_add_out", "proj_out.parts.0"))
    }
