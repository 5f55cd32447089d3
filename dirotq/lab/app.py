"""The command line: `dirotq` and `python experiments/run.py`."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import diffusers
import transformers
from omegaconf import DictConfig
from safetensors import SafetensorError

from dirotq.config import SweepJob, build_job, check, expand, run_app, sweep_job
from dirotq.lab import sweeps
from dirotq.lab.progress import watch_interrupts
from dirotq.lab.results import Result, read_result
from dirotq.lab.runner import finished, run
from dirotq.lab.team import Team
from dirotq.lab.tracking import tracked

_EXPECTED = (
    ValueError,
    OSError,
    SafetensorError,
)  # anything else is a defect and keeps its traceback


def main() -> None:
    """Run the job, or the sweep with `-m` or `sweep=`, that the command line describes.

    Bad input and a full disk end in one line on stderr and exit status 1. A job of a sweep that fails, for whatever
    reason, does not keep the others from running; the exit status is 1 then too.
    """
    watch_interrupts()
    try:
        sys.argv[1:] = expand(sys.argv[1:])
        folder = _check(sys.argv[1:])
        team = Team()
        if folder is not None:
            if team.count > 1:
                raise ValueError("accelerate launch is for one job, a sweep has hydra/launcher=")
            sweeps.start(folder)
            # Hydra would put another second into the folder's name.
            sys.argv.append("hydra.sweep.dir='{}'".format(str(folder).replace("'", r"\'")))
        run_app(_job)
        team.leave()
    except _EXPECTED as error:
        _fail(error)
    unfinished = _unfinished(folder) if folder is not None else ""
    if unfinished:
        sys.stderr.write(f"error: {unfinished}\n")
        sys.exit(1)


def _check(arguments: list[str]) -> Path | None:
    """The folder of the sweep, None for a single run; raises ValueError for a value that cannot be."""
    flags = {argument for argument in arguments if argument.startswith("-")}
    if not flags <= {"-m", "--multirun"}:
        return None
    logging.disable(logging.WARNING)  # the run itself says it again
    try:
        return check([one for one in arguments if one not in flags], multirun=bool(flags))
    finally:
        logging.disable(logging.NOTSET)


def _job(config: DictConfig) -> None:
    """One run, or one job of a sweep in whatever process its launcher has; at the top, for launchers to pickle."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    place = sweep_job()
    if place is None:
        try:
            _run(config, None)
        except _EXPECTED as error:
            _fail(error)
        return
    record = sweeps.Record(place)
    try:
        record.finish(_run(config, place))
    except Exception as error:
        record.fail(_one_line(error))
        if _full_errors() or not isinstance(error, _EXPECTED):
            traceback.print_exc()
        sys.stderr.write(f"error: job {place.number}: {_one_line(error)}\n")


def _run(config: DictConfig, place: SweepJob | None) -> Path:
    job = build_job(config)
    if not Team().leads:
        return run(job, place)
    skipped = finished(job) and not job.force
    with tracked(job, place.folder.parent.name if place else None) as log:
        folder = run(job, place)
        log(folder)
    _say(summary(folder, read_result(folder / "result.json"), skipped=skipped))
    return folder


def _unfinished(folder: Path) -> str:
    """One line on the jobs of a sweep that did not finish; empty when all did."""
    jobs = sweeps.jobs(folder)
    missing = [job for job in jobs if job["status"] != "finished"]
    if not missing:
        return ""
    numbers = ", ".join(str(job["number"]) for job in missing)
    return f"{len(missing)} of {len(jobs)} jobs did not finish: {numbers}; {folder}/<job>/job.json says why"


def summary(folder: Path, result: Result, *, skipped: bool) -> str:
    """A finished run in a few lines."""
    bits = result["effective_bits"]
    lines = [
        f"{result['model']}, {result['method']}, {result['bits']} "
        f"({result['numerics']} numerics, {result['weights']} weights)",
        f"  effective bits       weights {bits['weight']:.2f}, activations {bits['activation']:.2f}",
    ]
    for name, metric in result["metrics"].items():
        low, high = metric["ci_low"], metric["ci_high"]
        interval = f"  [{low:.4g}, {high:.4g}]" if low is not None and high is not None else ""
        lines.append(f"  {name:<20} {metric['value']:.4g}{interval}  N={metric['n']}")
    lines.append(f"  seconds              {result['seconds']['total']:.0f}")
    lines.append(f"  pictures             {folder / 'grid.png'}, {folder / 'images'}")
    table = folder / "layers.csv"
    lines.append(
        f"  tables               {folder / 'result.json'}{f', {table}' if table.is_file() else ''}"
    )
    if skipped:
        lines.append("  this run was finished before; force=true runs it again")
    return "\n".join(lines)


def _fail(error: Exception) -> NoReturn:
    if _full_errors():
        raise error
    sys.stderr.write(f"error: {_one_line(error)}\n")
    sys.exit(1)


def _full_errors() -> bool:
    return os.environ.get("HYDRA_FULL_ERROR") == "1"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if os.strerror(errno.ENOSPC) in text:
        text += "; runtime.cache= and out= choose other places"
    return text


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
