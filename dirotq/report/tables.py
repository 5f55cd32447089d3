"""Tables of runs: metrics with intervals, published values beside ours, and one metric over two settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dirotq.report.beside import published_values, without_ours
from dirotq.report.cells import Cell, Column, Number, Table
from dirotq.report.metrics import ordered, shown
from dirotq.report.published import Published
from dirotq.report.rows import (
    Group,
    describe,
    groups,
    label,
    left_out,
    measured,
    origin,
    origins,
    unfinished,
)
from dirotq.report.runs import Run, natural

OVER_PROMPTS = (
    "Intervals are 95 % bootstrap intervals over prompts unless marked, each row on its own."
)


def results_table(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str] | None = None,
    published: Published | None = None,
    tables: Mapping[str, Published] | None = None,
    each_seed: bool = False,
    spread: bool = False,
) -> Table:
    """One row a run, or a group of seeds.

    Args:
        runs: in the order of the rows; unfinished ones are listed apart.
        metrics: columns; None for all that any run has.
        published: published rows to show beside runs of the same method, rounding and format; those without such a run
            follow at the end.
        tables: published tables by model, for the numbers that the runs themselves name (`paper`).
        each_seed: a row for each seed instead of their mean.
        spread: a column for the runs' names and for every setting that tells rows apart; else only for settings that
            most rows have, the others being part of the row's label.
    """
    rows = groups(runs, each_seed=each_seed)
    beside = [published_values(group.first, published, tables or {}) for group in rows]
    others = _others(rows, published)
    every = [*beside, *(values for _, values in others)]
    head = _Head.of(rows, spread=spread)
    body = _Body.of(rows, every, metrics)
    lines = [
        (*head.cells(group), *body.cells(group, values))
        for group, values in zip(rows, beside, strict=True)
    ]
    for text, values in others:
        start = [None, text] if spread else [text]
        empty = [None] * (len(head.columns) - len(start))
        lines.append((*start, *empty, *body.cells(None, values)))
    shared, _ = origins(rows)
    notes = [*([f"{describe(shared)}."] if shared else []), OVER_PROMPTS]
    return Table((*head.columns, *body.columns), tuple(lines), tuple(notes), unfinished(runs))


@dataclass(frozen=True)
class _Head:
    """The left columns of a table: what a row is and how many bits it takes."""

    spread: bool
    dense: Sequence[str]
    varying: Sequence[str]

    @classmethod
    def of(cls, rows: Sequence[Group], *, spread: bool) -> _Head:
        dense = list(rows[0].settings) if spread and rows else _dense(rows)
        return cls(spread, dense, origins(rows)[1])

    @property
    def columns(self) -> list[Column]:
        found = [Column("run", "run")] if self.spread else []
        found += [Column(name, name) for name in ("method", *self.dense)]
        found += [Column("weight_bits", "bits W"), Column("activation_bits", "bits A")]
        return found + [Column(name, name) for name in self.varying]

    def cells(self, group: Group) -> list[Cell]:
        bits = group.first["effective_bits"]
        found: list[Cell] = [", ".join(run.name for run in group.runs)] if self.spread else []
        found.append(label(group, leave_out=self.dense, brief=True))
        found += [group.settings[name] for name in self.dense]
        found += [Number(bits["weight"], 2), Number(bits["activation"], 2)]
        return found + [origin(group.first)[name] for name in self.varying]


@dataclass(frozen=True)
class _Body:
    """The right columns of a table: metrics, ours and published, those that any row has."""

    metrics: Sequence[str]
    ours: frozenset[str]
    quoted: frozenset[str]

    @classmethod
    def of(
        cls,
        rows: Sequence[Group],
        published: Sequence[Mapping[str, Number]],
        metrics: Sequence[str] | None,
    ) -> _Body:
        results = [result for group in rows for result in group.results]
        ours = {name for result in results for name in [*result["metrics"], *left_out(result)]}
        quoted = {name for values in published for name in values}
        return cls(metrics or ordered(ours | quoted), frozenset(ours), frozenset(quoted))

    @property
    def columns(self) -> list[Column]:
        found = []
        for name in self.metrics:
            found += [Column(name, shown(name).heading)] if name in self.ours else []
            title = f"published {shown(name).title}"
            found += [Column(f"published_{name}", title)] if name in self.quoted else []
        return found

    def cells(self, group: Group | None, published: Mapping[str, Number]) -> list[Cell]:
        found: list[Cell] = []
        for name in self.metrics:
            own = None if group is None else measured(group, name)
            found += [own] if name in self.ours else []
            found += [published.get(name)] if name in self.quoted else []
        return found


def pivot(runs: Sequence[Run], *, columns: str, metric: str, each_commit: bool = True) -> Table:
    """One metric with a column for each value of a setting, beside the effective bits of the weights.

    Args:
        runs: of one model, all finished; seeds are averaged.
        columns: the setting whose values are the columns.
        metric: the cells.
        each_commit: whether seeds of different commits are kept apart.

    Raises:
        ValueError: two runs fall into one cell, or all have the same value of the setting.
    """
    entries = groups(runs, each_commit=each_commit)
    if any(columns not in group.settings for group in entries):
        raise ValueError(f"columns={columns}: no two runs differ in it")
    dense = [name for name in _dense(entries) if name != columns]
    lines: dict[tuple[Cell, ...], dict[str, Group]] = {}
    for group in entries:
        key = (
            label(group, leave_out=[columns, *dense], brief=True),
            *(group.settings[n] for n in dense),
        )
        head = group.settings[columns] or "none"
        if head in lines.setdefault(key, {}):
            row = ", ".join(str(cell) for cell in key)
            raise ValueError(f"{row}, {columns}={head}: two runs, not measured alike")
        lines[key][head] = group
    heads = sorted({head for cells in lines.values() for head in cells}, key=natural)
    alike = all(
        len({_bits(group).value for group in cells.values()}) == 1 for cells in lines.values()
    )
    titles = [Column(name, name) for name in ("method", *dense)]
    titles += [Column("weight_bits", "bits W")] if alike else []
    for head in heads:
        titles += [] if alike else [Column(f"{head}_weight_bits", f"{head}: bits W")]
        titles.append(Column(f"{head}_{metric}", f"{head}: {shown(metric).heading}"))
    body: list[tuple[Cell, ...]] = []
    for start, cells in lines.items():
        line = [*start, *([_bits(next(iter(cells.values())))] if alike else [])]
        for head in heads:
            entry = cells.get(head)
            line += [] if alike else [None if entry is None else _bits(entry)]
            line.append(None if entry is None else measured(entry, metric))
        body.append(tuple(line))
    return Table(tuple(titles), tuple(body), (OVER_PROMPTS,))


def _bits(group: Group) -> Number:
    return Number(group.first["effective_bits"]["weight"], 2)


def _dense(rows: Sequence[Group]) -> list[str]:
    """Settings that most rows have, which get a column; the others go into the row's label."""
    names = list(rows[0].settings) if rows else []
    return [n for n in names if 2 * sum(g.settings[n] is not None for g in rows) > len(rows)]


def _others(
    rows: Sequence[Group], published: Published | None
) -> list[tuple[str, dict[str, Number]]]:
    """Label and numbers of the published rows that no run stands beside."""
    if published is None:
        return []
    ours = {(r["method"], r["rounding"], r["bits"]) for r in (group.first for group in rows)}
    left = [row for row in published.rows if (row.method, row.rounding, row.bits) not in ours]
    names = [" ".join(filter(None, (row.method, row.rounding, row.bits))) for row in left]
    return [
        (f"{name} (published)", without_ours(published, row))
        for name, row in zip(names, left, strict=True)
    ]
