"""Benches in a tiny configuration: what is timed, what is written, and models built of random numbers."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

from dirotq.backend import FP8Linear
from dirotq.calibrate import trace_inputs
from dirotq.linear import QuantLinear
from dirotq.models import layout_of, rewrite
from dirotq.report import benches
from experiments.bench import building, offloading
from experiments.bench.architectures import Architecture
from experiments.bench.building import Precision, Source
from experiments.bench.record import Recorder
from experiments.bench.settings import build
from tests.support.architectures import ARGUMENTS

CPU = torch.device("cpu")
REPOSITORY = Path(__file__).parents[2]
ON_GPU = torch.cuda.is_available()
HEADS = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2}
TINY = {
    "FluxTransformer2DModel": ARGUMENTS["FluxTransformer2DModel"],
    "PixArtTransformer2DModel": {
        **HEADS, "sample_size": 8, "cross_attention_dim": 64, "caption_channels": 16,
        "use_additional_conditions": False,
    },
    "SanaTransformer2DModel": ARGUMENTS["SanaTransformer2DModel"],
}  # fmt: skip
FLUX = {**TINY["FluxTransformer2DModel"], "num_layers": 1, "num_single_layers": 1}
SMALL = (
    "++bench.config=" + re.sub(r'"', "", json.dumps(FLUX)),
    "bench.text=8",
)
LITTLE = ("+bench.ceiling=[[16,16,16]]", "+bench.copy_bytes=4096", "bench.repetitions=1")


def tiny(name: str) -> Architecture:
    return Architecture(name, TINY[name], text=6)


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """The document of a bench, on the GPU where there is one."""
    out = folder / "out.json"
    build([*overrides, f"out={out}", "commit=0123456789ab"]).run()
    content: dict[str, Any] = json.loads(out.read_text())
    assert content["command"].startswith("python -m experiments.bench bench=")
    assert str(folder) not in out.read_text()
    assert content["env"]["git"] == "0123456789ab"
    assert content["weights"] == "random"
    return content


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole models without kernels on a CPU: Triton's interpreter takes a second a layer."""
    if not ON_GPU:
        monkeypatch.setattr(building, "set_backend", lambda *_: {"layer": "reference"})


@pytest.fixture
def kernels() -> None:
    pytest.importorskip("triton")
    for module in ("rotate_quantize", "fp8_linear", "weight_only"):
        pytest.importorskip(f"dirotq_kernels.{module}")


@pytest.mark.parametrize("name", sorted(TINY))
def test_inputs_are_found_without_numbers(name: str) -> None:
    """A forward on the meta device gives the groups that a real one does."""
    architecture = tiny(name)
    model = architecture.instance().eval()
    layout = layout_of(model)
    rewrite.apply(model, layout)
    batch = architecture.batch(1, 64, CPU, torch.float32)
    assert building.groups(architecture) == trace_inputs(model, layout.select(model), batch)


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_model_is_built_quantized(name: str, simulated: None) -> None:
    architecture = tiny(name)
    model, _ = building.model_of(architecture, Precision.of("w4a4_fp4h:32"), Source(CPU, 0))
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    original = architecture.instance()
    layout = layout_of(original)
    rewrite.apply(original, layout)
    selected = layout.select(original)
    assert layers.keys() == selected.keys()
    for layer, acts in selected.items():
        assert layers[layer].input.transform.high == (32 if acts else 0)
        linear = original.get_submodule(layer)
        assert layers[layer].out_features == linear.out_features
        assert (layers[layer].bias is None) == (linear.bias is None)
    state = model.state_dict()
    kept = {key: value.shape for key, value in original.state_dict().items() if key in state}
    assert kept == {key: state[key].shape for key in kept}
    assert not any(tensor.is_meta for tensor in state.values())
    with torch.no_grad():
        output = model(**architecture.batch(2, 64, CPU, torch.bfloat16))[0]
    assert output.isfinite().all()
    assert building.stored_bytes(model) < sum(2 * v.numel() for v in original.state_dict().values())


def test_what_subclasses_store_is_counted() -> None:
    module = torch.nn.Linear(4, 3, bias=False)
    parts = TwoTensor(torch.zeros(3, 4), torch.zeros(3, 4))
    module.weight = torch.nn.Parameter(parts, requires_grad=False)
    module.register_buffer("same", parts.a)
    assert building.stored_bytes(module) == 2 * 12 * 4


def test_compiled_blocks_share_a_graph(kernels: None) -> None:
    """torch.compile makes a graph for every number that differs between blocks, and there is a limit to them."""
    device = torch.device("cuda" if ON_GPU else "cpu")
    architecture = Architecture("FluxTransformer2DModel", FLUX, 8)
    model, by = building.model_of(architecture, Precision.of("w4a4_fp4h:32"), Source(device, 0))
    assert set(by.values()) == {"fp8", "weight_only"}
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    sources = {layer.kernel.source for layer in layers if isinstance(layer.kernel, FP8Linear)}
    assert len(sources) > 5
    assert len({source.slack for source in sources}) == 1


def test_fp8_takes_the_linears_whose_inputs_are_quantized() -> None:
    model = tiny("FluxTransformer2DModel").instance()
    names = building.block_linears(model, layout_of(model))
    assert "single_transformer_blocks.0.proj_out" in names  # whole, as torchao has it
    assert "transformer_blocks.1.ff.net.2" in names
    assert not any("norm" in name or "embed" in name for name in names)
    assert "parts" not in " ".join(name for name, _ in model.named_modules())


def test_layers(tmp_path: Path, kernels: None) -> None:
    ours = '"w4a4_fp4h:32",w4a4_fp4h,w4a16_int4,"w4a4_int4:32","w4a4_fp4h:hadamard"'
    case = f"{{tokens:[17],shapes:[[64,16]],layers:[bf16,fp8,{ours}]}}"
    few = "{tokens:[1],shapes:[[32,16]],layers:[bf16,w4a16_fp4h]}"
    content = run(tmp_path, "bench=layer_flux", f"bench.cases=[{case},{few}]", *LITTLE)
    wide, short = content["rows"]
    assert wide["name"] == "17x64x16"
    found = {row["layer"]: row for row in wide["layers"]}
    if ON_GPU:
        assert not wide["failed_layers"]
        assert all(row["graph"]["median_ms"] > 0 for row in found.values())
    else:
        assert wide["failed_layers"] == {"fp8": "ValueError: fp8 rows on cpu, allowed is a GPU"}
        # No FP8 product here, so no rate.
        assert found["w4a4_fp4h"]["bound_ms"] is None
    wanted = ["bf16", *(["fp8"] if ON_GPU else []), *(name.strip('"') for name in ours.split(","))]
    assert list(found) == wanted
    assert found["w4a4_fp4h:32"]["by"] == "fp8"
    assert found["w4a16_int4"]["by"] == "weight_only"
    for row in found.values():
        assert row["error"] < 4 * 2.0**-9  # a few roundings of bfloat16
        assert row["eager"]["repetitions"] == 1
        assert row["speed_eager"] > 0
    assert list(wide["parts"]["w4a4_fp4h:32"]) == ["rotate_quantize", "unpack_e4m3", "fp8_linear"]
    assert list(wide["parts"]["w4a4_fp4h"]) == ["quantize_rows", "unpack_e4m3", "fp8_linear"]
    assert found["w4a4_int4:32"]["by"] == "dequantized"
    assert next(iter(wide["parts"]["w4a4_int4:32"])) == "rotate"
    assert next(iter(wide["parts"]["w4a4_fp4h:hadamard"])) == "hadamard_quantize"
    assert found["bf16"]["bound_ms"] > 0
    assert short["layers"][1]["pass_bytes"] == 0  # packed weights are read by the product
    text = benches.layer_speeds(tmp_path / "out.json")
    assert "| 17 x 64 x 16 |" in text


def test_models(tmp_path: Path, simulated: None) -> None:
    runs = "eager,compiled,compiled+graph,eager+graph" if ON_GPU else "eager"
    settings = ('bench.precisions=[bf16,torchao,"w4a4_fp4h:32"]', f"bench.runs=[{runs}]")
    few = ("bench.size=[64]", "bench.batch=[1]", "bench.repetitions=1")
    content = run(tmp_path, "bench=flux", *SMALL, *settings, *few)
    rows = {row["name"]: row for row in content["rows"] if "failed" not in row}
    ours = [row for row in rows.values() if row["precision"] == "w4a4_fp4h:32"]
    assert len(ours) == len(runs.split(","))
    assert all(row["finite"] for row in rows.values())
    kinds = {"fp8": 18, "weight_only": 3} if ON_GPU else {"reference": 1}
    assert ours[0]["linears"] == kinds
    assert ours[0]["weight_bytes"] < rows["bf16 eager 64 b1"]["weight_bytes"]
    text = benches.model_speeds(tmp_path / "out.json")
    assert "| `bf16` | eager |" in text


def test_offloading(tmp_path: Path) -> None:
    modes = [mode for mode in offloading.MODES if ON_GPU or mode != "captured"]
    rows = (f"bench.rows=[{','.join(f'bf16 {mode}' for mode in modes)}]", "bench.unlimited=[]")
    content = run(tmp_path, "bench=offload", *SMALL, *rows, "bench.size=64", "bench.repetitions=1")
    assert [row.get("mode", row.get("failed")) for row in content["rows"]] == modes
    assert len({row["weight_bytes"] for row in content["rows"]}) == 1
    assert "| `bf16` | stream | 24 GB |" in benches.offload_speeds(tmp_path / "out.json")


def test_ranks(tmp_path: Path, kernels: None, simulated: None) -> None:
    layer = ("bench.layer=[3,64,16]", "bench.ranks=[16]", "bench.size=64")
    content = run(tmp_path, "bench=rank", *SMALL, *layer, *LITTLE)
    of_layer, block = content["rows"]
    assert [(row["layer"], row["by"]) for row in of_layer["layers"]] == [
        ("bf16", "cublas"),
        ("w4a4_fp4h", "fp8"),
        ("w4a4_fp4h:16", "dequantized"),  # 48 coordinates are left
    ]
    assert block["tokens"] == 24
    assert [row["rank"] for row in block["layers"]] == [0, 0, 16]
    assert "| `w4a4_fp4h:16` |" in benches.rank_costs(tmp_path / "out.json")
    pytest.importorskip("matplotlib")
    plot(tmp_path / "out.json", tmp_path / "rank.png")
    assert (tmp_path / "rank.png").stat().st_size > 1000


def plot(*arguments: Path) -> str:
    """What the command writes to standard error."""
    command = [sys.executable, "-m", "experiments.bench.plot", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stderr


def test_what_cannot_be_plotted_says_why(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other = tmp_path / "other.json"
    assert "experiments.bench.plot RANK.json OUT.png" in plot()
    assert plot(other, other).startswith(f"{other}: not results of bench=rank ([Errno 2]")
    other.write_text('{"bench": "flux", "settings": {}}')
    assert "it is of bench=flux, allowed is bench=rank" in plot(other, other)


def test_loading(tmp_path: Path, simulated: None) -> None:
    content = run(tmp_path, "bench=load_flux", *SMALL, "bench.precision=w4a4_fp4h:32")
    rows = {row["way"]: row for row in content["rows"]}
    assert rows.keys() == {"load", "from_pretrained"}
    for row in rows.values():
        # The file is the tensors and a header.
        assert row["weight_bytes"] < row["file_bytes"] < row["weight_bytes"] + 100_000
        assert row["weight_bytes"] < row["bf16_bytes"]
        assert row["load_seconds"] > 0
        if ON_GPU:
            assert row["weight_bytes"] <= row["peak_bytes"]
    assert rows["load"]["weight_bytes"] == rows["from_pretrained"]["weight_bytes"]
    text = benches.loading_costs(tmp_path / "out.json")
    assert "| `w4a4_fp4h:32` | `from_pretrained(device_map=)` |" in text


def test_quantizing(tmp_path: Path) -> None:
    few = ("bench.records=2", "bench.size=64")
    content = run(tmp_path, "bench=quantize_flux", *SMALL, *few, "bench.recipe.rank=32")
    (row,) = content["rows"]
    assert row["finished"]
    assert row["inputs_finished"] == row["inputs"] == len(row["seconds_by_input"])
    assert {"trace", "statistics", "transform", "rounding"} <= row["stages"].keys()
    assert row["bytes_after"] < row["bytes_before"]
    assert row["checkpoint_bytes"] > row["bytes_after"]
    assert "| `method=dirotq" in benches.quantizing_costs(tmp_path / "out.json")


def test_quantizing_in_two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spent budget ends a run with what it has; another command goes on from there."""
    few = ("bench.records=1", "bench.size=64", "bench.recipe.rank=32", "+bench.recipe.rounding=rtn")
    command = ("bench=quantize_flux", *SMALL, *few, f"bench.workdir={tmp_path / 'work'}")
    counts = iter([False, False, False, True])
    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "spent", lambda _: next(counts))
        (row,) = run(tmp_path, *command)["rows"]
    assert (row["finished"], row["inputs_finished"]) == (False, 2)
    assert "2 of" in benches.quantizing_costs(tmp_path / "out.json")
    (row,) = run(tmp_path, *command)["rows"]
    assert row["finished"]
    assert len(row["earlier_seconds"]) == 1
