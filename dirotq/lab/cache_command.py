"""The command line of the stage cache: `dirotq-cache list | verify | prune`."""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from dirotq.atomic import remove, target_name
from dirotq.config import config_folder
from dirotq.lab.cache import MANIFEST, DamagedEntryError, verify

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class Entry:
    """A finished stage. size: in bytes. used: when a run last asked for it, seconds since 1970. what: in words."""

    path: Path
    size: int
    used: float
    what: str

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.path.parent.name


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; ends with exit status 1 where something is damaged or the input is bad."""
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(1)
    sys.exit(status)


def entries(root: Path, stage: str | None = None) -> list[Entry]:
    """The entries under `root`, of one stage or of all, the longest unused first."""
    if not root.is_dir():
        raise ValueError(f"--cache {root}: there is no such folder")
    found = []
    for path in root.glob(f"{stage or '*'}/*/"):
        # Other folders are half-built, or not of stages: the judge keeps its answers beside them.
        if re.fullmatch(r"[0-9a-f]{32}", path.name) and path.with_suffix(".lock").exists():
            with suppress(FileNotFoundError):  # pruned by somebody else at this moment
                found.append(_entry(path))
    return sorted(found, key=lambda entry: entry.used)


def _entry(path: Path) -> Entry:
    manifest = path / MANIFEST
    try:
        what = json.loads(manifest.read_bytes())["what"]
        used = manifest.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError):
        what, used = "", path.stat().st_mtime
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return Entry(path, size, used, str(what))


def _list(options: argparse.Namespace) -> int:
    found = entries(options.cache, options.stage)
    now = time.time()
    for entry in found:
        row = f"{entry.stage:<12} {entry.path.name[:8]}  {_size(entry.size):>9}  {_age(now - entry.used):>5}"
        _say(f"{row}  {entry.what}".rstrip())
    _say(f"{len(found)} entries, {_size(sum(entry.size for entry in found))}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    found = entries(options.cache, options.stage)
    damaged = left = 0
    for entry in found:
        try:
            verify(entry.path)
        except (DamagedEntryError, OSError) as error:
            damaged += 1
            repaired = options.repair and _delete(entry)
            left += not repaired
            _say(f"{entry.stage}/{entry.path.name}: {error}{', deleted' if repaired else ''}")
    _say(f"{len(found)} entries, {damaged} damaged")
    return 1 if left else 0


def _prune(options: argparse.Namespace) -> int:
    if options.older_than is None and options.keep_size is None:
        raise ValueError("prune needs --older-than or --keep-size")
    found = entries(options.cache, options.stage)
    now, total = time.time(), sum(entry.size for entry in found)
    deleted = freed = 0
    for entry in found:
        old = options.older_than is not None and now - entry.used > options.older_than
        large = options.keep_size is not None and total > options.keep_size
        if not (old or large):
            continue
        if not options.dry_run and not _delete(entry):
            _say(f"{entry.stage}/{entry.path.name}: in use, kept")
            continue
        total -= entry.size
        deleted, freed = deleted + 1, freed + entry.size
        _say(f"{entry.stage}/{entry.path.name}  {_size(entry.size)}  {entry.what}".rstrip())
    if not options.dry_run:
        freed += _delete_leftovers(options.cache, options.stage)
    verb = "would be freed" if options.dry_run else "freed"
    _say(f"{deleted} of {len(found)} entries, {_size(freed)} {verb}")
    return 0


def _delete(entry: Entry) -> bool:
    """Whether the entry is gone now; one that a process holds the lock of stays."""
    with _held(entry.path) as held:
        if held and entry.path.exists():
            remove(entry.path)
    return held


def _delete_leftovers(root: Path, stage: str | None) -> int:
    """Delete what killed processes left half-built; returns the bytes."""
    freed = 0
    for path in root.glob(f"{stage or '*'}/.*"):
        owner = target_name(path)
        if owner and path.is_dir():
            with _held(path.with_name(owner)) as held:
                if held:
                    freed += sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
                    shutil.rmtree(path, ignore_errors=True)
    return freed


@contextmanager
def _held(entry: Path) -> Iterator[bool]:
    """Hold the entry's lock for the block, if nobody else does."""
    lock = FileLock(entry.with_name(f"{entry.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _parser() -> argparse.ArgumentParser:
    runtime = yaml.safe_load((config_folder() / "runtime" / "default.yaml").read_text())
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--cache", type=Path, default=Path(runtime["cache"]), metavar="FOLDER")
    common.add_argument("--stage", help="only this one, such as reference or quantized")
    parser = argparse.ArgumentParser(prog="dirotq-cache", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=text, description=text)
        made.set_defaults(run=run)
        return made

    command("list", _list, "stage, key, size, time since last use, and what it is of")
    checking = command("verify", _verify, "read every byte; exit status 1 for a damaged entry")
    checking.add_argument("--repair", action="store_true", help="delete damaged entries")
    pruning = command("prune", _prune, "delete entries, the longest unused first")
    pruning.add_argument("--older-than", type=_duration, metavar="7d", help="unused for so long")
    pruning.add_argument("--keep-size", type=_bytes, metavar="20GB", help="until so much is left")
    pruning.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    return parser


def _duration(text: str) -> float:
    return _quantity(text, _SECONDS, "a number and s, m, h, d or w: 7d")


def _bytes(text: str) -> float:
    return _quantity(text, _BYTES, "a number and B, KB, MB, GB or TB: 20GB")


def _quantity(text: str, units: dict[str, int], allowed: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]+)", text)
    if found is None or found[2] not in units:
        raise argparse.ArgumentTypeError(f"{text}, allowed is {allowed}")
    return float(found[1]) * units[found[2]]


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0, seconds):.0f}s"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
