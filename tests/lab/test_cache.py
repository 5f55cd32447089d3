"""The stage cache: keys, damage, races, killed processes."""

import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dirotq.lab.cache import MANIFEST, Cache, DamagedEntryError, stage_key, verify

FIELDS = {"model": "emoji", "steps": 20, "guidance": 4.5}

# The children run only what is below: no torch, hence no threads that a fork could leave locked.
fork = multiprocessing.get_context("fork")


class Builder:
    """Writes two files and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "data.bin").write_bytes(bytes(range(256)) * 40)
        (folder / "images").mkdir()
        (folder / "images" / "0.png").write_bytes(b"png")


@pytest.fixture
def build() -> Builder:
    return Builder()


def test_builds_once(tmp_path: Path, build: Builder) -> None:
    cache = Cache(tmp_path / "cache")
    entry = cache.get_or_build("images", FIELDS, build)
    assert entry == cache.folder("images", stage_key("images", FIELDS))
    assert cache.get_or_build("images", FIELDS, build) == entry
    assert Cache(tmp_path / "cache").get_or_build("images", FIELDS, build) == entry
    assert build.calls == 1
    assert cache.get_or_build("images", FIELDS | {"steps": 10}, build) != entry
    assert build.calls == 2
    manifest = json.loads((entry / MANIFEST).read_text())
    assert manifest["fields"] == FIELDS
    assert manifest["stage"] == "images"
    assert set(manifest["files"]) == {"data.bin", "images/0.png"}
    assert manifest["files"]["images/0.png"]["size"] == 3
    assert str(tmp_path) not in (entry / MANIFEST).read_text()


def flip_bit(entry: Path) -> None:
    data = bytearray((entry / "data.bin").read_bytes())
    data[5000] ^= 1
    (entry / "data.bin").write_bytes(data)


def truncate(entry: Path) -> None:
    os.truncate(entry / "data.bin", 100)


def lose_file(entry: Path) -> None:
    (entry / "images" / "0.png").unlink()


def add_file(entry: Path) -> None:
    (entry / "stray").write_text("")


def lose_manifest(entry: Path) -> None:
    (entry / MANIFEST).unlink()


def break_manifest(entry: Path) -> None:
    (entry / MANIFEST).write_bytes(b'{"files": \xff')


def empty_manifest(entry: Path) -> None:
    (entry / MANIFEST).write_text("[]")


def foreign_manifest(entry: Path) -> None:
    text = (entry / MANIFEST).read_text()
    (entry / MANIFEST).write_text(text.replace('"steps": 20', '"steps": 21'))


DAMAGE = [
    (flip_bit, "data.bin has other bytes"),
    (truncate, "data.bin has 100 bytes instead of 10240"),
    (lose_file, "images/0.png is missing"),
    (add_file, "stray is not of it"),
    (lose_manifest, "manifest.json is missing"),
    (break_manifest, "manifest.json is not readable"),
    (empty_manifest, "manifest.json is not readable"),
    (foreign_manifest, "manifest.json is that of another entry"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE, ids=[d.__name__ for d, _ in DAMAGE])
def test_damage_is_found_and_rebuilt(
    tmp_path: Path,
    build: Builder,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    entry = Cache(tmp_path).get_or_build("images", FIELDS, build)
    damage(entry)
    with pytest.raises(DamagedEntryError, match=message):
        verify(entry)
    with caplog.at_level(logging.WARNING):
        assert Cache(tmp_path).get_or_build("images", FIELDS, build) == entry
    assert message in caplog.text
    assert build.calls == 2
    verify(entry)
    assert not list(entry.parent.glob(".*"))


def test_sizes_are_checked_on_every_read(tmp_path: Path, build: Builder) -> None:
    cache = Cache(tmp_path)
    truncate(cache.get_or_build("images", FIELDS, build))
    verify(cache.get_or_build("images", FIELDS, build))
    assert build.calls == 2


@pytest.mark.parametrize("error", [OSError(28, "No space"), KeyboardInterrupt()], ids=repr)
def test_failed_build_leaves_nothing(tmp_path: Path, build: Builder, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        build(folder)
        raise error

    cache = Cache(tmp_path)
    with pytest.raises(type(error)):
        cache.get_or_build("images", FIELDS, fail)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    cache.get_or_build("images", FIELDS, build)
    assert build.calls == 2


def test_builds_that_cannot_be_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with pytest.raises(RuntimeError, match="stage images wrote no file"):
        cache.get_or_build("images", FIELDS, lambda _: None)
    with pytest.raises(RuntimeError, match=r"wrote a manifest\.json"):
        cache.get_or_build("images", FIELDS, lambda folder: empty_manifest(folder))
    for stage in ("", "../up", "A", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="plain lower-case name"):
            cache.get_or_build(stage, FIELDS, lambda _: None)


def test_a_build_may_use_other_entries(tmp_path: Path, build: Builder) -> None:
    cache = Cache(tmp_path)

    def outer(folder: Path) -> None:
        (folder / "half").write_text("")
        inner = cache.get_or_build("images", {"inner": 1}, build)
        (folder / "copy").write_bytes((inner / "data.bin").read_bytes())

    entry = cache.get_or_build("images", FIELDS, outer)
    assert sorted(path.name for path in entry.iterdir()) == ["copy", "half", MANIFEST]


def count_slowly(root: Path, log: Path) -> None:
    def build(folder: Path) -> None:
        with log.open("a") as file:
            file.write("built\n")
        time.sleep(0.3)
        (folder / "a").write_text("a")

    Cache(root).get_or_build("images", FIELDS, build)


def test_processes_that_race_build_once(tmp_path: Path) -> None:
    root, log = tmp_path / "cache", tmp_path / "log"
    processes = [fork.Process(target=count_slowly, args=(root, log)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(20)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert log.read_text() == "built\n"


def hang(root: Path, started: Path, fields: dict[str, object]) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        started.touch()
        time.sleep(60)

    Cache(root).get_or_build("images", fields, build)


def kill_while_building(tmp_path: Path, fields: dict[str, object]) -> None:
    started = tmp_path / "started"
    process = fork.Process(target=hang, args=(tmp_path / "cache", started, fields))
    process.start()
    deadline = time.monotonic() + 20
    while not started.exists():
        assert time.monotonic() < deadline, "the child did not start"
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("fields", [FIELDS, {"other": 1}], ids=["same entry", "another entry"])
def test_killed_build_is_cleaned_and_redone(
    tmp_path: Path, build: Builder, fields: dict[str, object]
) -> None:
    kill_while_building(tmp_path, fields)
    stage = tmp_path / "cache" / "images"
    assert list(stage.glob(".*"))
    entry = Cache(tmp_path / "cache").get_or_build("images", FIELDS, build)
    verify(entry)
    assert build.calls == 1
    assert not list(stage.glob(".*"))


def test_folder_of_a_running_build_is_left_alone(tmp_path: Path, build: Builder) -> None:
    root, started = tmp_path / "cache", tmp_path / "started"
    process = fork.Process(target=hang, args=(root, started, {"other": 1}))
    process.start()
    try:
        while not started.exists():
            time.sleep(0.01)
        Cache(root).get_or_build("images", FIELDS, build)
        assert len(list((root / "images").glob(".*"))) == 1
    finally:
        process.kill()
        process.join(20)
