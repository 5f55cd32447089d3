"""Files and folders that are either whole or not there.

Everything is written to a temporary sibling, flushed to the disk and renamed. An exception of any
kind (a full disk, Ctrl-C) removes the sibling; a killed process leaves it behind under a name that
:func:`target_name` knows.
"""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARK = ".tmp-"


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path``, replacing a file of that name at once; makes missing folders.

    Raises:
        OSError: the disk is full or the place cannot be written; ``path`` is then as before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def atomic_write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8 with its line ends as they are; see :func:`atomic_write_bytes`."""
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: Path | str, value: object) -> None:
    """Write ``value`` as indented JSON; see :func:`atomic_write_bytes`.

    Raises:
        TypeError: a value that JSON does not have.
        ValueError: NaN or infinity.
        OSError: as :func:`atomic_write_bytes`.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n")


@contextmanager
def atomic_directory(path: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder and put it at ``path`` only if the block ends well.

    Args:
        path: where the folder goes; missing parents are made.
        replace: put it in the place of an existing folder, which is moved aside first and deleted
            after; a process killed between the two renames leaves no folder at ``path``.

    Yields:
        An empty folder beside ``path`` to write into.

    Raises:
        FileExistsError: ``path`` exists and ``replace`` is False; before the block runs.
        OSError: the disk is full or the place cannot be written.
    """
    path = Path(path)
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path)
    try:
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                _sync(Path(folder, name))
            _sync(Path(folder))
        if path.exists():
            remove(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def remove(path: Path) -> None:
    """Delete a folder so that no one ever sees half of it under its name."""
    aside = temporary_sibling(path)
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def temporary_sibling(path: Path) -> Path:
    """A fresh hidden name beside ``path``, on the same file system; see :func:`target_name`."""
    return path.with_name(f".{path.name}{_MARK}{secrets.token_hex(8)}")


def target_name(path: Path) -> str:
    """Name that a :func:`temporary_sibling` stands in for; empty for any other path."""
    stem, mark, _ = path.name.rpartition(_MARK)
    return stem[1:] if mark and stem.startswith(".") else ""


def _sync(path: Path) -> None:
    """Flush a file's data, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
