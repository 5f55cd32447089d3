"""W&B: one run a job, grouped by sweep, which holds what the run directory holds.

The id of the W&B run is the job's identity: a job that is resumed or run again goes on in the same run. Offline that is
another folder with the same id, and `wandb sync` puts them together.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dirotq.atomic import atomic_write_json
from dirotq.config import Job
from dirotq.lab.results import read_result
from dirotq.lab.runner import finished, identity, run_directory
from dirotq.settings import WandbSettings

if TYPE_CHECKING:
    from wandb import Run, Table

Log = Callable[[Path], None]
_MARK = "logged.json"  # in the folder of a W&B run that holds a finished job
_log = logging.getLogger(__name__)


def tracked(job: Job, sweep: str | None = None) -> AbstractContextManager[Log]:
    """Show the job done inside as a W&B run; the function it yields logs the finished run directory.

    Whatever ends the block ends the W&B run, with exit code 1 and the error in its summary if it is an exception.
    Nothing happens with `logger=none`, nor for a finished job that was logged before. sweep: the group's name where
    `logger.group` gives none.

    Raises ValueError, before the block, when W&B is not installed, is asked to be online without an API key, or cannot
    start.
    """
    settings = job.logger
    if settings is None:
        return nullcontext(_ignore)
    if finished(job) and not job.force and _logged(settings, identity(job)):
        return nullcontext(_ignore)
    return _tracked(job, settings, sweep)


def _ignore(folder: Path) -> None:
    """Log nothing."""


@contextmanager
def _tracked(job: Job, settings: WandbSettings, sweep: str | None) -> Iterator[Log]:
    with _environment(settings):
        run = _start(job, settings, sweep)
        exit_code = 1

        def log(folder: Path) -> None:
            _log_directory(run, folder, checkpoint=settings.checkpoint)

        try:
            yield log
            exit_code = 0
        except BaseException as error:
            text = " ".join(str(error).split())
            run.summary["error"] = (
                f"{type(error).__name__}: {text}" if text else type(error).__name__
            )
            raise
        finally:
            run.finish(exit_code=exit_code)
        atomic_write_json(Path(run.dir).parent / _MARK, _target(settings))


def _start(job: Job, settings: WandbSettings, sweep: str | None) -> Run:
    try:
        import wandb
    except ImportError:
        raise ValueError(
            "logger=wandb: the package wandb is not installed; "
            "pip install 'dirotq[lab]', or logger=none"
        ) from None
    wandb.setup(wandb.Settings(silent=True))

    def start(mode: Any) -> Run:
        return wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group or sweep,
            tags=settings.tags,
            id=identity(job),
            resume="allow",
            name=run_directory(job).name,
            config=job.composed,
            dir=settings.dir,
            mode=mode,
            # The result names the commit of the library; that of the working directory is another.
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )

    try:
        return start(_mode(settings))
    except wandb.Error as error:
        text = " ".join(str(error).split())
        if settings.mode != "auto":
            raise ValueError(f"logger.mode={settings.mode}: {text}") from None
        _log.warning("logger.mode=auto: the run is logged offline, for online %s", text)
        wandb.teardown()  # its process still holds the run that could not start, by its id
        return start("offline")


def _mode(settings: WandbSettings) -> str:
    """Whether to log online or offline; without the login here, a terminal would be asked for the key."""
    import wandb

    if settings.mode != "offline" and wandb.login(prompt=False, verify=False):
        return "online"
    if settings.mode == "online":
        raise ValueError(
            "logger.mode=online: no API key is configured; run wandb login, or use logger.mode=offline"
        )
    return "offline"


def _log_directory(run: Run, folder: Path, *, checkpoint: bool) -> None:
    """Log the result as summary, its metrics also as history, every table, the image grid and the checkpoint."""
    import wandb

    result = read_result(folder / "result.json")
    # The error is that of an earlier attempt, which failed or was stopped.
    run.summary.update({**result, "error": None})
    # W&B draws charts of what is in the history, and none of what is only in the summary.
    shown: dict[str, Any] = {name: metric["value"] for name, metric in result["metrics"].items()}
    shown |= {path.stem: _table(path) for path in sorted(folder.glob("*.csv"))}
    run.log({**shown, "grid": wandb.Image(str(folder / "grid.png"))})
    if checkpoint and (folder / "checkpoint").is_dir():
        artifact = wandb.Artifact(f"checkpoint-{run.id}", type="model")
        artifact.add_dir(str(folder / "checkpoint"), skip_cache=True)
        run.log_artifact(artifact)


def _table(path: Path) -> Table:
    """A CSV file; a column whose every entry is a number, or empty, is one of numbers."""
    import wandb

    with path.open(newline="", encoding="utf-8") as file:
        names, *rows = csv.reader(file)
    columns = [_numbers(column) for column in zip(*rows, strict=True)]
    return wandb.Table(columns=[*names], data=[list(row) for row in zip(*columns, strict=True)])


def _numbers(column: tuple[str, ...]) -> list[float | None] | list[str]:
    try:
        return [float(entry) if entry else None for entry in column]
    except ValueError:
        return list(column)


def _target(settings: WandbSettings) -> dict[str, Any]:
    """What decides where a finished job was logged, and whether all of it was."""
    names = ("project", "entity", "checkpoint")
    return {name: getattr(settings, name) for name in names}


def _logged(settings: WandbSettings, name: str) -> bool:
    """Whether a W&B run of this id and project holds all that is asked for."""
    wanted = _target(settings)
    found: list[Mapping[str, Any]] = [
        json.loads(mark.read_text())
        for mark in Path(settings.dir, "wandb").glob(f"*run-*-{name}/{_MARK}")
    ]
    return wanted in found or {**wanted, "checkpoint": True} in found


@contextmanager
def _environment(settings: WandbSettings) -> Iterator[None]:
    """Keep W&B to its folder and to its runs, where the user's own variables do not say otherwise.

    It has no settings for these. By itself it copies tables and checkpoints, which offline stay until `wandb sync`,
    into the home directory, and reports its own use to its server, offline too.
    """
    folder = Path(settings.dir, "wandb").absolute()
    folder.mkdir(parents=True, exist_ok=True)  # or W&B would take the system's temporary folder
    variables = {
        "WANDB_DATA_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_ERROR_REPORTING": "false",
    }
    missing = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]
