"""Paired differences to a baseline."""

from pathlib import Path

import pytest

from dirotq.metrics.statistics import paired_difference
from dirotq.report.cells import Number
from dirotq.report.differences import differences_table
from dirotq.report.render import terminal
from dirotq.report.runs import find_runs
from tests.support.finished import write_result, write_run

HARD = [20.0 + 3 * index for index in range(8)]
NOISE = [0.4, -0.5, 0.3, -0.2, 0.1, -0.3, 0.2, 0.1]


def prompts(values: list[float], prefix: str = "p") -> dict[str, str]:
    rows = [f"{prefix}{index},food,training,{value}" for index, value in enumerate(values)]
    return {"prompts.csv": "\n".join(["prompt,category,split,psnr", *rows]) + "\n"}


def test_gains_noise_and_what_cannot_be_paired(tmp_path: Path) -> None:
    write_run(tmp_path / "base", files=prompts(HARD), rank=8)
    gain = [value + 1 + noise for value, noise in zip(HARD, NOISE, strict=True)]
    noisy = [value + noise for value, noise in zip(HARD, NOISE, strict=True)]
    write_run(tmp_path / "gain", files=prompts(gain), rank=16)
    write_run(tmp_path / "noise", files=prompts(noisy), rank=32)
    write_run(tmp_path / "other", files=prompts(HARD, "q"), rank=64)
    write_result(tmp_path / "single.json", rank=128)
    runs = find_runs([tmp_path])
    table = differences_table(runs, runs[0])
    assert [row[0] for row in table.rows] == ["dirotq, rank 16", "dirotq, rank 32"]
    expected = paired_difference(gain, HARD, seed=0)
    cell = table.rows[0][1]
    assert isinstance(cell, Number)
    assert (cell.value, cell.low, cell.high) == (expected.value, expected.ci_low, expected.ci_high)
    text = terminal(table)
    assert text.count("not distinguishable") == 2  # the row, and the note that explains it
    assert "+0.0" in text.splitlines()[3]
    assert text.splitlines()[3].endswith("not distinguishable")
    assert "other is not compared: " in text
    assert "single is not compared: it has no prompts.csv." in text


def test_a_baseline_without_prompts_is_refused(tmp_path: Path) -> None:
    run = find_runs([write_run(tmp_path / "base")])[0]
    with pytest.raises(ValueError, match=r"baseline=.*base: has no prompts\.csv"):
        differences_table([run], run)
