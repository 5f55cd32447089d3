"""Plots of what is inside a run: SNR of its layers, error along its trajectory."""

from __future__ import annotations

import csv
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dirotq.report.figures import figure, height_beside, look
from dirotq.report.rows import describe, groups, label, origin, origins
from dirotq.report.runs import NoDataError, Run

_SNR = {
    "weight_snr_db": "weight",
    "act_snr_db": "activation",
    "output_snr_db": "output",
}


def layer_snr(run: Run) -> Figure:
    """Heat maps of the SNR of weights, activations and outputs: depth of the block x kind of linear."""
    path = run.file("layers.csv")
    if path is None:
        raise NoDataError("there is no layers.csv")
    rows = _read(path)
    places = [_place(row["name"]) for row in rows]
    kinds = list(dict.fromkeys(kind for kind, _ in places))
    depth = 1 + max(block for _, block in places)
    maps = np.full((len(_SNR), len(kinds), depth), np.nan)
    for row, (kind, block) in zip(rows, places, strict=True):
        maps[:, kinds.index(kind), block] = [float(row[name]) for name in _SNR]
    exact = bool(np.isinf(maps).any())
    maps[np.isinf(maps)] = np.nan
    assert run.result is not None  # layers.csv stands beside a result
    caption = f"{_name(run)}; {describe(origin(run.result))}" + (
        "; white: exact." if exact else "."
    )
    height = 1.1 + 0.24 * len(kinds)
    with figure(1.8 + max(0.66 * depth, 4.6), height, caption) as made:
        panels = np.atleast_1d(made.subplots(1, len(_SNR), sharey=True))
        for axes, title, values in zip(panels, _SNR.values(), maps, strict=True):
            image = axes.imshow(values, aspect="auto", cmap="viridis")
            axes.grid(visible=False)
            axes.set_title(title, fontsize=8.5)
            axes.set_yticks(range(len(kinds)), kinds)
            axes.set_xlabel("block")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            bar = made.colorbar(image, ax=axes, location="top", aspect=14, pad=0.02)
            bar.outline.set_visible(False)
            bar.ax.tick_params(labelsize=6)
        panels[0].set_ylabel("linear")
        made.suptitle("SNR, dB", fontsize=8.5)
    return made


def trajectory(runs: Sequence[Run]) -> Figure:
    """Error of the latents against the 16-bit ones after each sampling step, a line a run."""
    having = [run for run in runs if run.result is not None and run.file("trajectory.csv")]
    if not having:
        raise NoDataError("no run has a trajectory.csv")
    rows = groups(having, each_seed=True)
    shared = {k: v for k, v in origins(rows)[0].items() if k not in ("N", "prompts")}
    counts = {str(_prompts(run)) for run in having}
    first = f"mean over the first {' or '.join(sorted(counts))} prompts"
    caption = f"{describe(shared)}; {first} with its 95 % bootstrap interval."
    names = [textwrap.fill(label(group), 34) for group in rows]
    with figure(5.8, height_beside(names, 3.4), caption) as made:
        axes = made.subplots()
        for index, group in enumerate(rows):
            path = group.runs[0].file("trajectory.csv")
            assert path is not None  # `having` are those with the file
            table = _read(path)
            step = [int(row["step"]) for row in table]
            axes.plot(step, _column(table, "latent_error"), label=names[index], **look(index))
            low, high = _column(table, "ci_low"), _column(table, "ci_high")
            axes.fill_between(step, low, high, color=look(index)["color"], alpha=0.2, linewidth=0)
        axes.set_xlabel("sampling step")
        axes.set_ylabel("relative error of the latents")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        made.legend(loc="outside right upper")
    return made


def _prompts(run: Run) -> object:
    """For how many prompts a run kept its latents."""
    path = run.file("config.yaml")
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path else {}
    kept = config.get("eval", {}).get("trajectory")
    prompts = run.result.get("prompts") if run.result else None
    return "few" if kept is None or prompts is None else min(kept, prompts["n"])


def _place(name: str) -> tuple[str, int]:
    """Kind and depth of a linear: transformer_blocks.3.attn1.to_q is transformer_blocks attn1.to_q in block 3."""
    found = re.fullmatch(r"(.*?)\.?(\d+)\.(.*)", name)
    if found is None:
        return name, 0
    stack, block, rest = found.groups()
    return (rest if stack == "transformer_blocks" else f"{stack} {rest}"), int(block)


def _name(run: Run) -> str:
    settings = ", ".join(
        f"{k}={v}" for k, v in run.settings.items() if v is not None and "." not in k
    )
    assert run.result is not None  # a run with layers has a result
    return f"{run.result['method']}, {settings}"


def _column(table: Sequence[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) if row[name] else float("nan") for row in table]


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        raise NoDataError(f"{path.name} holds no row")
    return rows
