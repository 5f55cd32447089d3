"""W&B: what an offline run holds, read back from its files; nothing outside its folder, nothing on stdout."""

import csv
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
from PIL import Image

from dirotq.config import Job, build_job, compose_config
from dirotq.lab import tracking
from dirotq.lab.results import read_result
from dirotq.lab.runner import identity, run
from dirotq.lab.tracking import tracked
from tests.support.jobs import job
from tests.support.wandb_files import read, run_folders

Make = Callable[..., Job]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and none of W&B's variables: a developer's own key must not be found."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    return folder


@pytest.fixture
def make(tiny_pipeline: Path, tmp_path: Path) -> Make:
    def made(*more: str, logger: str = "wandb") -> Job:
        chosen = [
            f"logger={logger}",
            *([f"logger.dir={tmp_path / 'logs'}"] if logger != "none" else []),
        ]
        return job(tiny_pipeline, tmp_path, f"out={tmp_path / 'run'}", "method=rtn", *chosen, *more)

    return made


def do(wanted: Job, sweep: str | None = None) -> Path:
    with tracked(wanted, sweep) as log:
        folder = run(wanted)
        log(folder)
    return folder


def test_an_offline_run_holds_what_the_run_directory_does(
    make: Make, tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = make("save=true", "logger.checkpoint=true", "logger.tags=[one,two]")
    folder = do(wanted, "ranks")
    captured = capfd.readouterr()
    assert "wandb" not in captured.out + captured.err
    (place,) = run_folders(tmp_path / "logs")
    assert place.name.startswith("offline-run-")
    found, result = read(place), read_result(folder / "result.json")

    assert found["exit"] == 0
    assert (found["run"].run_id, found["run"].run_group) == (identity(wanted), "ranks")
    assert (found["run"].project, list(found["run"].tags)) == ("dirotq", ["one", "two"])
    assert found["run"].display_name == "run"
    assert {name: found["config"][name] for name in wanted.composed} == wanted.composed

    for name, value in result.items():
        assert found["summary"][name] == value
    assert {"psnr", "ssim"} <= set(result["metrics"])
    for name, metric in result["metrics"].items():
        assert found["history"][0][name] == metric["value"]
    assert found["summary"]["error"] is None

    for table in sorted(folder.glob("*.csv")):
        with table.open(newline="") as file:
            names, *rows = csv.reader(file)
        logged = json.loads((place / "files" / media(found, table.stem)).read_text())
        assert logged["columns"] == names
        assert [[same(entry) for entry in row] for row in logged["data"]] == [
            [same(entry) for entry in row] for row in rows
        ]
    picture = Image.open(place / "files" / media(found, "grid"))
    assert picture.tobytes() == Image.open(folder / "grid.png").tobytes()

    (checkpoint,) = [one for one in found["artifacts"] if one.type == "model"]
    stored = {one.path: Path(one.local_path) for one in checkpoint.manifest.contents}
    assert set(stored) == {path.name for path in (folder / "checkpoint").iterdir()}
    for name, copy in stored.items():
        assert copy.read_bytes() == (folder / "checkpoint" / name).read_bytes()
        assert copy.is_relative_to(tmp_path / "logs" / "wandb")
    assert list(home.rglob("*")) == []


def media(found: dict[str, Any], key: str) -> str:
    """Path of a table or an image in the folder `files` of a run; the history and the list of files agree on it."""
    path: str = found["history"][0][f"{key}.path"]
    assert path in found["files"]
    return path


def same(entry: object) -> object:
    """An entry of a table as what it stands for: numbers and texts of numbers are equal, and so is nothing."""
    if entry in (None, ""):
        return None
    try:
        return float(str(entry))
    except ValueError:
        return entry


def test_a_failed_job_is_shown_failed_and_resumed_in_the_same_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make()
    for error, text in (
        (ValueError("the disk\nis full"), "ValueError: the disk is full"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ):
        with pytest.raises(type(error)), tracked(wanted):
            raise error
        found = read(run_folders(tmp_path / "logs", identity(wanted))[-1])
        assert found["exit"] == 1
        assert found["summary"]["error"] == text
        assert found["history"] == []
        time.sleep(1.1)  # W&B's folders are named after the second
    do(wanted)
    *_, last = folders = run_folders(tmp_path / "logs", identity(wanted))
    assert len(folders) == 3
    found = read(last)
    assert found["exit"] == 0
    assert found["summary"]["error"] is None
    assert found["run"].run_id == identity(wanted)


def test_a_finished_job_is_logged_once(make: Make, tmp_path: Path) -> None:
    plain = make(logger="none")
    do(plain)
    assert not (tmp_path / "logs").exists()
    do(make())
    assert len(run_folders(tmp_path / "logs")) == 1
    do(make())
    do(make("logger.group=another"))
    assert len(run_folders(tmp_path / "logs")) == 1
    for more in (["logger.project=other"], ["force=true"]):
        time.sleep(1.1)  # W&B's folders are named after the second
        do(make(*more))
    found = [read(place) for place in run_folders(tmp_path / "logs")]
    assert [one["run"].project for one in found] == ["dirotq", "other", "dirotq"]
    assert {one["run"].run_id for one in found} == {identity(plain)}
    assert all("psnr" in one["summary"] for one in found)


def test_the_logger_does_not_change_what_a_run_is(make: Make) -> None:
    others = make(), make("logger.project=x"), make("logger.tags=[a]"), make("logger.mode=offline")
    assert {identity(other) for other in others} == {identity(make(logger="none"))}


def test_wandb_reports_nothing_but_the_run(make: Make) -> None:
    """Its reports of its own use go to its server from an offline run too, unless this variable is set."""
    with tracked(make()):
        assert not wandb.env.error_reporting_enabled()
    assert [
        name for name in os.environ if name in ("WANDB_ERROR_REPORTING", "WANDB_DATA_DIR")
    ] == []


def test_a_missing_package_is_one_line(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with tracked(make(logger="none")):
        pass
    with (
        pytest.raises(ValueError, match=r"^logger=wandb: .* pip install 'dirotq\[lab\]', or log"),
        tracked(make()),
    ):
        pytest.fail("the job must not start")


def test_without_a_key_nobody_is_asked_for_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("getpass.getpass", lambda *_: pytest.fail("asked"))
    with (
        pytest.raises(ValueError, match=r"^logger.mode=online: no API key is configured; run wan"),
        tracked(make("logger.mode=online")),
    ):
        pytest.fail("the job must not start")


def test_auto_goes_offline_where_the_server_cannot_be_reached(
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    started, init = [], wandb.init

    def unreachable(**arguments: Any) -> wandb.Run:
        started.append(arguments["mode"])
        if arguments["mode"] == "online":
            raise wandb.errors.CommError("no\nroute")
        return init(**arguments)

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", unreachable)
    with (
        pytest.raises(ValueError, match=r"^logger\.mode=online: no route$"),
        tracked(make("logger.mode=online")),
    ):
        pytest.fail("the job must not start")
    do(make())
    assert started == ["online", "online", "offline"]
    assert "logger.mode=auto: the run is logged offline, for online no route" in caplog.text
    assert read(run_folders(tmp_path / "logs")[0])["exit"] == 0


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("logger.name=tensorboard", "logger.name=tensorboard, allowed are wandb"),
        ("logger.mode=cloud", "logger.mode=cloud, allowed are auto, online, offline"),
        ("logger.tags=one", "logger.tags=one, allowed is a list"),
        ("logger.dir=null", "logger.dir=None, allowed is text"),
        (
            "logger.checkpoint=true",
            "logger.checkpoint=true logs checkpoint/, allowed with save=true",
        ),
    ],
)
def test_bad_settings_end_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build_job(compose_config(["logger=wandb", override]))


def test_numbers_of_tables_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "layers.csv"
    path.write_text("name,rank,snr,note\na,8,inf,\nb,,-1.5,3 fell back\n")
    table = tracking._table(path)
    assert table.columns == ["name", "rank", "snr", "note"]
    assert table.data == [["a", 8.0, float("inf"), ""], ["b", None, -1.5, "3 fell back"]]
