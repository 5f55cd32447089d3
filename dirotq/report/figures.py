"""What all plots share: style, palette, caption, and files whose bytes depend on the data alone."""

from __future__ import annotations

import io
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dirotq.atomic import atomic_write_bytes
from dirotq.report.cells import Number
from dirotq.report.rows import Group, describe, groups, measured, origin, origins
from dirotq.report.runs import NoDataError, Run

# Okabe and Ito's palette, told apart by readers of every kind of colour vision; yellow is too faint for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_CAPTION = 6.5  # points
_STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "svg.hashsalt": "dirotq",
}


@contextmanager
def figure(width: float, height: float, caption: str) -> Iterator[Figure]:
    """A figure of so many inches in the common style, with a caption below once the block has drawn into it."""
    with matplotlib.rc_context(_STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        yield made
        # A character of this font is about 0.58 of its size wide; an inch has 72 points.
        lines = textwrap.wrap(caption, int(width * 72 / (0.58 * _CAPTION)))
        made.supxlabel("\n".join(lines), fontsize=_CAPTION, color="#555555", x=0.01, ha="left")


def height_beside(names: Sequence[str], least: float) -> float:
    """Height of a figure in inches that a legend of these names fits beside, its caption below."""
    line, gap, below = 0.125, 0.055, 0.7  # of the legend's font; of the caption
    return max(least, below + sum(line * (1 + name.count("\n")) + gap for name in names))


def save(made: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG beside each other; ``path`` has no ending."""
    written = []
    for ending, data in (("png", png(made)), ("svg", svg(made))):
        written.append(path.with_name(f"{path.name}.{ending}"))
        atomic_write_bytes(written[-1], data)
    return written


def png(made: Figure, dpi: int = 200) -> bytes:
    """The figure as PNG, so many pixels an inch."""
    return _saved(made, "png", {"Software": None}, dpi)


def svg(made: Figure) -> bytes:
    """The figure as SVG, text as outlines so that it looks alike everywhere."""
    return _saved(made, "svg", {"Date": None, "Creator": None}, 200)


def _saved(made: Figure, form: str, metadata: dict[str, None], dpi: int) -> bytes:
    stream = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        made.savefig(stream, format=form, metadata=metadata, dpi=dpi)
    return stream.getvalue()


def comparable(runs: Sequence[Run], metric: str) -> tuple[list[Group], str]:
    """The rows to draw in one plot, and a caption that says how they were measured.

    Rows on another model, prompt set, N, kind of weights or numerics than most are left out, and so is the 16-bit
    model, which is the reference.

    Raises:
        NoDataError: no row has the metric.
    """
    has = [
        run for run in runs if run.result and metric in run.result["metrics"] and _quantized(run)
    ]
    if not has:
        raise NoDataError(f"no quantized run has the metric {metric}")
    common = Counter(map(_kind, has)).most_common(1)[0][0]
    rows = groups([run for run in has if _kind(run) == common])
    shared, varying = origins(rows)
    bars = "bars: 95 % bootstrap intervals over prompts"
    if any(len(group.results) > 1 for group in rows):
        bars += "; of rows with several seeds, mean and range over the seeds"
    said = [describe(shared), *([f"differing in {', '.join(varying)}"] if varying else []), bars]
    dropped = sum(_kind(run) != common for run in has)
    said += [f"{dropped} runs measured otherwise are left out"] if dropped else []
    return rows, "; ".join(said) + "."


def _quantized(run: Run) -> bool:
    return run.result is not None and run.result["method"] != "fp16"


def _kind(run: Run) -> tuple[object, ...]:
    assert run.result is not None  # only finished runs have metrics
    facts = origin(run.result)
    return tuple(facts[name] for name in ("model", "weights", "numerics", "prompts", "N"))


def look(index: int) -> dict[str, Any]:
    """Colour and stroke of the line with a number: of 21, no two alike."""
    strokes = ("-", "--", ":")
    stroke = strokes[index // len(COLOURS) % len(strokes)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": stroke}


def points(
    axes: Axes,
    place: Sequence[float],
    rows: Sequence[Group],
    metric: str,
    *,
    index: int,
    label: str,
    line: bool = False,
) -> None:
    """Values of a metric with their intervals, in the look of a number, joined by a line if ``line``."""
    numbers = [number_of(group, metric) for group in rows]
    axes.errorbar(
        place,
        [n.value for n in numbers],
        yerr=errors(numbers),
        label=label,
        marker=MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],  # 49 pairs with the colours
        markersize=4.5,
        linewidth=1.2,
        elinewidth=0.9,
        capsize=2,
        **(look(index) | ({} if line else {"linestyle": ""})),
    )


def errors(numbers: Sequence[Number]) -> list[list[float]]:
    """Distances [2][n] from the values down to and up to the ends of their intervals; 0 without one."""
    return [
        [max(0.0, n.value - n.low) if n.low is not None else 0.0 for n in numbers],
        [max(0.0, n.high - n.value) if n.high is not None else 0.0 for n in numbers],
    ]


def number_of(group: Group, metric: str) -> Number:
    """A row's metric, which it must have."""
    found = measured(group, metric)
    if not isinstance(found, Number):
        raise NoDataError(f"{group.runs[0].name} has no {metric}")
    return found
