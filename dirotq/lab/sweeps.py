"""What became of each job of a sweep: `<folder of the sweep>/<number>/job.json`.

Every job writes its own file, wherever its launcher runs it, so the files are how the starting process and the report
learn how it ended. A job that was killed stays "running".
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypedDict, cast

from dirotq.atomic import atomic_write_json
from dirotq.config import SweepJob

JOB_FILE = "job.json"


class JobRecord(TypedDict):
    """Content of `job.json`. run: the run directory, relative to the working directory. Times are ISO 8601, UTC."""

    schema: Literal[1]
    sweep: str
    number: int
    overrides: list[str]
    status: Literal["running", "finished", "failed"]
    run: str | None
    error: str | None
    started: str
    ended: str | None


class Record:
    """The `job.json` of a job that runs; each call replaces the file whole."""

    def __init__(self, job: SweepJob) -> None:
        self._path = job.folder / JOB_FILE
        self._content = JobRecord(
            schema=1,
            sweep=job.folder.parent.name,
            number=job.number,
            overrides=list(job.overrides),
            status="running",
            run=None,
            error=None,
            started=_now(),
            ended=None,
        )
        atomic_write_json(self._path, self._content)

    def finish(self, run: Path) -> None:
        """The job is done and `run` is its run directory."""
        self._end({"status": "finished", "run": os.path.relpath(run)})

    def fail(self, error: str) -> None:
        """The job cannot be done; `error` is one line."""
        self._end({"status": "failed", "error": error})

    def _end(self, change: dict[str, str]) -> None:
        content = {**self._content, **change, "ended": _now()}
        atomic_write_json(self._path, content)


def start(folder: Path) -> None:
    """Forget the jobs of an earlier command in the folder of a sweep, which may have had more of them."""
    for path in folder.glob(f"*/{JOB_FILE}"):
        path.unlink()


def jobs(folder: Path) -> list[JobRecord]:
    """The records in the folder of a sweep, by number."""
    found = [json.loads(path.read_bytes()) for path in folder.glob(f"*/{JOB_FILE}")]
    return sorted(cast("list[JobRecord]", found), key=lambda job: job["number"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
