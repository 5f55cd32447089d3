"""Paired comparison of two runs over the same prompts."""

from __future__ import annotations

import csv
from pathlib import Path

from dirotq.metrics.statistics import Estimate, paired_difference

_ABOUT = ("prompt", "category", "split")  # columns that describe a prompt


def compare(run: Path, baseline: Path) -> dict[str, Estimate]:
    """Mean differences, run minus baseline, of the metrics that both `prompts.csv` have.

    Whether one can be told from zero says :func:`dirotq.metrics.statistics.distinguishable`. Metrics of a whole set, as
    a Fréchet distance, have no value a prompt and are not compared. Raises OSError for a missing file and ValueError
    when the prompts differ.
    """
    ours, theirs = _read(run / "prompts.csv"), _read(baseline / "prompts.csv")
    if [row["prompt"] for row in ours] != [row["prompt"] for row in theirs]:
        raise ValueError(f"{run} and {baseline} have other prompts; only the same can be compared")
    found = {}
    for name in ours[0]:
        if name in theirs[0] and name not in _ABOUT:
            a, b = ([float(row[name]) for row in rows] for rows in (ours, theirs))
            found[name] = paired_difference(a, b, seed=0)
    return found


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} holds no prompts")
    return rows
