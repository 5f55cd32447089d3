"""The JSON of a bench: written after every row, whole or not at all, and continued by a later command."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dirotq.atomic import atomic_write_json
from dirotq.lab.results import environment

_PACKAGES = ("triton", "torchao", "accelerate")
# Keys of the command that say nothing about what was measured.
_PLACES = re.compile(r"(out|commit|bench\.workdir|\+\w*workdir)=")

_FOLDERS = re.compile(r"(?<![\w.])/(?:[\w.+@-]+/)+")
_PRINTED = 2000  # characters of a row

Row = dict[str, Any]


class Recorder:
    """Rows of one bench, by name, in `path`.

    head: what the document says of all rows. only: regular expressions; rows whose name none of them matches are not
    measured (none: all are). budget: seconds after which no further row is begun. lists: settings that only say which
    rows there are, and may be others when a file is continued.
    A file that is there is continued; rows of another commit say which. Raises ValueError when it was not measured
    alike.
    """

    def __init__(
        self,
        path: Path,
        head: dict[str, Any],
        only: tuple[str, ...] = (),
        budget: float | None = None,
        lists: tuple[str, ...] = (),
    ) -> None:
        self._path = path
        self._only = only
        self._budget = budget
        self._lists = lists
        self._start = time.monotonic()
        self.document: dict[str, Any] = {**head, "left_out": {}, "rows": []}
        if path.exists():
            self._continue(json.loads(path.read_text(encoding="utf-8")))

    def wanted(self, name: str) -> bool:
        """Whether `only` asks for the row."""
        return not self._only or any(re.search(pattern, name) for pattern in self._only)

    def spent(self) -> bool:
        """Whether the budget is."""
        return self._budget is not None and self.seconds() > self._budget

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def measure(self, name: str, run: Callable[[], Row]) -> Row | None:
        """The row `name`, measured by `run` and written; what raises is a row that says so. None if it is left out."""
        if not self.wanted(name):
            return None
        if self.spent():
            self.leave_out(name, f"budget_seconds={self._budget:g} are over")
            return None
        start = time.monotonic()
        try:
            row = run()
        except Exception as error:  # a bench goes on with what can be measured
            traceback.print_exc()
            row = {"failed": said(error)}
        row = {"name": name, **row, "seconds": round(time.monotonic() - start, 2)}
        self.put(row)
        print(json.dumps(row)[:_PRINTED], flush=True)
        _check_device()
        return row

    def put(self, row: Row) -> None:
        """Write a row, in the place of an earlier one of its name."""
        rows = self.document["rows"]
        place = next((i for i, old in enumerate(rows) if old["name"] == row["name"]), len(rows))
        rows[place : place + 1] = [row]
        self.document["left_out"].pop(row["name"], None)
        self._write()

    def row(self, name: str) -> Row | None:
        """The row of this name, None where there is none yet."""
        return next((row for row in self.document["rows"] if row["name"] == name), None)

    def leave_out(self, name: str, why: str) -> None:
        """Say why there is no row `name`, unless there is one from before."""
        if self.row(name) is None:
            self.document["left_out"][name] = why
            self._write()

    def note(self, key: str, value: Any) -> None:
        """Put a fact about all rows into the document."""
        self.document[key] = value
        self._write()

    def _continue(self, earlier: dict[str, Any]) -> None:
        settings = self.document["settings"]
        for key in self._lists:
            more = [value for value in settings[key] if value not in earlier["settings"][key]]
            settings[key] = [*earlier["settings"][key], *more]
        alike = {**earlier["settings"], **{key: settings[key] for key in self._lists}}
        if (earlier["bench"], alike) != (self.document["bench"], settings):
            raise ValueError(
                f"{self._path} was measured by another bench, or with other settings; use another out="
            )
        for key in ("device", "versions"):
            if earlier["env"][key] != self.document["env"][key]:
                raise ValueError(
                    f"{self._path} was measured with another {key}, {earlier['env'][key]}; use another out="
                )
        command = f"{earlier['command']} && {self.document['command']}"
        then, now = (content["env"].get("git") for content in (earlier, self.document))
        rows = earlier["rows"] if then == now else [{"git": then, **row} for row in earlier["rows"]]
        self.document |= {
            "command": command,
            "rows": rows,
            "left_out": earlier["left_out"],
        }

    def _write(self) -> None:
        atomic_write_json(self._path, self.document)


def head(
    bench: str,
    what: str,
    settings: dict[str, Any],
    arguments: list[str],
    device: torch.device,
    commit: str | None,
) -> dict[str, Any]:
    """What a document says of all its rows. commit: of the source, where the machine has no checkout to ask."""
    env: dict[str, Any] = dict(environment(device))
    for package in _PACKAGES:
        try:
            env["versions"][package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            env["versions"][package] = None
    if commit is not None:
        env["git"] = commit
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        env["gpu"] = {
            "memory_bytes": found.total_memory,
            "l2_bytes": found.L2_cache_size,
            "multiprocessors": found.multi_processor_count,
            "capability": f"{found.major}.{found.minor}",
            "cuda": torch.version.cuda,
        }
    words = [word for word in arguments if not _PLACES.match(word)]
    return {
        "bench": bench,
        "what": what,
        "command": shlex.join(["python", "-m", "experiments.bench", *words]),
        "env": env,
        "weights": "random",
        "settings": settings,
    }


def said(error: Exception) -> str:
    """Kind and first line of an error, without the folders of this machine."""
    first = (str(error).splitlines() or [""])[0]
    return _FOLDERS.sub("", f"{type(error).__name__}: {first}")


def _check_device() -> None:
    """Raise what an earlier error left behind: after it nothing that the GPU computes is to be trusted."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
