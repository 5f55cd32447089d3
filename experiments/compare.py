"""Paired differences between two runs over the same prompts, with bootstrap intervals.

python -m experiments.compare RUN BASELINE prints, for every metric that each image has, the mean of RUN minus BASELINE,
and whether it can be told from zero.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dirotq.lab.compare import compare
from dirotq.metrics.statistics import distinguishable


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
        low, high = estimate.ci_low, estimate.ci_high
        interval = f"[{low:+.4g}, {high:+.4g}]" if low is not None and high is not None else ""
        print(f"{name:18} {estimate.value:+.4g} {interval}  N={estimate.n}{verdict}")


if __name__ == "__main__":
    main()
