"""Find runs: run directories, sweeps, folders of result files, single files.

run directory     holds result.json; layers.csv, prompts.csv, trajectory.csv and images/ where the run made them
sweep             holds a folder a job with job.json, which says what became of the job and where its run is
other folder      its result files (*.json) and the run directories in it
file              a result, as they are committed under experiments/results
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from dirotq.lab.results import Result, read_result

Status = Literal["finished", "failed", "running", "not run"]
Settings = dict[str, str | None]

FIELDS = ("bits", "rank", "budget", "basis", "rotation", "protect", "rounding")
_ELSEWHERE = {
    *FIELDS, "experiment", "force", "hydra", "logger", "method", "out", "paper", "runtime", "save",
    "seed", "sweep",
}  # fmt: skip
_BESIDE = ("size", "steps", "guidance", "lpips_net", "fid_reference", "clip_model")


class NoDataError(Exception):
    """Runs lack what a plot or grid would show; says what is missing."""


@dataclass(frozen=True)
class Run:
    """A run, or a job of a sweep that has no result (yet); ``result`` is set if and only if it is finished.

    ``path`` is the run directory, the result file, or the job's folder; ``overrides`` are the job's.
    """

    name: str
    path: Path
    status: Status
    result: Result | None
    overrides: tuple[str, ...] = ()
    error: str | None = None

    def file(self, name: str) -> Path | None:
        """A file or folder of the run directory; None where there is none."""
        found = self.path / name
        return found if self.path.is_dir() and found.exists() else None

    @cached_property
    def settings(self) -> Settings:
        """What tells this run from others of its method; None is the method's own choice, or none.

        Beside the fields of the result, the further settings come from config.yaml where the run has one and else from
        the words of its command.
        """
        if self.result is None:
            return _words(self.overrides)
        found = {name: _text(self.result.get(name)) for name in FIELDS}
        path = self.file("config.yaml")
        if path is not None:
            further = _flat(yaml.safe_load(path.read_text(encoding="utf-8")))
        else:
            further = _words(self.overrides or shlex.split(self.result.get("command", "")))
        return found | {name: value for name, value in further.items() if not _said_elsewhere(name)}


def find_runs(paths: Iterable[Path | str]) -> list[Run]:
    """Every run under the paths, in order; a run that is reached twice is listed once.

    Raises:
        ValueError: a file that is not a valid result or job, a folder without runs; names the path.
        OSError: a path is not there.
    """
    found: dict[Path, Run] = {}
    for path in map(Path, paths):
        for run in _runs(path):
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def _runs(path: Path) -> list[Run]:
    if path.is_file():
        return [Run(path.stem, path, "finished", read_result(path))]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if (path / "result.json").is_file():
        return [Run(path.name, path, "finished", read_result(path / "result.json"))]
    jobs = [_job(file) for file in path.glob("*/job.json")]
    if jobs:
        return [run for _, run in sorted(jobs, key=lambda job: job[0])]
    parts = [p for p in path.iterdir() if p.suffix == ".json" or (p / "result.json").is_file()]
    if not parts:
        raise ValueError(f"{path}: holds no run, no sweep and no result file")
    return [
        run for part in sorted(parts, key=lambda part: natural(part.name)) for run in _runs(part)
    ]


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorting key that puts rank-16 before rank-128."""
    parts = re.split(r"(\d+)", name)
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]


def _job(file: Path) -> tuple[int, Run]:
    """Number and run of a job; a finished one whose run directory is gone counts as failed."""
    try:
        job = json.loads(file.read_bytes())
        number, status, overrides = job["number"], job["status"], tuple(job["overrides"])
        error, place = job["error"], job["run"]
    except (ValueError, KeyError, TypeError) as wrong:
        raise ValueError(f"{file}: not a job of a sweep ({wrong!r})") from None
    name = str(number)
    if status != "finished":
        return number, Run(name, file.parent, status, None, overrides, error)
    # The path is relative to the working directory of the sweep, which holds outputs/sweeps/<sweep>/<job>.
    places = (Path(place), *(parent / place for parent in file.resolve().parents))
    folder = next((path for path in places if (path / "result.json").is_file()), None)
    if folder is None:
        gone = f"its run directory {place} is not there"
        return number, Run(name, file.parent, "failed", None, overrides, gone)
    return number, Run(name, folder, "finished", read_result(folder / "result.json"), overrides)


def differing(runs: Iterable[Run]) -> list[str]:
    """Names of the settings that tell rows apart.

    Settings that only one method has differ if runs of that method disagree; others also if they are set in some runs
    and not in others.
    """
    by_method: dict[str, list[Settings]] = {}
    for run in runs:
        if run.result is not None:
            by_method.setdefault(run.result["method"], []).append(run.settings)
    everything = [settings for group in by_method.values() for settings in group]
    names = list(dict.fromkeys(name for settings in everything for name in settings))
    return [name for name in names if _differs(name, everything, list(by_method.values()))]


def _differs(name: str, everything: list[Settings], groups: list[list[Settings]]) -> bool:
    values = {settings.get(name) for settings in everything}
    own = name in FIELDS or name.startswith("method.")
    return len(values - {None} if own else values) > 1 or any(
        len({settings.get(name) for settings in group}) > 1 for group in groups
    )


def _words(words: Iterable[str]) -> Settings:
    """Settings that a command names; a sweep's list of values says nothing about one of its jobs."""
    plain = [word for word in words if "=" in word and "," not in word and word[0] != "-"]
    pairs = [word.lstrip("+").partition("=") for word in plain]
    return {name: value for name, _, value in pairs}


def _said_elsewhere(name: str) -> bool:
    """Whether the result has the setting as a field of its own, or it decides where and not what."""
    head, _, rest = name.partition(".")
    if head in ("model", "eval", "bits"):
        # The result names model, format and prompts; of the rest, what changes an image or a metric.
        return rest not in _BESIDE
    if head == "method" and rest:
        return rest in (*FIELDS, "_target_")
    return head in _ELSEWHERE


def _flat(value: Mapping[str, Any], head: str = "") -> Settings:
    found: Settings = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            found |= _flat(item, f"{head}{name}.")
        else:
            found[head + name] = None if item in (None, []) else _text(item)
    return found


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    return None if value is None else f"{value:g}" if isinstance(value, float) else str(value)
