"""Stages of the main job: what is drawn from where, and what JSON cannot hold."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dirotq import calibrate, passes
from dirotq.config import build_job, compose_config
from dirotq.lab import entries, trial
from dirotq.lab.cache import Cache
from dirotq.lab.stages import Stages
from dirotq.models import layout_of, rewrite
from dirotq.records import load_call, spread
from tests.support.jobs import job


def test_records_are_spread_over_batches_and_steps() -> None:
    assert spread(20, 4) == {2, 7, 12, 17}
    assert spread(3, 10) == {0, 1, 2}
    assert spread(5, 5) == set(range(5))


def test_infinite_ratios_survive_json(tiny_pipeline: Path, tmp_path: Path) -> None:
    _, report = Stages(job(tiny_pipeline, tmp_path, "method=rtn", "bits=w4a16_int4")).quantized()
    assert {row.act_snr_db for row in report.layers} == {float("inf")}
    layer = replace(report.layers[0], weight_snr_db=float("-inf"))
    changed = replace(report, layers=(layer, *report.layers[1:]))
    entries.save_report(changed, tmp_path / "report.json")
    assert entries.load_report(tmp_path / "report.json") == changed


def test_seconds_of_a_stage_leave_out_only_what_was_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def work(seconds: float) -> None:
        clock[0] += seconds

    def outer(name: str) -> dict[str, float]:
        fresh = Stages.__new__(Stages)
        fresh.cache, fresh.seconds, fresh._inside = Cache(tmp_path), {}, 0.0
        fresh.keys, fresh.prompts = SimpleNamespace(what=lambda *_: ""), []

        def build(_: Path) -> None:
            fresh._stage("inner", {}, lambda _: work(5))
            work(2)

        fresh._stage("outer", {"name": name}, build)
        return fresh.seconds

    assert outer("the inner stage is built") == {"inner": 5, "outer": 2}
    assert outer("the inner stage is found") == {"inner": 5, "outer": 2}


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes half of the inputs fit a pass; gets how many waited before each."""
    waiting: list[int] = []

    def fitting(model: object, groups: list[object], *_: object) -> int:
        waiting.append(len(groups))
        return -(-waiting[0] // 2)

    monkeypatch.setattr(passes, "fitting", fitting)
    return waiting


@pytest.mark.parametrize("name", ["tiny", "emoji"])
def test_statistics_in_two_passes_are_those_of_one(
    name: str, tiny_pipeline: Path, tmp_path: Path, halves: list[int]
) -> None:
    small = ("model=emoji", "model.steps=2", "calib.prompts=1", "calib.batch=1", "calib.records=2")
    place = f"runtime.cache={tmp_path}", "runtime.device=cpu"
    tiny = job(tiny_pipeline, tmp_path, "method=rtn")
    stages = Stages(tiny if name == "tiny" else build_job(compose_config([*small, *place])))
    found = stages.statistics()
    assert halves == [len(found), len(found) // 2]
    calls = [load_call(path) for path in sorted(stages.records().glob("*.safetensors"))]
    assert len(calls) == 2
    model = stages.pipeline.transformer
    layout = layout_of(model)
    with rewrite.applied(model, layout):
        expected = calibrate.collect(model, layout.select(model), calls)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.members, mine.width, mine.rows) == (theirs.members, theirs.width, theirs.rows)
        assert mine.lowest == theirs.lowest
        for part in ("moment", "absmax", "sample"):
            assert torch.equal(getattr(mine, part), getattr(theirs, part))


def test_a_trial_in_two_passes_finds_the_same_inputs(
    tiny_pipeline: Path, tmp_path: Path, halves: list[int]
) -> None:
    stages = Stages(job(tiny_pipeline, tmp_path, "method=rtn"))
    found, kept = stages.trial()
    assert len(halves) == 2
    assert kept.members == trial.typical(found.inputs).members
    model = stages.pipeline.transformer
    with rewrite.applied(model, layout_of(model)):
        for one in found.inputs:
            linears = [model.get_submodule(name) for name in one.members]
            assert {linear.in_features for linear in linears} == {one.width}
            assert sum(linear.out_features for linear in linears) == one.outputs
            assert one.rows > 0


def test_graphs_are_refused_where_there_is_no_gpu(tiny_pipeline: Path, tmp_path: Path) -> None:
    wanted = job(tiny_pipeline, tmp_path, "method=rtn", "runtime.capture=true")
    with pytest.raises(ValueError, match=r"runtime\.capture=true: the device is cpu, allowed is a"):
        Stages(wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_images_are_the_same_in_graphs(tiny_pipeline: Path, tmp_path: Path) -> None:
    def drawn(*settings: str) -> Tensor:
        place = f"runtime.cache={tmp_path / str(len(settings))}"
        fixed = ("method=rtn", "runtime.device=cuda", place)
        return Stages(job(tiny_pipeline, tmp_path, *fixed, *settings)).images()

    assert torch.equal(drawn("runtime.capture=true"), drawn())
