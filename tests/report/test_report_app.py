"""The command line of reports."""

import csv
import io
import sys
from pathlib import Path

import pytest

from dirotq.report.app import main
from tests.report.test_differences import HARD, prompts
from tests.support.finished import RTN, write_job, write_result, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with two runs, and the tables of published numbers."""
    write_run(tmp_path / "runs" / "a", 30.0, files=prompts(HARD))
    better = prompts([value + 1 for value in HARD])
    write_run(
        tmp_path / "runs" / "b",
        31.0,
        files=better,
        rank=64,
        model="pixart-sigma",
        paper={"psnr": 19.1},
    )
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "tables").symlink_to(ROOT / "experiments" / "tables")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_terminal_is_the_default(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs"])
    out = capsys.readouterr().out
    assert "30.00 [29.50, 30.50]" in out
    assert "published in DiRotQ (arXiv 2605.16732), abstract" in out
    assert "N: published 5000, ours 256" in out


def test_csv_and_a_choice_of_metrics(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", "--format", "csv", "--metrics", "ssim"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["run"] for row in rows] == ["a", "b"]
    assert rows[0]["ssim"] == "0.9412345"
    assert "psnr" not in rows[0]


def test_a_baseline_is_named_by_its_name_or_path(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["runs", "--baseline", "a"])
    by_name = capsys.readouterr().out
    assert "+1.00 [+1.00, +1.00]" in by_name
    main(["runs", "--baseline", "runs/a"])
    assert capsys.readouterr().out == by_name
    assert "baseline=runs: holds 2 runs" in fails(capsys, "runs", "--baseline", "runs")


def test_paper_shows_the_published_rows(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", "--paper", "pixart-sigma", "--format", "markdown"])
    out = capsys.readouterr().out
    assert "| viditq w4a8_int4 (published) |" in out
    assert "model: published pixart-sigma, ours emoji" in out
    assert "paper=none: no such table" in fails(capsys, "runs", "--paper", "none")


def test_files_go_to_the_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", "--format", "latex", "--out", "made", "--grid"])
    assert capsys.readouterr().out.splitlines() == [
        "made/table.tex",
        "images: not drawn; no quantized run has an images folder",
    ]
    assert "\\toprule" in Path("made/table.tex").read_text()


def test_plots_and_the_page(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(runs / "c", 25.0, **RTN, effective_bits={"weight": 4.25, "activation": 4.5})
    main(["runs/a", "runs/c", "--plots", "--out", "made"])
    out = capsys.readouterr().out.splitlines()
    assert "made/pareto-psnr.svg" in out
    assert "rank-psnr: not drawn; no two runs differ in their rank alone" in out
    assert Path("made/pareto-psnr.png").read_bytes().startswith(b"\x89PNG")
    main(["runs", "--format", "html", "--out", "made"])
    assert capsys.readouterr().out == "made/report.html\n"
    assert Path("made/report.html").read_text().startswith("<!doctype html>")


def test_plots_without_matplotlib_name_the_extra(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'dirotq[lab]'" in fails(capsys, "runs", "--format", "html")


def test_a_failed_job_does_not_keep_the_table_away(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_job(Path("sweep"), 0, "failed", "rank=9999", error="rank=9999: too large")
    main(["runs", "sweep"])
    assert "job 0 (rank=9999) failed: rank=9999: too large" in capsys.readouterr().out
    main(["sweep"])
    assert "failed: rank=9999: too large" in capsys.readouterr().out


def test_bad_input_ends_in_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "PATH: name at least one" in fails(capsys)
    assert "nothing: no such file or folder" in fails(capsys, "nothing")
    assert "metrics=iq: allowed are psnr, ssim" in fails(capsys, "runs", "--metrics", "iq")


def test_check_fails_until_write_has_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Path("experiments/results/bits")
    metric = {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 256}
    names = ("psnr", "ssim", "emoji_perceptual", "emoji_frechet")
    write_result(place / "one.json", 30.0, metrics=dict.fromkeys(names, metric))
    Path("README.md").write_text("<!-- bits: begin -->\n<!-- bits: end -->\n")
    assert "README.md: its tables do not agree" in fails(capsys, "--check")
    main(["--write"])
    main(["--check"])
    text = Path("README.md").read_text()
    Path("README.md").write_text(text.replace("0.500", "0.501"))
    assert "README.md: its tables do not agree" in fails(capsys, "--check")
