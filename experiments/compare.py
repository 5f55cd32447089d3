"""Paired differences between runs over the same prompts, with bootstrap intervals.

python -m experiments.compare [--out OUT.json] RUN BASELINE [RUN BASELINE ...] prints, for every metric that each image
has, the mean of RUN minus BASELINE, and whether it can be told from zero.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dirotq.atomic import atomic_write_json
from dirotq.lab.compare import compare
from dirotq.lab.results import environment, read_result
from dirotq.metrics.statistics import Estimate, distinguishable


def main() -> None:
    """Compare from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="also write the differences as JSON")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN BASELINE")
    arguments = parser.parse_args()
    pairs = list(zip(arguments.runs[::2], arguments.runs[1::2], strict=False))
    try:
        if len(arguments.runs) % 2:
            raise ValueError(
                f"{len(arguments.runs)} runs, allowed are pairs of a run and its baseline"
            )
        found = [(run, baseline, compare(run, baseline)) for run, baseline in pairs]
        if arguments.out:
            atomic_write_json(arguments.out, _document([_row(*entry) for entry in found]))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
    for run, baseline, differences in found:
        if len(found) > 1:
            print(f"{run.name} minus {baseline.name}")
        for name, estimate in differences.items():
            print(_line(name, estimate))


def _document(rows: list[dict[str, Any]]) -> dict[str, Any]:
    command = shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]])
    what = "run minus baseline, paired by prompt"
    return {"schema": 1, "command": command, "what": what, "env": environment(), "rows": rows}


def _line(name: str, estimate: Estimate) -> str:
    verdict = "" if distinguishable(estimate) else "  not distinguishable"
    low, high = estimate.ci_low, estimate.ci_high
    interval = f"[{low:+.4g}, {high:+.4g}]" if low is not None and high is not None else ""
    return f"{name:18} {estimate.value:+.4g} {interval}  N={estimate.n}{verdict}"


def _row(run: Path, baseline: Path, differences: dict[str, Estimate]) -> dict[str, Any]:
    """One pair: what was run on both sides, effective bits and differences."""
    sides = {}
    for side, folder in (("run", run), ("baseline", baseline)):
        result = read_result(folder / "result.json")
        command, config = result.get("command"), result.get("config")
        words = [word for word in (command or "").split() if not word.startswith("out=")]
        bits = result["effective_bits"]
        sides[side] = {
            "name": folder.name,
            "command": " ".join(words),
            "config": config,
            "bits": bits,
        }
    metrics = {
        name: {**asdict(estimate), "distinguishable": distinguishable(estimate)}
        for name, estimate in differences.items()
    }
    return {**sides, "differences": metrics}


if __name__ == "__main__":
    main()
