"""Paired differences between two runs over the same prompts, with bootstrap intervals.

python -m experiments.compare RUN BASELINE prints, for every metric that each image has, the mean of RUN minus BASELINE,
and whether it can be told from zero.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from dirotq.metrics.statistics import Estimate, distinguishable, paired_difference


def main() -> None:
    """Compare from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("baseline", type=Path)
    arguments = parser.parse_args()
    try:
        found = compare(arguments.run, arguments.baseline)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    for name, estimate in found.items():
        verdict = "" if distinguishable(estimate) else "  not distinguishable"
        interval = f"[{estimate.ci_low:+.4g}, {estimate.ci_high:+.4g}]"
        print(f"{name:18} {estimate.value:+.4g} {interval}  N={estimate.n}{verdict}")


def compare(run: Path, baseline: Path) -> dict[str, Estimate]:
    """Mean differences, run minus baseline, of the metrics that both `prompts.csv` have.

    Raises OSError for a missing file and ValueError when the prompts differ.
    """
    ours, theirs = _read(run / "prompts.csv"), _read(baseline / "prompts.csv")
    if [row["prompt"] for row in ours] != [row["prompt"] for row in theirs]:
        raise ValueError(f"{run} and {baseline} have other prompts; only the same can be compared")
    names = [
        name
        for name in ours[0]
        if name in theirs[0] and name not in ("prompt", "category", "split")
    ]
    found = {}
    for name in names:
        a, b = ([float(row[name]) for row in rows] for rows in (ours, theirs))
        found[name] = paired_difference(a, b, seed=0)
    return found


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise ValueError(f"{path} holds no prompts")
    return rows


if __name__ == "__main__":
    main()
