"""Tables of speed and memory: every row is in them, also the slower ones, the failed ones and those left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from dirotq.report.blocks import RESULTS, refreshed

ENV = {
    "device": "NVIDIA H100 80GB HBM3",
    "versions": {"torch": "2.11.0", "triton": "3.6.0", "diffusers": "0.42.1", "torchao": None},
    "git": "0123456789ab",
}


def time(median: float) -> dict[str, float]:
    return {"median_ms": median, "p10_ms": 0.9 * median, "p90_ms": 1.1 * median, "repetitions": 50}


def put(tmp_path: Path, name: str, rows: list[Any], **more: Any) -> None:
    """Write a document of results."""
    content = {
        "bench": name, "what": "", "command": f"python -m experiments.bench bench={name}",
        "env": ENV, "weights": "random", "settings": {}, "left_out": {}, "rows": rows, **more,
    }  # fmt: skip
    path = tmp_path / RESULTS / "bench" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def made(tmp_path: Path, block: str, name: str, rows: list[Any], **more: Any) -> list[str]:
    """The lines between the markers of a block."""
    put(tmp_path, name, rows, **more)
    text = f"# Speed\n<!-- {block}: begin -->\nold\n<!-- {block}: end -->\nrest\n"
    found = refreshed(text, tmp_path)
    assert refreshed(found, tmp_path) == found
    lines = found.splitlines()
    assert lines[-1] == "rest"
    origin = next(line for line in lines if line.startswith("NVIDIA H100 80GB HBM3, torch 2.11.0"))
    assert "commit 0123456789ab" in origin
    assert ", random weights (`" in origin
    assert "torchao" not in origin
    return lines[2:-2]


def layer(name: str, graph: float, eager: float, **more: Any) -> dict[str, Any]:
    return {
        "layer": name, "error": 0.0017, "bound_ms": 0.2, "eager": time(eager), "graph": time(graph),
        "speed_graph": 0.366 / graph, "speed_eager": 0.37 / eager, "weight_bytes": 14_000_000, **more,
    }  # fmt: skip


def test_layers(tmp_path: Path) -> None:
    parts = {"rotate_quantize": time(0.03), "unpack_e4m3": time(0.02), "fp8_linear": time(0.19)}
    wide = {
        "name": "4608x3072x9216", "m": 4608, "k": 3072, "n": 9216,
        "layers": [layer("bf16", 0.366, 0.37), layer("w4a4_fp4h:64", 0.25, 0.4)],
        "parts": {"w4a4_fp4h:64": parts, "w4a16_int4": {"weight_only_linear": time(0.1)}},
        "failed_layers": {"fp8": "ValueError: too old"},
    }  # fmt: skip
    few = {
        "name": "1x3072x9216", "m": 1, "k": 3072, "n": 9216, "parts": {},
        "layers": [layer("bf16", 0.02, 0.03), layer("w4a16_int4", 0.03, 0.04)],
    }  # fmt: skip
    lines = made(tmp_path, "bench_layers", "layer_flux", [wide, few, {"name": "x", "failed": "no"}])
    assert lines[0] == "| M x K x N | bf16 | w4a4_fp4h:64 | w4a16_int4 |"
    assert lines[2] == "| 4608 x 3072 x 9216 | 0.366 | 0.250, 1.46x | - |"
    assert lines[3].startswith("| 1 x 3072 x 9216 | 0.0200 | - | 0.0300, ")
    passes = lines.index(
        "| M x K x N | layer | rotate_quantize | unpack_e4m3 | fp8_linear | whole | by Python | bound |"
    )
    assert lines[passes + 2] == (
        "| 4608 x 3072 x 9216 | `bf16` | - | - | - | 0.366 | 0.370 | 0.200 |"
    )
    assert lines[passes + 3] == (
        "| 4608 x 3072 x 9216 | `w4a4_fp4h:64` | 0.0300 | 0.0200 | 0.190 | 0.250 | 0.400 | 0.200 |"
    )
    text = "\n".join(lines)
    assert "`bf16` 1.70, `w4a4_fp4h:64` 1.70, `w4a16_int4` 1.70" in text
    assert "Not measured: `x`: no; `4608x3072x9216 fp8`: ValueError: too old." in text
    assert "INT4 on Ada and before, FP4 on Blackwell. Nothing was measured there." in text


def forward(precision: str, run: str, median: float, **more: Any) -> dict[str, Any]:
    return {
        "name": f"{precision} {run} 1024 b1", "precision": precision, "run": run, "size": 1024,
        "batch": 1, "weight_bytes": 7_000_000_000, "peak_bytes": 8_100_000_000, **time(median), **more,
    }  # fmt: skip


def test_models(tmp_path: Path) -> None:
    kinds = {"ms": {"gemm": 80.0, "attention": 23.0, "unpack": 2.0}, "kernels": 9}
    rows = [
        forward("bf16", "eager", 181.0, kinds=kinds),
        {
            "name": "torchao eager 1024 b1",
            "failed": "ModuleNotFoundError: No module named 'torchao'",
        },
        forward("w4a4_fp4h:64", "eager", 200.0),
        forward("w4a4_fp4h:64", "compiled", 100.0),
    ]
    left_out = {"fp8 eager 1024 b1": "budget_seconds=540 are over"}
    lines = made(tmp_path, "bench_model", "flux", rows, left_out=left_out)
    assert lines[0] == (
        "| linears | run | ms | 10 % to 90 % | speed | peak GB | weights GB | gemm | attention | unpack |"
    )
    assert (
        lines[2]
        == "| `bf16` | eager | 181.0 | 162.9 to 199.1 | 1.00x | 8.1 | 7.0 | 80.0 | 23.0 | 2.0 |"
    )
    assert "| 0.91x |" in lines[3]  # slower, and said
    assert lines[4].startswith("| `w4a4_fp4h:64` | compiled | 100.0 |")
    assert "| - | 8.1 |" in lines[4]  # nothing was run in the same way
    text = "\n".join(lines)
    assert "Not measured: `torchao eager 1024 b1`: ModuleNotFoundError" in text
    assert "`fp8 eager 1024 b1`: budget_seconds=540 are over." in text


def test_models_by_the_images_of_a_call(tmp_path: Path) -> None:
    rows = [
        forward(precision, "eager", 100.0, size=size, batch=batch)
        for precision in ("bf16", "torchao")
        for size, batch in [(512, 1), (1024, 2), (1024, 1)]
    ]
    rows[1]["git"] = rows[2]["git"] = "ba9876543210"  # a file that was continued
    lines = made(tmp_path, "bench_model", "flux", rows)
    assert "commit 0123456789ab and ba9876543210, random" in lines[-1]
    found = [tuple(line.split(" | ")[0:3:2]) for line in lines[2:8]]
    places = ["1024, 1", "1024, 2", "512, 1"]
    assert found == [(f"| `{name}`", place) for place in places for name in ("bf16", "torchao")]


def test_offloading(tmp_path: Path) -> None:
    row = {"budget_bytes": 24_000_000_000, "weight_bytes": 23_800_000_000, "mode": "stream"}
    rows = [
        {"name": "bf16 resident", "failed": "OutOfMemoryError: CUDA out of memory. Tried | to"},
        {"name": "bf16 stream", "precision": "bf16", **row, **time(1500.0)},
    ]
    lines = made(tmp_path, "bench_offload", "offload", rows)
    assert lines[2] == "| `bf16 resident` | - | - | OutOfMemoryError: CUDA out of memory | - | - |"
    assert lines[3] == "| `bf16` | stream | 24 GB | 1500 | - | 23.8 |"


def test_ranks(tmp_path: Path) -> None:
    rows = [
        {"name": "layer 4608x3072x12288", "m": 4608, "k": 3072, "n": 12288,
         "layers": [layer("bf16", 0.5, 0.5), layer("w4a4_fp4h:64", 0.3, 0.4)]},
        {"name": "block", "block": "single_transformer_blocks.0", "tokens": 4608,
         "layers": [layer("w4a4_fp4h:64", 2.0, 3.0, peak_bytes=500_000_000)]},
    ]  # fmt: skip
    lines = made(tmp_path, "bench_rank", "rank", rows)
    assert lines[2] == "| `bf16` | 0.500 | 14.0 | - | - | - |"
    assert lines[3] == "| `w4a4_fp4h:64` | 0.300 | 14.0 | 2.000 | 14.0 | 500.0 |"


def test_quantizing(tmp_path: Path) -> None:
    whole = {
        "name": "method=dirotq", "finished": True, "seconds_quantize": 240.0, "seconds_so_far": 239.0,
        "earlier_seconds": [60.0], "stages": {"statistics": 100.4, "rounding": 139.6},
        "save_seconds": 12.0, "peak_bytes": 40e9, "host_bytes": 5e9, "checkpoint_bytes": 7e9,
        "inputs": 266, "inputs_finished": 266,
    }  # fmt: skip
    part = {
        "name": "method=svdquant", "finished": False, "seconds_so_far": 540.0, "inputs": 266,
        "inputs_finished": 3, "peak_bytes": 50e9, "host_bytes": 5e9,
    }  # fmt: skip
    settings = {"records": 128, "size": 1024}
    put(tmp_path, "quantize/svdquant", [part], settings=settings)
    lines = made(tmp_path, "bench_quantize", "quantize/dirotq", [whole], settings=settings)
    assert lines[2] == "| `method=dirotq` | 5.0 | 100 | 140 | 12 | 40.0 | 5.0 | 7.0 |"
    assert lines[3] == ("| `method=svdquant` | 9.0, 3 of 266 inputs | - | - | - | 50.0 | 5.0 | - |")
    assert "results/bench/quantize/dirotq.json" in lines[-3]
    assert "results/bench/quantize/svdquant.json" in lines[-1]
    put(tmp_path, "quantize/svdquant", [part], settings={"records": 2, "size": 1024})
    with pytest.raises(
        ValueError, match=r"README block bench_quantize: records and sizes of .* are not alike"
    ):
        made(tmp_path, "bench_quantize", "quantize/dirotq", [whole], settings=settings)


def test_images_by_kernels(tmp_path: Path) -> None:
    def estimate(value: float, distinguishable: bool = True) -> dict[str, Any]:
        found = {"value": value, "ci_low": value - 0.5, "ci_high": value + 0.25, "n": 4}
        return found | {"distinguishable": distinguishable}

    content = {
        "command": "python -m experiments.kernel_images OUT.json",
        "env": ENV,
        "recipe": {"method": {"name": "dirotq"}, "bits": "w4a4_fp4h"},
        "prompts": {"set": "standard", "n": 4, "draws": 1},
        "backend": {"fp8": 3, "weight_only": 1},
        "psnr_to_16_bit": {
            "simulated": estimate(30.0),
            "floor": estimate(30.125),
            "kernels": estimate(29.0),
            "kernels_minus_simulated": estimate(-1.0),
            "floor_minus_simulated": estimate(0.125, False),
            "kernels_minus_floor": estimate(-1.125),
        },
        "psnr_to_simulated": {"kernels": estimate(35.0), "floor": estimate(37.0)},
    }
    folder = tmp_path / RESULTS / "kernels"
    folder.mkdir(parents=True)
    (folder / "hadamard.json").write_text("{}")
    text = "<!-- kernel_images: begin -->\n<!-- kernel_images: end -->\n"
    with pytest.raises(ValueError, match="README block kernel_images: no images"):
        refreshed(text, tmp_path)
    (folder / "images.json").write_text(json.dumps(content))
    content["prompts"] = {"set": "full", "n": 1000, "draws": 3}
    (folder / "images_full.json").write_text(json.dumps(content))
    lines = refreshed(text, tmp_path).splitlines()
    assert lines[3:6] == [
        "| 4 | simulated | 30.00 [29.50, 30.25] | - | - | - |",
        "| 4 | simulated, float64 | 30.12 [29.62, 30.38] | +0.12 [-0.38, +0.38] (not distinguishable) | - | "
        "37.00 [36.50, 37.25] |",
        "| 4 | kernels | 29.00 [28.50, 29.25] | -1.00 [-1.50, -0.75] | -1.12 [-1.62, -0.88] | 35.00 [34.50, 35.25] |",
    ]
    assert [line.split(" | ")[0] for line in lines[6:9]] == 3 * ["| 1,000 x 3"]
    assert "4 layers (fp8, weight_only)" in lines[12]
    assert "N = 4 prompts, prompt set standard" in lines[12]
    assert "N = 1000 prompts x 3 noises, averaged, prompt set full" in lines[14]
    assert "kernels/images_full.json" in lines[14]
