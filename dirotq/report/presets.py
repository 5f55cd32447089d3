"""Runs that settings name, `sweep=rank` or `experiment=paper/pixart_int4`: what `dirotq` would run, looked up."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from dirotq.config import build_job, compose_config, each_job, expand
from dirotq.lab.results import read_result
from dirotq.lab.runner import finished, run_directory
from dirotq.report.runs import Run


def named_runs(words: Sequence[str]) -> list[Run]:
    """A run for each job that `dirotq -m` with these words has, in its order.

    Its run directory is that of the same settings, versions and source. A job that has not finished there is "not run".

    Raises:
        ValueError: words that `dirotq` would refuse, in one line.
    """
    jobs = each_job(expand(words))
    return [_look_up(number, overrides, len(jobs)) for number, overrides in enumerate(jobs)]


def how_to_run(words: Sequence[str], runs: Sequence[Run]) -> str:
    """One line for settings of which no job has finished; ``runs`` are what :func:`named_runs` found."""
    reason = next((run.error for run in runs if run.error), None)
    if reason is not None:
        return reason
    which = "its run is not there" if len(runs) == 1 else f"none of its {len(runs)} jobs is there"
    command = shlex.join(["dirotq", *(["-m"] if len(runs) > 1 else []), *words])
    return (
        f"{' '.join(words)}: {which}, of this source, on this device and with these versions; {command} runs it, and a "
        "path names an earlier run"
    )


def _look_up(number: int, overrides: tuple[str, ...], count: int) -> Run:
    job = build_job(compose_config(overrides))
    folder = run_directory(job)
    reason = None
    try:
        if finished(job):
            name = folder.name if count == 1 else str(number)
            return Run(name, folder, "finished", read_result(folder / "result.json"), overrides)
    except ValueError as error:  # `out` holds something else
        reason = str(error)
    return Run(str(number), folder, "not run", None, overrides, reason)
