"""The command line: `dirotq` and `python experiments/run.py`."""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path

import diffusers
import transformers
from omegaconf import DictConfig
from safetensors import SafetensorError

from dirotq.config import build_job, check, expand, run_app
from dirotq.lab.progress import watch_interrupts
from dirotq.lab.results import Result, read_result
from dirotq.lab.runner import finished, run

_EXPECTED = (
    ValueError,
    OSError,
    SafetensorError,
)  # anything else is a defect and keeps its traceback


def main() -> None:
    """Run the job, or the sweep with `-m`, that the command line describes.

    Bad input and a full disk end in one line on stderr and exit status 1. A job of a sweep that fails does not keep the
    others from running.
    """
    watch_interrupts()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    failed = False

    def job(config: DictConfig) -> None:
        nonlocal failed
        try:
            _run(config)
        except _EXPECTED as error:
            failed = True
            _report(error)

    try:
        sys.argv[1:] = expand(sys.argv[1:])
        flags = {argument for argument in sys.argv[1:] if argument.startswith("-")}
        if flags <= {"-m", "--multirun"}:
            logging.disable(logging.WARNING)  # the run itself says it again
            check([argument for argument in sys.argv[1:] if argument not in flags])
            logging.disable(logging.NOTSET)
        run_app(job)
    except _EXPECTED as error:
        failed = True
        _report(error)
    if failed:
        sys.exit(1)


def _run(config: DictConfig) -> None:
    job = build_job(config)
    skipped = finished(job) and not job.force
    folder = run(job)
    _say(summary(folder, read_result(folder / "result.json"), skipped=skipped))


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


def _report(error: Exception) -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    text = " ".join(str(error).split())
    if os.strerror(errno.ENOSPC) in text:
        text += "; runtime.cache= and out= choose other places"
    sys.stderr.write(f"error: {text}\n")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
