"""Plots of runs. Each function returns a figure, or raises NoDataError when the runs hold nothing to draw."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dirotq.report.figures import (
    COLOURS,
    comparable,
    errors,
    figure,
    height_beside,
    look,
    number_of,
    points,
)
from dirotq.report.layerplots import layer_snr, trajectory
from dirotq.report.metrics import shown
from dirotq.report.rows import Group, label, rank_order
from dirotq.report.runs import NoDataError, Run

_LEGEND_WIDTH = 34  # characters
_SIZES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)  # ticks of bits a weight


def quality_against_rank(runs: Sequence[Run], metric: str) -> Figure:
    """A line for each method and basis over the rank; methods without a rank are dashed lines across."""
    rows, caption = comparable(runs, metric)
    lines = _split([group for group in rows if group.first["rank"] is not None], "rank")
    if not any(len(members) > 1 for members in lines.values()):
        raise NoDataError("no two runs differ in their rank alone")
    ranks = sorted(
        {_rank(group) for members in lines.values() for group in members}, key=rank_order
    )
    shares = [rank for rank in ranks if rank_order(rank)[0]]
    across = {_wrapped(label(group)): number_of(group, metric).value for group in _unranked(rows)}
    with figure(5.8, height_beside([*lines, *across], 3.4), caption) as made:
        axes = made.subplots()
        # Coordinates and shares of a width have no common scale: ranks of both kinds stand side by side.
        mixed = 0 < len(shares) < len(ranks)
        for index, (name, members) in enumerate(lines.items()):
            members.sort(key=lambda group: rank_order(_rank(group)))
            place = [ranks.index(_rank(g)) if mixed else _rank(g) for g in members]
            points(axes, place, members, metric, index=index, label=name, line=True)
        for index, (name, value) in enumerate(across.items(), start=len(lines)):
            colour = look(index)["color"]
            axes.axhline(value, color=colour, linestyle="--", linewidth=1, label=name)
        if mixed:
            axes.set_xticks(range(len(ranks)), [f"{rank:g}" for rank in ranks])
        else:
            axes.set_xscale("symlog" if 0 in ranks else "log", base=2)
            axes.set_xticks(ranks, _tick_labels(ranks))
            axes.minorticks_off()
        kinds = ["coordinates"] if len(shares) < len(ranks) else []
        kinds += ["below 1: share of the input width"] if shares else []
        axes.set_xlabel(f"rank, {'; '.join(kinds)}")
        axes.set_ylabel(shown(metric).heading)
        made.legend(loc="outside right upper")
    return made


def quality_against_bits(runs: Sequence[Run], metric: str) -> Figure:
    """A column of points for each format of weights and activations, most bits first."""
    rows, caption = comparable(runs, metric)
    formats = _by_bits(rows)
    if len(formats) < 2:
        raise NoDataError("all runs have the same bits")
    lines = _split(rows, "bits")
    with figure(5.8, height_beside(list(lines), 3.4), caption) as made:
        axes = made.subplots()
        for index, (name, members) in enumerate(lines.items()):
            shift = 0.6 * ((index + 0.5) / len(lines) - 0.5)  # side by side within a column
            place = [formats.index(group.first["bits"]) + shift for group in members]
            points(axes, place, members, metric, index=index, label=name)
        axes.set_xticks(range(len(formats)), [name.replace("_", "\n") for name in formats])
        axes.set_xlim(-0.5, len(formats) - 0.5)
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("format of weights and activations")
        axes.set_ylabel(shown(metric).heading)
        made.legend(loc="outside right upper")
    return made


def pareto(runs: Sequence[Run], metric: str) -> Figure:
    """Size against quality, with the line of the rows that no other beats in both."""
    better = shown(metric).better
    if better is None:
        raise NoDataError(f"it is not known whether more {metric} is better")
    rows, caption = comparable(runs, metric)
    sizes = [group.first["effective_bits"]["weight"] for group in rows]
    if len(set(sizes)) < 2:
        raise NoDataError("all runs have the same size")
    sign = 1 if better == "higher" else -1
    values = [sign * number_of(group, metric).value for group in rows]
    by_size = sorted(range(len(rows)), key=lambda i: (sizes[i], -values[i]))
    front = [i for n, i in enumerate(by_size) if all(values[j] < values[i] for j in by_size[:n])]
    told = {f"{n}": _wrapped(label(rows[i])) for n, i in enumerate(front, start=1)}
    with figure(6.6, height_beside(list(told.values()), 3.8), caption) as made:
        axes = made.subplots()
        edge = [(sizes[i], sign * values[i]) for i in front]
        axes.step(*zip(*edge, strict=True), where="post", color="#999999", linewidth=1, zorder=1)
        methods = list(dict.fromkeys(group.first["method"] for group in rows))
        for index, method in enumerate(methods):
            members = [group for group in rows if group.first["method"] == method]
            place = [group.first["effective_bits"]["weight"] for group in members]
            points(axes, place, members, metric, index=index, label=method)
        for number, place_of in zip(told, edge, strict=True):
            axes.annotate(number, place_of, (-8, 5), textcoords="offset points", fontsize=7)
        if max(sizes) > 2 * min(sizes):
            axes.set_xscale("log", base=2)
            ticks = [t for t in _SIZES if 0.9 * min(sizes) < t < 1.1 * max(sizes)]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel("effective bits a weight")
        axes.set_ylabel(shown(metric).heading)
        axes.legend(loc="best")
        keys = [_numeral(number) for number in told]
        made.legend(
            keys, told.values(), loc="outside right upper", title="smallest of their quality",
            fontsize=6.5, title_fontsize=7.5,
        )  # fmt: skip
    return made


def _numeral(number: str) -> Line2D:
    """A number as the key of a legend."""
    made = Line2D([], [], linestyle="", color="black", marker=f"${number}$")
    made.set(markersize=5, markeredgewidth=0)
    return made


def bars(runs: Sequence[Run], metric: str) -> Figure:
    """A bar for each row of a table, best first, from zero."""
    rows, caption = comparable(runs, metric)
    if len(rows) < 2:
        raise NoDataError("there is one row only")
    rows.sort(key=lambda g: number_of(g, metric).value, reverse=shown(metric).better == "lower")
    numbers = [number_of(group, metric) for group in rows]
    methods = sorted({group.first["method"] for group in rows})
    caption = f"In brackets: effective bits of weights / activations. {caption}"
    with figure(6.2, 0.9 + 0.27 * len(rows), caption) as made:
        axes = made.subplots()
        axes.barh(
            range(len(rows)),
            [number.value for number in numbers],
            xerr=errors(numbers),
            color=[COLOURS[methods.index(g.first["method"]) % len(COLOURS)] for g in rows],
            height=0.68,
            alpha=0.85,
            error_kw={"elinewidth": 0.9, "capsize": 2},
        )
        for place, number in enumerate(numbers):
            end = number.value if number.high is None else number.high
            axes.annotate(
                f"{number.value:.{number.digits}f}", (end, place), (4, 0),
                textcoords="offset points", va="center", fontsize=6.5,
            )  # fmt: skip
        axes.set_yticks(range(len(rows)), [_wrapped(_row_name(g), 58) for g in rows], fontsize=6.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.09, y=0.02)
        axes.set_xlabel(shown(metric).heading)
    return made


PLOTS: Mapping[str, Callable[[Sequence[Run], str], Figure]] = {
    "rank": quality_against_rank,
    "bits": quality_against_bits,
    "pareto": pareto,
    "methods": bars,
}


def drawn(runs: Sequence[Run], metrics: Sequence[str]) -> tuple[dict[str, Figure], list[str]]:
    """Every plot that the runs have data for, by name, and for every other a line that says why not."""
    plots: dict[str, Figure] = {}
    missing: list[str] = []
    tasks: dict[str, Callable[[], Figure]] = {
        f"{name}-{metric}": lambda draw=draw, metric=metric: draw(runs, metric)  # type: ignore[misc]
        for name, draw in PLOTS.items()
        for metric in metrics
    }
    tasks["trajectory"] = lambda: trajectory(runs)
    for run in runs:
        if run.result is not None:
            tasks[f"layers-{run.name}"] = lambda run=run: layer_snr(run)  # type: ignore[misc]
    for name, task in tasks.items():
        try:
            plots[name] = task()
        except NoDataError as reason:
            missing.append(f"{name}: not drawn; {reason}")
    return plots, missing


def _split(rows: Sequence[Group], setting: str) -> dict[str, list[Group]]:
    """Rows by their label without a setting, broken into lines for a legend."""
    lines: dict[str, list[Group]] = {}
    for group in rows:
        lines.setdefault(_wrapped(label(group, leave_out=[setting])), []).append(group)
    return lines


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Ranks as text, empty where the text would run into the one before on an axis of powers of two."""
    said: list[str] = []
    last = 0.0
    for tick in ticks:
        near = last > 0 and tick / last < 1.3
        said.append("" if near else f"{tick:g}")
        last = last if near else tick
    return said


def _rank(group: Group) -> float:
    return float(group.first["rank"] or 0)


def _unranked(rows: Sequence[Group]) -> list[Group]:
    return [g for g in rows if g.first["rank"] is None and not g.first.get("budget")]


def _by_bits(rows: Sequence[Group]) -> list[str]:
    """Names of the formats, most effective bits first."""
    total: dict[str, list[float]] = {}
    for group in rows:
        bits = group.first["effective_bits"]
        total.setdefault(group.first["bits"], []).append(bits["weight"] + bits["activation"])
    return sorted(total, key=lambda name: -sum(total[name]) / len(total[name]))


def _row_name(group: Group) -> str:
    bits = group.first["effective_bits"]
    # No-break spaces keep the bits on one line.
    return f"{label(group)} ({bits['weight']:.2f}\N{NO-BREAK SPACE}/\N{NO-BREAK SPACE}{bits['activation']:.2f})"


def _wrapped(name: str, width: int = _LEGEND_WIDTH) -> str:
    return "\n".join(textwrap.wrap(name, width))
