"""Rows, columns, seeds and footnotes of tables."""

from pathlib import Path
from typing import Any

import pytest

from dirotq.report.cells import Marked, Number, Table
from dirotq.report.runs import find_runs
from dirotq.report.tables import pivot, results_table
from tests.support.finished import RTN, result, write_job, write_result, write_run


def column(table: Table, key: str) -> list[Any]:
    index = [column.key for column in table.columns].index(key)
    return [row[index] for row in table.rows]


def keys(table: Table) -> list[str]:
    return [column.key for column in table.columns]


def test_settings_of_most_rows_are_columns_and_those_of_few_are_said(tmp_path: Path) -> None:
    write_result(tmp_path / "1.json", rank=8, command="dirotq scale_search=true")
    write_result(tmp_path / "2.json", rank=16)
    write_result(tmp_path / "3.json", **RTN)
    runs = find_runs([tmp_path])
    table = results_table(runs)
    assert keys(table) == ["method", "rank", "weight_bits", "activation_bits", "psnr", "ssim"]
    assert column(table, "method") == ["dirotq, scale_search=true", "dirotq", "rtn"]
    assert column(table, "rank") == ["8", "16", None]
    spread = results_table(runs, spread=True)
    assert keys(spread)[:4] == ["run", "method", "rank", "scale_search"]
    assert column(spread, "method") == ["dirotq", "dirotq", "rtn"]
    assert column(spread, "run") == ["1", "2", "3"]


def test_a_metric_has_its_interval_and_n(tmp_path: Path) -> None:
    table = results_table(find_runs([write_result(tmp_path / "a.json", 31.0)]))
    assert column(table, "psnr") == [Number(31.0, 2, 30.5, 31.5, 256)]
    assert column(table, "weight_bits") == [Number(6.25, 2)]
    assert table.notes[0] == (
        "emoji, trained weights, simulated numerics, N = 256 prompts, prompt set standard, seed 0, a GPU, "
        "torch 2.11.0, commit 0123456789ab."
    )


def test_seeds_are_averaged_and_marked(tmp_path: Path) -> None:
    for seed, psnr in enumerate((30.0, 31.0, 33.5)):
        write_result(tmp_path / f"{seed}.json", psnr, seed=seed)
    write_result(tmp_path / "other.json", 20.0, basis="random", seed=0)
    runs = find_runs([tmp_path])
    table = results_table(runs)
    mean = Number(31.5, 2, 30.0, 33.5, 256, marks=("mean [least, largest] over 3 seeds",))
    assert column(table, "psnr") == [mean, Number(20.0, 2, 19.5, 20.5, 256)]
    each = results_table(runs, each_seed=True)
    assert [number.value for number in column(each, "psnr")] == [30.0, 31.0, 33.5, 20.0]
    assert column(each, "seed") == ["0", "1", "2", "0"]


def test_runs_alike_are_one_row_and_no_seeds(tmp_path: Path) -> None:
    for number in range(2):  # a sweep over ranks has round to nearest once a rank
        write_result(tmp_path / f"{number}.json", 30.0, **RTN)
    write_result(tmp_path / "2.json", 29.0, **RTN)  # the same again, and another number
    table = results_table(find_runs([tmp_path]), spread=True)
    assert column(table, "run") == ["0, 1", "2"]
    assert column(table, "psnr") == [
        Number(30.0, 2, 29.5, 30.5, 256),
        Number(29.0, 2, 28.5, 29.5, 256),
    ]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"prompts": {"set": "standard", "n": 16}}, "N"),
        ({"weights": "random"}, "weights"),
        ({"numerics": "kernel"}, "numerics"),
        ({"env": {**result()["env"], "device": "another GPU"}}, "device"),
    ],
)
def test_runs_measured_differently_are_not_averaged_and_say_so(
    tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    write_result(tmp_path / "a.json", seed=0)
    write_result(tmp_path / "b.json", seed=1, **change)
    table = results_table(find_runs([tmp_path]))
    assert len(table.rows) == 2
    assert len(set(column(table, name))) == 2


def test_a_metric_that_was_left_out_says_why(tmp_path: Path) -> None:
    reason = "no AlexNet weights here"
    write_result(tmp_path / "a.json", left_out={"lpips": reason})
    write_result(tmp_path / "b.json", rank=8)
    table = results_table(find_runs([tmp_path]))
    assert column(table, "lpips") == [Marked("-", (f"left out: {reason}",)), None]


def test_jobs_without_a_result_are_named_with_their_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "a")
    sweep = tmp_path / "sweep"
    write_job(sweep, 0, "finished", "rank=32", run=str(run))
    write_job(sweep, 1, "failed", "rank=9999", error="rank=9999 is too large")
    write_job(sweep, 2, "running", "rank=16")
    table = results_table(find_runs([sweep]))
    assert len(table.rows) == 1
    assert table.unfinished == (
        ("1", "rank=9999", "failed: rank=9999 is too large"),
        ("2", "rank=16", "running"),
    )


def test_pivot_has_a_column_for_each_value(tmp_path: Path) -> None:
    for rank in (8, 16):
        for basis, plus in (("pca", 0.0), ("joint", 1.0)):
            bits = {"weight": 4.0 + rank / 8, "activation": 5.0}
            changes = {"rank": rank, "basis": basis, "effective_bits": bits}
            write_result(tmp_path / f"{basis}-{rank}.json", 20.0 + rank / 8 + plus, **changes)
    runs = find_runs([tmp_path])
    table = pivot(runs, columns="basis", metric="psnr")
    assert keys(table) == ["method", "rank", "weight_bits", "joint_psnr", "pca_psnr"]
    assert column(table, "rank") == ["8", "16"]
    assert [number.value for number in column(table, "pca_psnr")] == [21.0, 22.0]
    assert [number.value for number in column(table, "joint_psnr")] == [22.0, 23.0]
    assert [number.value for number in column(table, "weight_bits")] == [5.0, 6.0]
    by_rank = pivot(runs, columns="rank", metric="psnr")  # here the columns differ in size
    assert keys(by_rank)[2:] == ["8_weight_bits", "8_psnr", "16_weight_bits", "16_psnr"]


def test_pivot_refuses_what_does_not_fit(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", basis="pca")
    with pytest.raises(ValueError, match=r"columns=basis: no two runs differ in it"):
        pivot(find_runs([tmp_path]), columns="basis", metric="psnr")
    write_result(tmp_path / "b.json", basis="joint")
    write_result(tmp_path / "c.json", basis="joint", prompts={"set": "quick", "n": 16})
    with pytest.raises(ValueError, match="basis=joint: two runs"):
        pivot(find_runs([tmp_path]), columns="basis", metric="psnr")
