"""Reports on settings: the runs that `dirotq` would make of them, looked up."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from dirotq.config import build_job, compose_config
from dirotq.lab.runner import identity, run_directory
from dirotq.report.app import main
from tests.report.test_report_app import fails
from tests.support.finished import RTN, write_job, write_run

SWEEP = ("sweep=rank", "rank=8,16")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finish(*overrides: str, psnr: float = 30.0, **changes: Any) -> Path:
    """The run directory of a job with a result of its identity."""
    job = build_job(compose_config(overrides))
    run = write_run(run_directory(job), psnr, **changes)
    content = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**content, "config": identity(job)}))
    return run


def test_jobs_of_a_sweep_are_rows_and_missing_ones_are_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    finish("rank=8", "sweep=rank", psnr=28.0, rank=8)
    main(SWEEP)
    captured = capsys.readouterr()
    assert "28.00 [27.50, 28.50]" in captured.out
    assert captured.out.endswith("\njob 1 (rank=16 sweep=rank) not run\n")
    assert captured.err == ""
    main([*SWEEP, "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["run"], row["job"], row["status"]) for row in rows] == [
        ("0", "", "finished"),
        ("rank=16 sweep=rank", "1", "not run"),
    ]


def test_a_single_run_is_called_by_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    run = finish("method=rtn", **RTN)
    main(["method=rtn", "--format", "csv"])
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["run"], row["method"]) == (run.name, "rtn")


def test_settings_without_a_run_say_how_to_run_them(capsys: pytest.CaptureFixture[str]) -> None:
    one = fails(capsys, "method=rtn", "weight_only=['.*ff']")
    assert "its run is not there" in one
    assert """; dirotq method=rtn 'weight_only=['"'"'.*ff'"'"']' runs it""" in one
    several = fails(capsys, *SWEEP)
    assert "sweep=rank rank=8,16: none of its 2 jobs is there" in several
    assert "; dirotq -m sweep=rank rank=8,16 runs it" in several


def test_paths_and_settings_together(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finish("rank=8", "sweep=rank", rank=8)
    write_run(folder / "rank=4", 25.0, rank=4)  # a path, although it has a `=`
    write_job(folder / "sweep", 0, "finished", "rank=8", run=str(run))
    main(["sweep", "rank=4", *SWEEP, "--format", "csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["8", "4", ""]  # the sweep's run is there once
    main(["rank=4", *SWEEP, "--format", "html", "--out", "made"])
    page = Path("made/report.html").read_text()
    assert "2 finished, 1 not run" in page
    assert "<h1>rank=4, sweep=rank, rank=8,16</h1>" in page
    capsys.readouterr()
    main(["rank=4", "method=rtn"])
    assert "job 0 (method=rtn) not run" in capsys.readouterr().out


def test_bad_settings_end_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "sweep=depth: unknown, allowed are" in fails(capsys, "sweep=depth")
    assert "rank=0" in fails(capsys, "rank=8,0")
    assert "runs/rank=8: no such file or folder" in fails(capsys, "runs/rank=8")
    write_run(folder / "mine")
    held = fails(capsys, "method=rtn", "out=mine")
    assert "out=mine: the folder holds another run" in held
