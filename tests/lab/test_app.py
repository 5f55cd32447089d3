"""The command line as a user runs it. Each run imports diffusers, so there are few."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dirotq.lab.results import read_result
from tests.support.jobs import overrides

RUN = Path(__file__).parents[2] / "experiments" / "run.py"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


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
    done = dirotq(tmp_path, *arguments)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "allowed are integers from 1 to 63" in errors[0]
    assert done.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(tiny_pipeline: Path, tmp_path: Path) -> None:
    arguments = overrides(
        tiny_pipeline, tmp_path, "method=rtn", "model.steps=2000", f"out={tmp_path / 'run'}"
    )
    child = subprocess.Popen(
        [sys.executable, str(RUN), *arguments],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    building, deadline = tmp_path / "cache" / "reference", time.monotonic() + 60
    while not list(building.glob(".*.tmp-*")):
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    output, errors = child.communicate(timeout=90)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("stopped; finished stages are kept")
    assert output == ""
    assert list(building.glob(".*.tmp-*")) == []
    assert list(building.glob("*/manifest.json")) == []
    assert not (tmp_path / "run").exists()


def test_a_sweep_runs_every_method(tiny_pipeline: Path, tmp_path: Path) -> None:
    done = dirotq(tmp_path, "-m", *overrides(tiny_pipeline, tmp_path, "method=rtn,fp16", "rank=8"))
    assert done.returncode == 0, done.stderr
    found = [read_result(path) for path in tmp_path.glob("outputs/runs/*/result.json")]
    assert {result["method"] for result in found} == {"rtn", "fp16"}
    assert "tiny, rtn, w4a4_int4" in done.stdout
    assert "tiny, fp16, w16a16" in done.stdout
    assert "WARNING: rank=8: method rtn has no use for it" in done.stderr


def test_a_failed_job_does_not_keep_the_others_of_a_sweep_from_running(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    # 100 is below the width of the feed-forward (256) and not of attention (64): found only while quantizing.
    done = dirotq(tmp_path, "-m", *overrides(tiny_pipeline, tmp_path, "rank=100,8", "rounding=rtn"))
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        "error: rank=100 protects 100 coordinates of an input of width 64, "
        "allowed are integers from 1 to 63 and fractions that round up to fewer"
    ]
    assert len(list(tmp_path.glob("outputs/runs/*/result.json"))) == 1
