"""Scores and win rates of `dirotq-judge` in reports: nothing is dropped, in any format."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from dirotq.judge.report import read
from dirotq.report.app import main
from dirotq.report.cells import Marked, Number
from dirotq.report.judgements import judge_tables
from dirotq.report.runs import find_runs
from tests.report.test_report_app import fails
from tests.support.finished import RTN, result, write_run

FP16 = {**RTN, "method": "fp16", "bits": "w16a16", "rounding": None}
BASE = {"16-bit": FP16, "good": {}, "poor": RTN, "elsewhere": {"rank": 64}}
UNKNOWN = "judged, but not among the runs of this report"
MISSING = "not judged: not among the runs of this judgement"


def identity(name: str) -> str:
    """As a run's `config`, which is hexadecimal."""
    return name.encode().hex()


def metric(value: float, half: float, n: int = 24) -> dict[str, Any]:
    return {"value": value, "ci_low": value - half, "ci_high": value + half, "n": n}


def candidate(name: str, config: str | None, **changes: Any) -> dict[str, Any]:
    run = result(**changes)
    fields = ("model", "method", "bits", "rank", "rounding", "effective_bits", "weights")
    return {"name": name, **{field: run[field] for field in fields}, "config": config}


def criteria(value: float, half: float) -> dict[str, Any]:
    return dict.fromkeys(("alignment", "quality", "artefacts"), metric(value, half))


def pair(first: str, second: str, value: float, verdict: str) -> dict[str, Any]:
    counts = {"wins": 15, "ties": 4, "losses": 5}
    return {"first": first, "second": second, "win_rate": metric(value, 0.1), **counts, "verdict": verdict}  # fmt: skip


def judgement(identities: bool = True) -> dict[str, Any]:
    return {
        "schema": 1, "command": "dirotq-judge", "judge": "judge_7b",
        "protocol": {
            "seed": 0, "repeats": 1, "temperature": 0.0, "max_tokens": 1024, "minimum_side": 512, "attempts": 3,
            "rubric": "0", "prompts": {"set": "standard", "n": 24}, "image_size": [64, 64], "magnification": 8,
        },
        "candidates": [
            candidate(name, identity(name) if identities else None, **changes)
            for name, changes in BASE.items()
        ],
        "answers": {
            "asked": 312, "valid": 309, "invalid": 2, "failed": 1, "repaired": 0,
            "formats": {"json_schema": 309}, "omitted": [],
        },
        "scores": {name: criteria(4.5 - rank, 0.25) for rank, name in enumerate(BASE)},
        "score_differences": {
            "good": criteria(-0.1, 0.2), "poor": criteria(-2.0, 0.5), "elsewhere": criteria(-3.0, 0.5),
        },
        "pairs": [
            pair("good", "16-bit", 0.45, "not distinguishable"),
            pair("poor", "16-bit", 0.1, "16-bit"),
            pair("elsewhere", "good", 0.2, "good"),
        ],
        "position_bias": metric(0.52, 0.05), "order_consistency": None, "repeat_consistency": None,
        "env": {"device": "cpu", "versions": {}, "git": None},
    }  # fmt: skip


def finished(folder: Path, config: str | None, **changes: Any) -> Path:
    run = write_run(folder, **changes)
    if config is not None:
        content = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps({**content, "config": config}))
    return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with two judged runs under other names, one that was not, and judge.json."""
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "runs" / "a", identity("good"))
    finished(tmp_path / "runs" / "b", identity("poor"), **RTN)
    finished(tmp_path / "runs" / "c", identity("other"), rank=8)
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "judge.json").write_text(json.dumps(judgement()))
    return tmp_path


def test_scores_and_win_rates_of_the_runs_that_were_judged(place: Path) -> None:
    scores, pairs = judge_tables(place / "judge", find_runs([place / "runs"])).values()
    assert [row[0] for row in scores.rows] == [
        "16-bit",
        "dirotq, rank 32",
        "rtn",
        Marked("elsewhere", (UNKNOWN,)),
        "dirotq, rank 8",
    ]
    doubt = ("not distinguishable from the 16-bit images",)
    assert [row[1] for row in scores.rows] == [
        Number(4.5, 2, 4.25, 4.75, 24),
        Number(3.5, 2, 3.25, 3.75, 24, doubt),
        Number(2.5, 2, 2.25, 2.75, 24),
        Number(1.5, 2, 1.25, 1.75, 24),
        Marked("-", (MISSING,)),
    ]
    assert "judge_7b" in scores.notes[0]
    assert "N = 24 prompts of standard" in scores.notes[0]
    assert "2 invalid and 1 failed answers left out" in scores.notes[0]
    assert [(row[0], row[1], row[6]) for row in pairs.rows] == [
        ("dirotq, rank 32", "16-bit", None),
        ("rtn", "16-bit", "16-bit"),
        (Marked("elsewhere", (UNKNOWN,)), "dirotq, rank 32", "dirotq, rank 32"),
    ]
    rates = [row[2] for row in pairs.rows if isinstance(row[2], Number)]
    assert [rate.verdict for rate in rates] == ["not distinguishable", "", ""]
    assert "shown first: 0.52 [0.47, 0.57]" in pairs.notes[0]


def test_runs_without_an_identity_are_known_by_their_names(place: Path) -> None:
    (place / "judge" / "judge.json").write_text(json.dumps(judgement(identities=False)))
    for run, name in (("a", "good"), ("b", "elsewhere")):  # what b is, elsewhere is not
        (place / "runs" / run).rename(place / "runs" / name)
    finished(place / "runs" / "base", None, **FP16)
    scores, _ = judge_tables(place / "judge", find_runs([place / "runs"])).values()
    assert [row[0] for row in scores.rows] == [
        "fp16, w16a16",
        "dirotq, w4a4_int4, rank 32",
        Marked("poor", (UNKNOWN,)),
        Marked("elsewhere", (UNKNOWN,)),
        "dirotq, w4a4_int4, rank 8",
        "rtn, w4a4_int4",
    ]


def test_rows_that_are_called_alike_name_the_candidate(place: Path) -> None:
    content = judgement()
    content["candidates"][2] = candidate("poor", identity("poor"), seed=1)
    (place / "judge" / "judge.json").write_text(json.dumps(content))
    finished(place / "runs" / "b", identity("poor"), seed=1)
    found = find_runs([place / "runs" / "a", place / "runs" / "b"])
    scores, _ = judge_tables(place / "judge", found).values()
    assert [row[0] for row in scores.rows][1:3] == ["dirotq (good)", "dirotq (poor)"]


@pytest.mark.parametrize("form", ["terminal", "markdown", "latex", "html", "csv"])
def test_every_format_says_it_all(
    place: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    main(["runs", "--judge", "judge/judge.json", "--format", form, "--out", "made"])
    capsys.readouterr()
    (made,) = Path("made").iterdir()
    text = made.read_text().replace(r"\_", "_")
    for said in ("judge_7b", "not distinguishable", "elsewhere", UNKNOWN, MISSING):
        assert said in text


def test_csv_has_the_judge_and_n_in_every_row(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["runs", "--judge", "judge", "--format", "csv"])
    _, scores, pairs = capsys.readouterr().out.split("\n\n")
    rows = list(csv.DictReader(io.StringIO(scores)))
    assert [row["run"] for row in rows] == ["", "a", "b", "", "c"]
    assert {(row["judge"], row["prompts"]) for row in rows} == {("judge_7b", "standard")}
    assert [row["quality_n"] for row in rows] == ["24", "24", "24", "24", ""]
    assert [row["method_marks"] for row in rows] == ["", "", "", UNKNOWN, ""]
    first, *_ = csv.DictReader(io.StringIO(pairs))
    assert (first["win_rate"], first["win_rate_marks"]) == ("0.45", "not distinguishable")


def test_what_is_no_judgement_is_said_in_one_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing" in fails(capsys, "runs", "--judge", "nothing")
    path = place / "judge" / "judge.json"
    path.write_text(json.dumps({**judgement(), "judge": ""}))
    assert "judge.json: no judgement of dirotq-judge (judge: ''" in fails(
        capsys, "runs", "--judge", "judge"
    )
    path.write_text("{")
    with pytest.raises(ValueError, match=r"judge\.json: no judgement of dirotq-judge \(Expecting"):
        read(path)
