"""Benches: taking turns, writing rows, and dividing a trace by kind."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.bench.kinds import divided, kind_of
from experiments.bench.loading import HostPeak
from experiments.bench.record import Recorder
from experiments.bench.timing import Timed, in_turn, summary

CPU = torch.device("cpu")


def test_alternatives_take_turns() -> None:
    order: list[str] = []
    runs = {name: Timed(lambda name=name: order.append(name), 2) for name in "ab"}
    found = in_turn(runs, 3, CPU)
    assert order == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * 3  # warm-up first
    assert found["a"]["repetitions"] == 3


def test_medians_and_percentiles() -> None:
    assert summary([5.0, 1.0, 3.0, 2.0, 4.0]) == {
        "median_ms": 3.0, "p10_ms": 1.4, "p90_ms": 4.6, "repetitions": 5,
    }  # fmt: skip


def recorder(
    path: Path, commit: str | None = None, settings: dict[str, Any] | None = None, **more: Any
) -> Recorder:
    env = {"device": "cpu", "versions": {"torch": "1"}, "git": commit}
    return Recorder(
        path, {"bench": "b", "settings": settings or {}, "env": env, "command": "c"}, **more
    )


def test_rows_are_written_one_by_one_and_a_failure_is_one(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    notes = recorder(path, only=("^a", "bad"))
    notes.measure("a1", lambda: {"value": 1})
    assert json.loads(path.read_text())["rows"][0]["value"] == 1
    assert notes.measure("b1", lambda: {"value": 2}) is None  # not asked for

    def bad() -> dict[str, Any]:
        raise torch.OutOfMemoryError("no room\nat all")

    notes.measure("bad", bad)
    again = recorder(path)
    again.measure("a1", lambda: {"value": 3})
    content = json.loads(path.read_text())
    assert [row["name"] for row in content["rows"]] == ["a1", "bad"]
    assert content["rows"][0]["value"] == 3
    assert content["rows"][1]["failed"] == "OutOfMemoryError: no room"
    assert content["command"] == "c && c"


def test_a_spent_budget_leaves_rows_out(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    notes = recorder(path, budget=-1.0)
    assert notes.measure("a", lambda: {}) is None
    assert json.loads(path.read_text())["left_out"] == {"a": "budget_seconds=-1 are over"}
    recorder(path).measure("a", lambda: {})
    assert json.loads(path.read_text())["left_out"] == {}


def test_a_file_of_another_bench_is_not_continued(tmp_path: Path) -> None:
    recorder(tmp_path / "out.json").measure("a", lambda: {})
    content = json.loads((tmp_path / "out.json").read_text())
    content["env"]["device"] = "another"
    (tmp_path / "out.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="measured with another device, another; use another out="):
        recorder(tmp_path / "out.json")


def test_more_rows_may_be_asked_for_later_but_not_by_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    recorder(path, settings={"runs": ["a", "b"], "size": 1}).measure("a", lambda: {})
    more = {"settings": {"runs": ["b", "c"], "size": 1}}
    with pytest.raises(ValueError, match="measured by another bench, or with other settings"):
        recorder(path, **more)
    recorder(path, **more, lists=("runs",)).measure("c", lambda: {})
    content = json.loads(path.read_text())
    assert content["settings"] == {"runs": ["a", "b", "c"], "size": 1}
    assert [row["name"] for row in content["rows"]] == ["a", "c"]
    with pytest.raises(ValueError, match="use another out"):
        recorder(path, settings={"runs": ["a"], "size": 2}, lists=("runs",))


def test_rows_of_an_earlier_commit_say_so(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    for commit, row in (("1", "a"), ("2", "b"), ("3", "c")):
        recorder(path, commit=commit).measure(row, lambda: {})
    content = json.loads(path.read_text())
    assert [row.get("git") for row in content["rows"]] == ["1", "2", None]
    assert content["env"]["git"] == "3"


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT", "gemm"),
        ("void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<...>>", "gemm"),
        ("void pytorch_flash::flash_fwd_kernel<...>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3i", "attention"),
        ("triton_red_fused_add_layer_norm_0", "elementwise"),
        ("triton_tem_fused_mm_0", "gemm"),
        ("void at::native::vectorized_elementwise_kernel<4, ...>", "elementwise"),
        ("Memcpy DtoD (Device -> Device)", "elementwise"),
        ("ncclKernel", "other"),
    ],
)
def test_kernels_have_kinds(kernel: str, kind: str) -> None:
    assert kind_of(kernel) == kind


def test_own_kernels_are_known_by_their_module() -> None:
    pytest.importorskip("triton")
    assert kind_of("_unpack_e4m3_kernel") == "unpack"
    assert kind_of("_fp4_quantize_kernel") == "rotate_quantize"


def test_a_trace_is_divided_by_kind() -> None:
    found = divided([
        {"cat": "kernel", "name": "nvjet_a", "dur": 1000},
        {"cat": "kernel", "name": "nvjet_a", "dur": 500},
        {"cat": "gpu_memset", "name": "Memset (Device)", "dur": 250},
        {"cat": "gpu_user_annotation", "name": "nvjet region", "dur": 9999},
        {"cat": "cpu_op", "name": "aten::mm", "dur": 9999},
    ])  # fmt: skip
    assert found is not None
    assert found["ms"] == {"gemm": 1.5, "elementwise": 0.25}
    assert found["kernels"] == 3
    assert found["longest"][0] == {"kernel": "nvjet_a", "kind": "gemm", "ms": 1.5, "calls": 2}
    assert divided([]) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_peak_of_the_host_is_of_what_the_process_owns(tmp_path: Path) -> None:
    size = 64 << 20
    path = tmp_path / "mapped"
    with path.open("wb") as file:
        file.write(bytes(size))
    with HostPeak() as mapped:
        torch.from_file(str(path), size=size, dtype=torch.uint8).max()
    with HostPeak() as owned:
        block = torch.ones(size, dtype=torch.uint8)
        time.sleep(0.2)
        del block  # the peak counts, not what is left
    assert owned.growth is not None
    assert mapped.growth is not None
    # Everything else that happens meanwhile is small beside the block.
    assert mapped.growth < size // 2 < 7 * size // 8 < owned.growth < 2 * size
