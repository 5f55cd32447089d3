"""The command line as a user runs it: a few in a process of their own, the others in forks that have the imports."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dirotq.lab import app
from dirotq.lab.results import read_result
from dirotq.report.presets import named_runs
from experiments.kills import Child
from tests.support.jobs import overrides
from tests.support.wandb_files import read, run_folders

RUN = Path(__file__).parents[2] / "experiments" / "run.py"
SECONDS = 120
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
WANDB = ("logger=wandb", "logger.mode=offline")


def dirotq(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *arguments],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_bad_input_ends_in_one_line(tmp_path: Path) -> None:
    done = dirotq(tmp_path, "method=magic")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [line for line in done.stderr.splitlines() if line]
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: method=magic: unknown, allowed are dirotq, fp16")
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_run_ends_in_one_line(tiny_pipeline: Path, tmp_path: Path) -> None:
    arguments = overrides(
        tiny_pipeline, tmp_path, "method=dirotq", "rank=64", f"out={tmp_path / 'run'}"
    )
    child = Child(arguments, tmp_path)
    assert child.wait(SECONDS) == 1
    lines = child.output().splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[-1:]
    assert "allowed are integers from 1 to 63" in lines[-1]
    assert "Traceback" not in child.output()
    assert not (tmp_path / "run").exists()


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(tiny_pipeline: Path, tmp_path: Path) -> None:
    arguments = overrides(
        tiny_pipeline, tmp_path, "method=rtn", "model.steps=2000", f"out={tmp_path / 'run'}", *WANDB
    )
    child = subprocess.Popen(
        [sys.executable, str(RUN), *arguments],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    building, deadline = tmp_path / "cache" / "reference", time.monotonic() + 60
    while not list(building.glob(".*.tmp-*")):
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does: W&B's own process gets it too
    output, errors = child.communicate(timeout=90)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("stopped; finished stages are kept")
    assert output == ""
    assert list(building.glob(".*.tmp-*")) == []
    assert list(building.glob("*/manifest.json")) == []
    assert not (tmp_path / "run").exists()
    (logged,) = (read(place) for place in run_folders(tmp_path / "outputs"))
    assert (logged["exit"], logged["summary"]["error"]) == (1, "KeyboardInterrupt")


def jobs(folder: Path) -> list[dict[str, Any]]:
    (sweep,) = folder.glob("outputs/sweeps/*/")
    return [json.loads(path.read_text()) for path in sorted(sweep.glob("*/job.json"))]


def test_a_sweep_runs_every_method(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = overrides(tiny_pipeline, tmp_path, "method=rtn,fp16", "rank=8")
    child = Child(["-m", *words], tmp_path)
    assert child.wait(SECONDS) == 0, child.output()
    runs = {path: read_result(path) for path in tmp_path.glob("outputs/runs/*/result.json")}
    assert {result["method"] for result in runs.values()} == {"rtn", "fp16"}
    assert "tiny, rtn, w4a4_int4" in child.output()
    assert "tiny, fp16, w16a16" in child.output()
    assert "WARNING: rank=8: method rtn has no use for it" in child.output()
    first, second = jobs(tmp_path)
    assert (first["schema"], first["number"], second["number"]) == (1, 0, 1)
    assert (first["status"], first["error"]) == ("finished", None)
    assert {"method=rtn", "rank=8", "model.name=tiny"} <= set(first["overrides"])
    assert first["started"] <= first["ended"] <= second["ended"]
    result = read_result(tmp_path / first["run"] / "result.json")
    assert result["method"] == "rtn"
    assert result.get("sweep") == first["sweep"] == second["sweep"]
    assert (tmp_path / "outputs" / "sweeps" / first["sweep"] / "0" / "job.json").is_file()
    assert "method=rtn" in result["command"]
    assert "rtn,fp16" not in result["command"]
    monkeypatch.chdir(tmp_path)  # the same words find the runs
    assert [str(run.path) for run in named_runs(words)] == [first["run"], second["run"]]


def test_a_failed_job_does_not_keep_the_others_of_a_sweep_from_running(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    # 100 is below the width of the feed-forward (256) and not of attention (64): found only by the job.
    arguments = overrides(tiny_pipeline, tmp_path, "rank=100,8", "rounding=rtn")
    child = Child(["-m", *arguments], tmp_path)
    assert child.wait(SECONDS) == 1
    reason = (
        "rank=100 protects 100 coordinates of an input of width 64, "
        "allowed are integers from 1 to 63 and fractions that round up to fewer"
    )
    failed, done = jobs(tmp_path)
    assert (failed["status"], failed["error"], failed["run"]) == ("failed", reason, None)
    assert failed["ended"] is not None
    assert (done["status"], done["error"]) == ("finished", None)
    folder = f"outputs/sweeps/{failed['sweep']}"
    lines = child.output().splitlines()
    assert [line for line in lines if line.startswith("error:")] == [
        f"error: job 0: {reason}",
        f"error: 1 of 2 jobs did not finish: 0; {folder}/<job>/job.json says why",
    ]
    assert "Traceback" not in child.output()
    assert len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 1


def test_a_defect_in_a_job_fails_the_job_and_keeps_its_traceback(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    def break_the_first_job() -> None:
        original = app.run

        def run(job: Any, place: Any) -> Path:
            if place.number == 0:
                raise RuntimeError("a defect\nof two lines")
            return original(job, place)

        app.run = run  # type: ignore[assignment]

    arguments = overrides(tiny_pipeline, tmp_path, "method=rtn", "seed=0,1")
    child = Child(["-m", *arguments], tmp_path, break_the_first_job)
    assert child.wait(SECONDS) == 1
    assert [job["status"] for job in jobs(tmp_path)] == ["failed", "finished"]
    assert jobs(tmp_path)[0]["error"] == "a defect of two lines"
    assert "Traceback" in child.output()
    assert "error: job 0: a defect of two lines" in child.output()


def test_an_earlier_longer_sweep_in_the_folder_is_forgotten(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    place = "hydra.sweep.dir='outputs/sweeps/my sweep, v=2'"
    arguments = overrides(tiny_pipeline, tmp_path, "method=fp16", place, "hydra.mode=MULTIRUN")
    child = Child([*arguments, "seed=0,1"], tmp_path)
    assert child.wait(SECONDS) == 0, child.output()
    assert [job["number"] for job in jobs(tmp_path)] == [0, 1]
    child = Child([*arguments, "seed=0"], tmp_path)
    assert child.wait(SECONDS) == 0, child.output()
    assert [job["sweep"] for job in jobs(tmp_path)] == ["my sweep, v=2"]


@pytest.mark.parametrize("flags", [("sweep=rank",), ("-m", "sweep=rank")])
def test_a_preset_is_a_sweep(tiny_pipeline: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Both ways to start one, here with values of one's own and another method."""
    arguments = overrides(tiny_pipeline, tmp_path, "method=svdquant", "method.search=false")
    child = Child([*flags, *arguments, "rank=2,4", "rounding=rtn"], tmp_path)
    assert child.wait(SECONDS) == 0, child.output()
    assert [job["status"] for job in jobs(tmp_path)] == ["finished"] * 2
    runs = [read_result(tmp_path / job["run"] / "result.json") for job in jobs(tmp_path)]
    assert [(run["method"], run["rank"]) for run in runs] == [("svdquant", 2), ("svdquant", 4)]


def test_several_values_need_a_sweep(tmp_path: Path) -> None:
    child = Child(["rank=8,16"], tmp_path)
    assert child.wait(SECONDS) == 1
    assert child.output() == "error: rank has 2 values, which is a sweep: dirotq -m ...\n"
