"""Nothing is ever seen half-written, whatever interrupts the writing."""

import errno
import json
import multiprocessing
import os
import resource
from pathlib import Path

import pytest

from dirotq.atomic import (
    atomic_directory,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    remove,
    target_name,
    temporary_sibling,
)


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def fill(path: Path, data: bytes) -> None:
    with atomic_directory(path) as folder:
        (folder / "first").write_bytes(b"fits")
        (folder / "second").write_bytes(data)


def test_writes_and_replaces(tmp_path: Path) -> None:
    atomic_write_bytes(tmp_path / "new" / "a", b"\x00\xff")
    atomic_write_text(tmp_path / "b", "é\r\n")
    atomic_write_json(tmp_path / "c", {"z": 1, "a": "é"})
    atomic_write_text(tmp_path / "b", "second")
    assert everything(tmp_path) == {
        "b": b"second",
        "c": '{\n  "z": 1,\n  "a": "é"\n}\n'.encode(),
        "new/a": b"\x00\xff",
    }


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        atomic_write_bytes(tmp_path / "file", b"")
        with atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}], ids=["nan", "inf", "set"])
def test_json_refuses_before_it_touches_the_file(tmp_path: Path, value: object) -> None:
    atomic_write_json(tmp_path / "a", 1)
    with pytest.raises((TypeError, ValueError)):
        atomic_write_json(tmp_path / "a", {"x": value})
    assert everything(tmp_path) == {"a": b"1\n"}


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr
)
def test_interrupted_writes_leave_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    atomic_write_text(tmp_path / "file", "old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        atomic_write_text(tmp_path / "file", "new")
    with pytest.raises(type(error)):
        fill(tmp_path / "folder", b"new")
    assert everything(tmp_path) == {"file": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def write_too_much(root: Path) -> None:
    """In a process of its own: two writes that hit the limit; exits with 0 if both say so."""
    # The limit on the size of a file makes the write itself fail, half-way through the data.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    with pytest.raises(OSError, match="too large"):
        atomic_write_bytes(root / "file", bytes(100_000))
    with pytest.raises(OSError, match="too large"):
        fill(root / "folder", bytes(100_000))


def test_a_write_that_stops_half_way(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=write_too_much, args=(tmp_path,))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert list(tmp_path.iterdir()) == []


def test_directory_appears_at_the_end_only(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with atomic_directory(target) as folder:
        (folder / "images").mkdir()
        (folder / "images" / "a.png").write_bytes(b"png")
        assert not target.exists()
        assert folder.parent == target.parent
    assert everything(tmp_path) == {"deep/run/images/a.png": b"png"}
    assert [path.name for path in target.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
def test_directory_is_removed_on_any_exception(tmp_path: Path, error: BaseException) -> None:
    def half() -> None:
        with atomic_directory(tmp_path / "run") as folder:
            (folder / "a").write_text("half")
            raise error

    with pytest.raises(type(error)):
        half()
    assert list(tmp_path.iterdir()) == []


def test_existing_directory(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with atomic_directory(target) as folder:
        (folder / "old").write_text("old")
    with pytest.raises(FileExistsError, match="run exists"), atomic_directory(target):
        pytest.fail("the block must not run")
    with pytest.raises(ValueError, match="late"), atomic_directory(target, replace=True):
        raise ValueError("late")
    assert everything(target) == {"old": b"old"}
    with atomic_directory(target, replace=True) as folder:
        (folder / "new").write_text("new")
    assert everything(tmp_path) == {"run/new": b"new"}


def test_remove_and_names(tmp_path: Path) -> None:
    target = tmp_path / "a.b"
    target.mkdir()
    (target / "file").write_text("")
    remove(target)
    assert list(tmp_path.iterdir()) == []
    sibling = temporary_sibling(target)
    assert sibling.parent == tmp_path
    assert sibling != temporary_sibling(target)
    assert target_name(sibling) == "a.b"
    assert [target_name(Path(name)) for name in ("a.b", ".a.b", "a.tmp-0", ".lock")] == [""] * 4


def test_json_round_trip(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True], "b": {"c": "\u2028"}}
    atomic_write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_bytes()) == value
