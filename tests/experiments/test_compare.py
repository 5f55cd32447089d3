"""Paired differences of two runs."""

import json
import sys
from pathlib import Path

import pytest

from dirotq.lab.compare import compare
from dirotq.metrics.statistics import paired_difference
from experiments.compare import main
from tests.support.finished import write_result


def write(folder: Path, values: dict[str, float]) -> Path:
    folder.mkdir()
    rows = [f"{name},food,training,{value}" for name, value in values.items()]
    (folder / "prompts.csv").write_text("\n".join(["prompt,category,split,psnr", *rows]) + "\n")
    return folder


def test_what_is_common_to_both_cancels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hard = {f"p{index}": 20.0 + 3 * index for index in range(8)}
    run = write(tmp_path / "a", {name: value + 1.5 for name, value in hard.items()})
    baseline = write(tmp_path / "b", hard)
    found = compare(run, baseline)
    assert found == {
        "psnr": paired_difference([v + 1.5 for v in hard.values()], list(hard.values()), seed=0)
    }
    assert found["psnr"].ci_low == pytest.approx(1.5)
    monkeypatch.setattr(sys, "argv", ["compare", str(run), str(baseline)])
    main()
    assert capsys.readouterr().out == "psnr               +1.5 [+1.5, +1.5]  N=8\n"


def test_noise_is_called_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write(tmp_path / "a", {"p": 30.0, "q": 20.0, "r": 25.0})
    baseline = write(tmp_path / "b", {"p": 20.0, "q": 31.0, "r": 25.0})
    monkeypatch.setattr(sys, "argv", ["compare", str(run), str(baseline)])
    main()
    assert "not distinguishable" in capsys.readouterr().out


def test_other_prompts_or_no_file_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = write(tmp_path / "a", {"p": 1.0}), write(tmp_path / "b", {"q": 1.0})
    for folder, message in ((other, "other prompts"), (tmp_path / "c", "No such file")):
        monkeypatch.setattr(sys, "argv", ["compare", str(run), str(folder)])
        with pytest.raises(SystemExit, match=message):
            main()


def test_pairs_are_written_with_what_was_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write(tmp_path / name, {"p": 30.0 + n, "q": 20.0}) for n, name in enumerate("ab")]
    for run in runs:
        write_result(run / "result.json", command=f"dirotq method=rtn out={run.name}")
    out = tmp_path / "pairs.json"
    pairs = [*runs, *reversed(runs)]
    monkeypatch.setattr(sys, "argv", ["compare", "--out", str(out), *map(str, pairs)])
    main()
    document = json.loads(out.read_text())
    assert [row["differences"]["psnr"]["value"] for row in document["rows"]] == [-0.5, 0.5]
    assert document["rows"][0]["run"]["command"] == "dirotq method=rtn"
    assert "a minus b" in capsys.readouterr().out


def test_a_run_without_baseline_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", str(tmp_path)])
    with pytest.raises(SystemExit, match="1 runs, allowed are pairs"):
        main()
