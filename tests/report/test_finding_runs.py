"""Runs are found wherever they lie, and it is known what tells them apart."""

from pathlib import Path

import pytest

from dirotq.report.runs import differing, find_runs
from tests.support.finished import RTN, write_job, write_result, write_run


def test_run_directory_file_and_folder(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", 30.0, files={"layers.csv": "name\n"})
    write_run(tmp_path / "runs" / "b", 31.0)
    single = write_result(tmp_path / "rank-8.json", 25.0)
    found = find_runs([tmp_path / "runs" / "a", single, tmp_path / "runs"])
    assert [run.name for run in found] == ["a", "rank-8", "b"]  # a is not there twice
    assert found[0].file("layers.csv") == tmp_path / "runs" / "a" / "layers.csv"
    assert found[0].file("prompts.csv") is None
    assert found[1].file("layers.csv") is None


def test_a_folder_of_results_is_read_in_the_order_of_numbers(tmp_path: Path) -> None:
    for rank in (128, 8, 16):
        write_result(tmp_path / f"pca-{rank}.json", rank=rank)
    assert [run.name for run in find_runs([tmp_path])] == ["pca-8", "pca-16", "pca-128"]


def test_a_sweep_has_all_its_jobs_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tmp_path / "outputs" / "sweeps" / "today"
    write_run(tmp_path / "outputs" / "runs" / "one")
    for number in (0, 2, 10):
        write_job(sweep, number, "finished", f"rank={number}", run="outputs/runs/one")
    write_job(sweep, 1, "failed", "rank=9999", error="rank=9999: too large")
    write_job(sweep, 3, "running", "rank=3")
    write_job(sweep, 4, "finished", "rank=4", run="outputs/runs/gone")
    monkeypatch.chdir("/")  # a run directory is found from the sweep's folder too
    found = find_runs([sweep])
    # Jobs 2 and 10 finished in the directory of job 0: the same run.
    assert [(run.name, run.status) for run in found] == [
        ("0", "finished"),
        ("1", "failed"),
        ("3", "running"),
        ("4", "failed"),
    ]
    assert found[1].error == "rank=9999: too large"
    assert found[1].settings == {"rank": "9999"}
    assert found[3].error == "its run directory outputs/runs/gone is not there"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent", None, "absent: no such file or folder"),
        ("empty", None, "empty: holds no run, no sweep and no result file"),
        ("bad.json", "{", r"bad\.json: Expecting property name"),
        ("old.json", '{"schema": 0}', r"old\.json: .*"),
        ("sweep/0/job.json", '{"number": 0}', r"job\.json: not a job of a sweep \(KeyError"),
    ],
)
def test_what_is_no_run_is_said_in_one_line(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    path = tmp_path / name
    if text is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match=message) as caught:
        find_runs([tmp_path / name.split("/", maxsplit=1)[0]])
    assert "\n" not in str(caught.value)


def test_settings_come_from_the_command_of_a_committed_result(tmp_path: Path) -> None:
    command = "dirotq -m method=rtn,dirotq eval=standard calib=paper method.per_head=false out=x"
    settings = find_runs([write_result(tmp_path / "a.json", command=command)])[0].settings
    assert settings["calib"] == "paper"
    assert settings["method.per_head"] == "false"
    assert settings["rank"] == "32"
    assert not {"method", "out", "eval", "-m"} & set(settings)


def test_settings_come_from_the_configuration_of_a_run_directory(tmp_path: Path) -> None:
    config = {
        "scale_search": True,
        "out": "elsewhere",
        "weight_only": [],
        "method": {"_target_": "x", "rank": 0.125, "transform_bits": 8},
        "model": {"path": "p", "steps": 20},
        "eval": {"batch": 8},
    }
    run = find_runs([write_run(tmp_path / "a", config=config, command="dirotq calib=paper")])[0]
    further = {name: value for name, value in run.settings.items() if name not in ("rank",)}
    assert further["scale_search"] == "true"
    assert further["weight_only"] is None
    assert further["method.transform_bits"] == "8"
    assert further["model.steps"] == "20"
    assert not {"calib", "method.rank", "method._target_", "out", "eval.batch"} & set(further)


def test_what_one_method_alone_has_does_not_differ(tmp_path: Path) -> None:
    write_result(tmp_path / "a.json", rotation="compact", command="dirotq method.per_head=true")
    write_result(tmp_path / "b.json", **RTN, rounding="rtn")
    runs = find_runs([tmp_path])
    assert differing(runs) == ["rounding"]  # rank, basis and rotation are dirotq's alone
    write_result(tmp_path / "c.json", rotation="dense", command="dirotq method.per_head=false")
    write_result(tmp_path / "d.json", command="dirotq scale_search=true")
    assert differing(find_runs([tmp_path])) == [
        "rotation",
        "rounding",
        "method.per_head",
        "scale_search",
    ]
