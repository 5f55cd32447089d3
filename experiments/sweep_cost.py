"""What a rank sweep costs beside one cold run and its generations: python -m experiments.sweep_cost OUT.json

Whole processes, wall time, each with a cache of its own: `dirotq` once, cold, then a sweep of six ranks, cold. What
jobs of a sweep share (16-bit images, records, statistics) is computed once; what they cannot share is quantizing and
generating.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dirotq.atomic import atomic_write_json
from dirotq.lab.results import environment

RANKS = (8, 16, 32, 64, 128, 160)


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="overrides for both")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        cold_seconds, (cold,) = _timed([], arguments.settings, Path(place) / "cold")
        ranks = ["-m", f"rank={','.join(map(str, RANKS))}", f"hydra.sweep.dir={place}/sweep/jobs"]
        sweep_seconds, jobs = _timed(ranks, arguments.settings, Path(place) / "sweep")
    generations = sum(job["seconds"]["images"] for job in jobs)
    content = {
        "what": "wall seconds of a cold run and of a cold sweep of six ranks; simulated, trained weights",
        "command": shlex.join(["python", "-m", "experiments.sweep_cost", *sys.argv[1:]]),
        "env": environment(torch.device("cpu")),
        "prompts": cold["prompts"],
        "cold_run": cold_seconds,
        "cold_run_stages": cold["seconds"],
        "cold_run_preflight": cold["preflight"],
        "sweep": sweep_seconds,
        "generations": round(generations, 1),
        "quantizing": round(sum(job["seconds"]["quantized"] for job in jobs), 1),
        "ratio": round(sweep_seconds / (cold_seconds + generations), 3),
        "ranks": list(RANKS),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(arguments.out, content)
    print(json.dumps(content, indent=2))


def _timed(
    arguments: list[str], settings: list[str], place: Path
) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of one `dirotq` in a new folder, and the results of its jobs."""
    place.mkdir()
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "dirotq_cli", *arguments, *settings], cwd=place, check=True
    )
    seconds = time.perf_counter() - start
    results = sorted(place.glob("outputs/runs/*/result.json"))
    return round(seconds, 1), [json.loads(path.read_text()) for path in results]


if __name__ == "__main__":
    main()
