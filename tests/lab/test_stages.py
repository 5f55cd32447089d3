"""Stages of the main job: what is drawn from where, and what JSON cannot hold."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dirotq.lab import entries
from dirotq.lab.cache import Cache
from dirotq.lab.stages import Stages
from dirotq.records import spread
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
