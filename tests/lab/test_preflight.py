"""The estimate before a run: what it is made of, what it says, and that it changes nothing."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from dirotq.config import Job
from dirotq.lab import preflight as module
from dirotq.lab import trial
from dirotq.lab.preflight import preflight
from dirotq.lab.results import read_result
from dirotq.lab.runner import run
from dirotq.lab.stages import Stages
from dirotq.lab.trial import Input
from tests.support.jobs import PROMPTS, job

Make = Callable[..., Job]
DIROTQ = ("method=dirotq", "rank=8", "rounding=rtn")


@pytest.fixture
def make(tiny_pipeline: Path, tmp_path: Path) -> Make:
    def made(*more: str) -> Job:
        return job(tiny_pipeline, tmp_path, *more, "runtime.preflight=true")

    return made


def entries(tmp_path: Path) -> set[str]:
    return {path.parent.parent.name for path in (tmp_path / "cache").glob("*/*/manifest.json")}


def test_a_run_tells_its_estimate_beside_what_was_measured(make: Make, tmp_path: Path) -> None:
    first = read_result(run(make(*DIROTQ, f"out={tmp_path / 'one'}")) / "result.json")
    estimate = first["preflight"]
    assert estimate is not None
    assert estimate["seconds"] > 0
    images = 3 * 16 * 16 * len(PROMPTS)
    assert estimate["disk_bytes"] > 3 * images
    assert estimate["memory_bytes"] > 100e6  # torch alone
    again = read_result(run(make(*DIROTQ, f"out={tmp_path / 'two'}")) / "result.json")["preflight"]
    assert again is not None
    assert again["seconds"] == 0, "all of it is in the cache"
    assert again["disk_bytes"] == images


def test_only_what_is_missing_counts(make: Make) -> None:
    empty = Stages(make(*DIROTQ))
    assert empty.missing() == {"reference", "records", "statistics", "quantized", "images"}
    empty.reference_images()
    empty.statistics()
    assert Stages(make(*DIROTQ)).missing() == {"quantized", "images"}
    assert Stages(make("method=fp16")).missing() == set()
    empty.quantized()
    assert Stages(make(*DIROTQ)).missing() == {"images"}
    assert Stages(make(*DIROTQ, "calib.records=2")).missing() == {
        "records", "statistics", "quantized", "images",
    }  # fmt: skip


def known(monkeypatch: pytest.MonkeyPatch, stages: Stages) -> None:
    """A trial of round numbers, one distinct input of width 10 with 20 outputs, another of twice the outputs."""
    inputs = (Input(("a",), 10, 20, 5.0), Input(("b",), 10, 40, 5.0))
    found = trial.Trial(
        step=1.0, rest=4.0, record=2.0, record_bytes=100.0, base_bytes=1000, image_bytes=10.0,
        statistics_bytes=500, inputs=inputs,
    )  # fmt: skip
    statistics = SimpleNamespace(members=("a",))
    monkeypatch.setattr(stages, "trial", lambda: (found, statistics))
    monkeypatch.setattr(module, "quantizing", lambda *_: (3.0, 0.5))


def test_the_estimate_is_a_sum_over_stages(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = Stages(make(*DIROTQ))  # 3 prompts, 3 steps; 4 records of 2 prompts
    known(monkeypatch, stages)
    reference, records, statistics = 3 * (4 + 3), 2 * (4 + 3), 4 * 2
    quantized = 3 * (300 + 500) / 300  # width times width and outputs
    slower = 0.5 * (5 * 10 * 20 + 5 * 10 * 40) / (10 * 20)
    images = 3 * (4 + 3 + 3 * slower)
    expected = reference + records + statistics + quantized + images
    assert preflight(stages)["seconds"] == pytest.approx(expected, abs=0.05)  # one decimal
    model = sum(p.nbytes for p in stages.pipeline.transformer.parameters())
    # Batches of two: the prompts of evaluation and of calibration alike.
    assert preflight(stages)["memory_bytes"] == 1000 + 2 * 10 + 500 + model
    pictures, latents = 3 * 3 * 16 * 16, 3 * 3 * 100
    disk = 3 * pictures + 2 * latents + 4 * 100 + 2 * 8 * 100 + model
    assert preflight(stages)["disk_bytes"] == disk


def test_a_full_disk_is_found_first(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ValueError, match=r"runtime\.cache=.*needs about .* GB, 0\.0 are free"):
        run(make(*DIROTQ, f"out={tmp_path / 'run'}"))
    assert entries(tmp_path) == {"trial"}
    assert not (tmp_path / "run").exists()


def test_long_work_is_announced(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stages = Stages(make(*DIROTQ))
    known(monkeypatch, stages)
    with caplog.at_level(logging.INFO, logger="dirotq"):
        preflight(stages)
    assert [record.getMessage() for record in caplog.records] == [
        "this will take about 2 minutes, 0.0 GB of memory and 0.0 GB of disk, by a short trial"
    ]
    caplog.clear()
    monkeypatch.setattr(module, "_WORTH_SAYING", 1e6)
    with caplog.at_level(logging.INFO, logger="dirotq"):
        preflight(stages)
    assert caplog.records == []


def test_it_changes_no_pixel_and_can_be_left_out(
    tiny_pipeline: Path, tmp_path: Path, make: Make
) -> None:
    apart = tmp_path / "apart"
    apart.mkdir()
    tried = run(make(*DIROTQ, f"out={tmp_path / 'tried'}"))
    plain = run(job(tiny_pipeline, apart, *DIROTQ, f"out={tmp_path / 'plain'}"))
    assert read_result(plain / "result.json")["preflight"] is None
    assert "trial" in entries(tmp_path)
    assert "trial" not in entries(apart)
    for name in PROMPTS:
        one, other = (Image.open(run_ / "images" / f"{name}.png") for run_ in (tried, plain))
        assert one.tobytes() == other.tobytes()


def test_an_impossible_budget_is_found_before_the_calibration(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"budget=4\.3: layer \S+ needs 4\.\d+ bits a weight"):
        run(make("method=dirotq", "budget=4.3", f"out={tmp_path / 'run'}"))
    assert entries(tmp_path) == {"trial"}
    stages = Stages(make("method=dirotq", "budget=8", "rounding=rtn"))
    assert entries(tmp_path) == {"trial"}
    stages.quantized()


def test_the_typical_input_is_one_of_the_commonest_shape() -> None:
    shapes = {"a": (8, 4), "b": (8, 2), "c": (8, 2)}
    inputs = [Input((name,), *shape, 1.0) for name, shape in shapes.items()]
    assert trial.typical(inputs).members == ("b",)
