"""The command line: `dirotq` and `python experiments/run.py`."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import diffusers
import transformers
from omegaconf import DictConfig
from safetensors import SafetensorError

from dirotq.config import build_job, compose_config, expand, run_app
from dirotq.lab.results import Result, read_result
from dirotq.lab.runner import finished, run, run_directory

_FAILED = 1
_STOPPED = 130  # what a shell reports for Ctrl-C


def main() -> None:
    """Run the job, or the sweep with `-m`, that the command line describes.

    Bad input and a full disk end in one line on stderr and exit status 1, Ctrl-C in a clean stop with 130.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        sys.argv[1:] = expand(sys.argv[1:])
        if all("=" in argument and not argument.startswith("-") for argument in sys.argv[1:]):
            # Hydra reports a bad value in a paragraph; composing first finds it and takes one line.
            logging.disable(logging.WARNING)  # the run itself says it again
            build_job(compose_config(sys.argv[1:]))
            logging.disable(logging.NOTSET)
        run_app(_job)
    except KeyboardInterrupt:
        sys.exit(_stop())
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(_fail(error))


def _job(config: DictConfig) -> None:
    try:
        job = build_job(config)
        folder = run_directory(job)
        skipped = finished(folder) and not job.force
        folder = run(job)
    except KeyboardInterrupt:
        sys.exit(_stop())
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(_fail(error))
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
        interval = f"  [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
        lines.append(f"  {name:<20} {metric['value']:.3f}{interval}  N={metric['n']}")
    lines.append(f"  seconds              {result['seconds']['total']:.0f}")
    lines.append(f"  pictures             {folder / 'grid.png'}, {folder / 'images'}")
    table = folder / "layers.csv"
    lines.append(
        f"  tables               {folder / 'result.json'}{f', {table}' if table.is_file() else ''}"
    )
    if skipped:
        lines.append("  this run was finished before; force=true runs it again")
    return "\n".join(lines)


def _fail(error: Exception) -> int:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        raise error
    sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
    return _FAILED


def _stop() -> int:
    sys.stderr.write(
        "\nstopped; the finished stages are kept, and the same command goes on from there\n"
    )
    return _STOPPED


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
