"""Results of stages on disk, found by what they were computed from.

``root/<stage>/<key>/`` holds what a stage wrote, and ``manifest.json`` with the fields behind the
key and the size and digest of every file. ``root/<stage>/<key>.lock`` keeps two processes from
computing one entry; the system frees it when its process dies, however that happens.
"""

import functools
import hashlib
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from dirotq.atomic import atomic_directory, atomic_write_json, remove, target_name

CACHE_VERSION = 1
"""Part of every key: raise it when the layout of an entry changes."""

MANIFEST = "manifest.json"

_log = logging.getLogger(__name__)


class DamagedEntryError(ValueError):
    """A cache entry does not hold what its manifest says."""


def stage_key(stage: str, fields: Mapping[str, object]) -> str:
    """Key of a stage's result: 32 hex characters, equal exactly when stage and fields are equal.

    The first 128 bits of the SHA-256 of ``{stage, version, fields}`` in canonical JSON: names
    sorted, tuples as lists, a whole float as the integer it equals. True is not 1.

    Raises:
        TypeError: a value that JSON does not have, NaN and infinity among them, with its place.
    """
    content = {"stage": stage, "version": CACHE_VERSION, "fields": _canonical(fields, "fields")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Cache:
    """Stage results under one folder, shared by all processes that use it.

    Entries must not be changed once built: the first read in a process checks every byte, later
    ones the sizes only.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self._verified: set[Path] = set()

    def folder(self, stage: str, key: str) -> Path:
        """Where the entry lies, whether it exists or not.

        Raises:
            ValueError: ``stage`` has other than lower-case letters, digits, ``_`` and ``-``.
        """
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", stage):
            raise ValueError(f"stage must be a plain lower-case name, got {stage!r}")
        return self.root / stage / key

    def holds(self, stage: str, fields: Mapping[str, object]) -> bool:
        """Whether there is an entry for these fields; it may be damaged."""
        return (self.folder(stage, stage_key(stage, fields)) / MANIFEST).is_file()

    def get_or_build(
        self,
        stage: str,
        fields: Mapping[str, object],
        build: Callable[[Path], None],
        what: str = "",
    ) -> Path:
        """The finished entry for these fields, computed now if there is none.

        A damaged entry is deleted and built again, with a warning. While another process builds
        the entry, this call waits for it. If ``build`` raises, nothing is left.

        Args:
            stage: name of the stage.
            fields: all that the result depends on, as JSON values.
            build: writes the result into the empty folder it is given.
            what: the entry in a few words, for people; not part of its key.

        Returns:
            The entry's folder; treat it as read-only.

        Raises:
            TypeError: a field that JSON does not have.
            ValueError: a stage that is not a plain name.
            RuntimeError: ``build`` wrote no file, or one called ``manifest.json``.
        """
        key = stage_key(stage, fields)
        entry = self.folder(stage, key)
        if entry in self._verified and self._usable(entry, digests=False):
            _touch(entry)
            return entry
        entry.parent.mkdir(parents=True, exist_ok=True)
        with _locked(entry):
            _sweep(entry.parent, entry.name)
            if not self._usable(entry, digests=True):
                _log.debug("building %s %s", stage, key)
                with atomic_directory(entry) as folder:
                    build(folder)
                    _seal(folder, stage, key, fields, what)
            _touch(entry)
            self._verified.add(entry)
        return entry

    @contextmanager
    def writing(self, target: Path) -> Iterator[None]:
        """Keep other processes with this cache from writing the folder `target`, which lies elsewhere, meanwhile.

        What killed processes left half-written of it is deleted first.
        """
        locks = self.root / "runs"
        locks.mkdir(parents=True, exist_ok=True)
        with _locked(locks / hashlib.sha256(str(target.absolute()).encode()).hexdigest()[:32]):
            for path in target.parent.glob(".*"):
                if target_name(path) == target.name:
                    shutil.rmtree(path, ignore_errors=True)
            yield

    def _usable(self, entry: Path, *, digests: bool) -> bool:
        """Whether the entry is there and whole; a damaged one is deleted under the lock."""
        if not entry.exists():
            return False
        try:
            verify(entry, digests=digests)
        except (DamagedEntryError, OSError) as error:
            _log.warning("cache entry %s/%s is damaged: %s", entry.parent.name, entry.name, error)
            # Without digests the caller holds no lock; it comes back with one and deletes then.
            if digests:
                _log.warning("building %s/%s again", entry.parent.name, entry.name)
                remove(entry)
            return False
        return True


@functools.cache
def shared_cache(root: Path) -> Cache:
    """The Cache of this process for an absolute folder: the jobs of a sweep read an entry's every byte once."""
    return Cache(root)


def verify(entry: Path, *, digests: bool = True) -> None:
    """Check an entry against its manifest: names and sizes, and every byte with ``digests``.

    Raises:
        DamagedEntryError: says what is wrong.
        OSError: a file cannot be read.
    """
    try:
        manifest = json.loads((entry / MANIFEST).read_bytes())
        expected = {
            name: (item["size"], item["blake2b"]) for name, item in manifest["files"].items()
        }
        key = stage_key(manifest["stage"], manifest["fields"])
    except FileNotFoundError as error:
        raise DamagedEntryError(f"{MANIFEST} is missing") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedEntryError(f"{MANIFEST} is not readable") from error
    if key != entry.name:
        raise DamagedEntryError(f"{MANIFEST} is that of another entry")
    files = {name: path for name, path in _files(entry).items() if name != MANIFEST}
    for name in sorted(expected.keys() ^ files.keys()):
        raise DamagedEntryError(f"{name} is {'missing' if name in expected else 'not of it'}")
    for name, path in sorted(files.items()):
        size, digest = expected[name]
        if path.stat().st_size != size:
            raise DamagedEntryError(f"{name} has {path.stat().st_size} bytes instead of {size}")
        if digests and _digest(path) != digest:
            raise DamagedEntryError(f"{name} has other bytes than when it was written")


def _touch(entry: Path) -> None:
    """Note that the entry was used just now, which pruning asks."""
    with suppress(OSError):  # a cache that one may only read
        os.utime(entry / MANIFEST)


def _seal(folder: Path, stage: str, key: str, fields: Mapping[str, object], what: str) -> None:
    """Write the manifest of a freshly built folder."""
    files = _files(folder)
    if not files or MANIFEST in files:
        raise RuntimeError(f"stage {stage} wrote {'a ' + MANIFEST if files else 'no file'}")
    manifest = {
        "stage": stage,
        "key": key,
        "what": what,
        "fields": _canonical(fields, "fields"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": {
            name: {"size": path.stat().st_size, "blake2b": _digest(path)}
            for name, path in sorted(files.items())
        },
    }
    atomic_write_json(folder / MANIFEST, manifest)


def _sweep(folder: Path, held: str) -> None:
    """Delete what killed processes left half-built in ``folder``; the lock of ``held`` is ours."""
    for path in [path for path in folder.iterdir() if target_name(path)]:
        if target_name(path) == held:
            shutil.rmtree(path, ignore_errors=True)
            continue
        owner = target_name(path)
        # A lock that is taken belongs to a process that is building there at this moment.
        with suppress(Timeout), FileLock(folder / f"{owner}.lock", timeout=0):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Hold the entry's lock; says so when it has to wait for it."""
    lock = FileLock(entry.with_name(f"{entry.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("waiting for another process to finish %s/%s", entry.parent.name, entry.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _files(folder: Path) -> dict[str, Path]:
    """All files below ``folder`` by their relative name with forward slashes."""
    found = (path for path in folder.rglob("*") if not path.is_dir())
    return {path.relative_to(folder).as_posix(): path for path in found}


def _digest(path: Path) -> str:
    """BLAKE2b of a file, 64 hex characters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


def _canonical(value: object, where: str) -> object:
    """``value`` in the one form that JSON gives equal values."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        number = float(value)
        return int(number) if number.is_integer() else number
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{where} has the key {name!r}, which is not a string")
        return {name: _canonical(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where} is {value!r}, which JSON does not have")
