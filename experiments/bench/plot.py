"""Draw time and memory against the rank: python -m experiments.bench.plot RANK.json OUT.png."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = {"layer": "#0072b2", "block": "#d55e00"}


def main() -> None:
    """Read the first argument, write the second."""
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    source, target = map(Path, sys.argv[1:])
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        if content["settings"].get("ranks") is None:
            raise ValueError(f"it is of bench={content['bench']}, allowed is bench=rank")
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{source}: not results of bench=rank ({error})") from None
    draw(content).savefig(target, dpi=150)


def draw(content: dict[str, Any]) -> Figure:
    """Two panels over the rank, time and memory, each beside bfloat16 (dashed)."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for row in content["rows"]:
        if "failed" in row:
            continue
        kind = "block" if row["name"] == "block" else "layer"
        title = row["block"] if kind == "block" else f"layer {row['k']} x {row['n']}"
        way = "graph" if "graph" in row["layers"][0] else "eager"
        times = {one["layer"]: one[way]["median_ms"] for one in row["layers"]}
        size = "peak_bytes" if "peak_bytes" in row["layers"][0] else "weight_bytes"
        sizes = {one["layer"]: one[size] / 1e6 for one in row["layers"]}
        _lines(time, times, title, _COLOURS[kind])
        _lines(memory, sizes, f"{title}, {size.removesuffix('_bytes')}", _COLOURS[kind])
    for axes, label in ((time, "ms a call"), (memory, "MB")):
        axes.set_xlabel("protected coordinates")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    time.legend(fontsize=8)
    memory.legend(fontsize=8)
    env = content["env"]
    figure.suptitle(f"{env['device']}, commit {env['git']}, random weights", fontsize=9)
    return figure


def _lines(axes: Axes, values: dict[str, float], title: str, colour: str) -> None:
    """Values by precision: `bf16`, NAME (no transform, rank 0) and NAME:RANK."""
    ranks = {
        int(name.partition(":")[2] or 0): value for name, value in values.items() if name != "bf16"
    }
    places = sorted(ranks)
    axes.plot(places, [ranks[rank] for rank in places], marker="o", label=title, color=colour)
    if "bf16" in values:
        axes.axhline(values["bf16"], linestyle="--", label=f"{title}, bf16", color=colour)


if __name__ == "__main__":
    main()
