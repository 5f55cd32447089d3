"""Paired differences between runs and a baseline over the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dirotq.lab.compare import compare
from dirotq.metrics.statistics import Estimate, distinguishable
from dirotq.report.cells import Cell, Column, Number, Table
from dirotq.report.metrics import ordered, shown
from dirotq.report.rows import groups, label, origin, origins
from dirotq.report.runs import Run

INDISTINGUISHABLE = "not distinguishable"


def differences_table(
    runs: Sequence[Run], baseline: Run, *, metrics: Sequence[str] | None = None
) -> Table:
    """Mean over prompts of each run's metrics minus the baseline's, with paired 95 % bootstrap intervals.

    A difference whose interval covers zero is called not distinguishable. Runs without prompts.csv, and those over
    other prompts, are named below the table. ``metrics`` are the columns; None for all that any pair of runs has.

    Raises:
        ValueError: the baseline has no prompts.csv.
    """
    if baseline.file("prompts.csv") is None:
        raise ValueError(f"baseline={baseline.path}: has no prompts.csv to pair prompts with")
    notes: list[str] = []
    found: dict[Path, dict[str, Estimate]] = {}
    for run in runs:
        if run.result is None or run.path.resolve() == baseline.path.resolve():
            continue
        if run.file("prompts.csv") is None:
            notes.append(f"{run.name} is not compared: it has no prompts.csv.")
            continue
        try:
            found[run.path] = compare(run.path, baseline.path)
        except ValueError as error:
            notes.append(f"{run.name} is not compared: {error}.")
    # The baseline is among the rows that are told apart, though it has no line of its own.
    compared = groups([baseline, *(run for run in runs if run.path in found)], each_seed=True)
    names = [name for name in origins(compared)[1] if name in ("model", "seed", "commit")]
    measured = {name for estimates in found.values() for name in estimates}
    chosen = [name for name in ordered(measured) if metrics is None or name in metrics]
    columns = [Column("method", "method"), *(Column(name, name) for name in names)]
    columns += [Column(name, f"Δ {shown(name).heading}") for name in chosen]
    lines: list[tuple[Cell, ...]] = []
    for group in compared[1:]:
        estimates = found[group.runs[0].path]
        head = [label(group), *(origin(group.first)[name] for name in names)]
        lines.append((*head, *(_cell(estimates.get(name), name) for name in chosen)))
    said = (
        f"Paired differences to {label(compared[0])} ({baseline.name}), over the same prompts, with 95 % bootstrap "
        f"intervals; {INDISTINGUISHABLE}: the interval covers zero."
    )
    return Table(tuple(columns), tuple(lines), (said, *notes))


def _cell(estimate: Estimate | None, name: str) -> Cell:
    if estimate is None:
        return None
    verdict = "" if distinguishable(estimate) else INDISTINGUISHABLE
    low, high, digits = estimate.ci_low, estimate.ci_high, shown(name).digits
    return Number(estimate.value, digits, low, high, estimate.n, verdict=verdict, signed=True)
