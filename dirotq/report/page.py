"""One self-contained HTML page of runs: tables, plots, images, failed jobs, and how everything was measured."""

from __future__ import annotations

import base64
import importlib.resources
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import get_args

from matplotlib.figure import Figure
from PIL import Image

from dirotq.report.cells import Cell, Marked, Number, Table, shown_number
from dirotq.report.figures import svg
from dirotq.report.render import letters, marks, text
from dirotq.report.rows import origin
from dirotq.report.runs import Run, Status


def page(
    title: str,
    runs: Sequence[Run],
    tables: Mapping[str, Table],
    plots: Mapping[str, Figure],
    picture: Image.Image | None,
    missing: Sequence[str],
) -> str:
    """HTML that needs no other file and no network.

    Args:
        title: heading.
        runs: all jobs, for how they were measured and which failed.
        tables: by heading, in order.
        plots: by name; those of single runs (`layers-...`) are folded away.
        picture: grid of images.
        missing: a line for each plot or grid that could not be drawn.
    """
    files = importlib.resources.files("dirotq.report")
    style, script = (files.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("css", "js"))
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(_summary(runs))}</p>"]
    for heading, table in tables.items():
        body += [f"<h2>{escape(heading)}</h2>", _table(table)]
    body += _failures(runs)
    body += _plots(plots, {f"layers-{run.name}": " ".join(run.overrides) for run in runs})
    if picture is not None:
        body += ["<h2>Images</h2>", _image(picture)]
    if missing:
        body += ["<h2>Not shown</h2>", _notes(missing)]
    body += ["<h2>How it was measured</h2>", _measured(runs)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _summary(runs: Sequence[Run]) -> str:
    counts = {status: sum(run.status == status for run in runs) for status in get_args(Status)}
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def _table(table: Table) -> str:
    """A table that sorts by a click on a heading, its footnotes and notes."""
    legend = marks(table)
    numeric = [
        any(isinstance(row[i], Number) for row in table.rows) for i in range(len(table.columns))
    ]
    heads = [
        f'<th scope="col"{_class(right)}><button type="button">{escape(column.title)}</button></th>'
        for column, right in zip(table.columns, numeric, strict=True)
    ]
    rows = [
        "<tr>"
        + "".join(_cell(c, right, legend) for c, right in zip(row, numeric, strict=True))
        + "</tr>"
        for row in table.rows
    ]
    notes = [f"<sup>{letter}</sup> {escape(mark)}" for mark, letter in legend.items()]
    notes += [escape(note) for note in table.notes]
    return (
        f'<div class="wide"><table class="sortable"><thead><tr>{"".join(heads)}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + '\n</tbody></table></div>\n<ul class="notes">'
        + "".join(f"<li>{note}</li>" for note in notes)
        + "</ul>"
    )


def _cell(cell: Cell, right: bool, legend: dict[str, str]) -> str:
    said = escape(text(cell))
    value = "" if cell is None or isinstance(cell, Marked) else said
    title = ""
    if isinstance(cell, Number):
        value = repr(cell.value)
        said = re.sub(r"(\[.*\])", r'<span class="interval">\1</span>', escape(shown_number(cell)))
        if cell.verdict:
            said = said.replace(cell.verdict, f'<span class="verdict">{cell.verdict}</span>')
        title = f' title="N = {cell.n}"' if cell.n is not None else ""
    above = letters(cell, legend)
    said += f"<sup>{above}</sup>" if above else ""
    return f'<td{_class(right)} data-value="{value}"{title}>{said}</td>'


def _class(right: bool) -> str:
    return ' class="number"' if right else ""


def _failures(runs: Sequence[Run]) -> list[str]:
    unfinished = [run for run in runs if run.result is None]
    if not unfinished:
        return []
    rows = [
        f'<tr><td>{escape(run.name)}</td><td class="{run.status}">{run.status}</td>'
        f'<td class="long"><code>{escape(" ".join(run.overrides))}</code></td>'
        f'<td class="long">{escape(run.error or "")}</td></tr>'
        for run in unfinished
    ]
    head = "<tr><th>job</th><th>status</th><th>overrides</th><th>error</th></tr>"
    return ["<h2>Jobs without a result</h2>", _plain(head, rows)]


def _plots(plots: Mapping[str, Figure], jobs: Mapping[str, str]) -> list[str]:
    inside = {name: made for name, made in plots.items() if name.startswith("layers-")}
    overall = [_inline(name, made) for name, made in plots.items() if name not in inside]
    parts = ["<h2>Plots</h2>", f'<div class="plots">{"".join(overall)}</div>'] if overall else []
    if inside:
        names = {name: f"{name.removeprefix('layers-')} {jobs.get(name, '')}" for name in inside}
        folded = "".join(
            f"<details><summary>{escape(names[name])}</summary>{_inline(name, made)}</details>"
            for name, made in inside.items()
        )
        parts += ["<h2>Layers</h2>", folded]
    return parts


def _inline(name: str, made: Figure) -> str:
    """A figure as inline SVG whose ids no other figure of the page has."""
    drawing = svg(made).decode()
    drawing = drawing[drawing.index("<svg") :]
    prefix = re.sub(r"\W", "-", name)
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", drawing)
    return f'<figure role="img" aria-label="{escape(name)}">{drawing}</figure>'


def _image(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<figure><img alt="images of the runs beside the 16-bit ones" src="data:image/png;base64,{data}"></figure>'


def _notes(lines: Sequence[str]) -> str:
    return '<ul class="notes">' + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _measured(runs: Sequence[Run]) -> str:
    """A row a run: command, where and on what, and the preflight's estimate beside what was measured."""
    heads = ["run", "command", "N", "device", "commit", "versions", "seconds", "estimate"]
    heads += ["peak MB", "estimate", "checkpoint MB"]
    rows = []
    for run in runs:
        if run.result is None:
            continue
        result, facts = run.result, origin(run.result)
        estimate = result.get("preflight")
        words = [result.get("command", ""), *([" ".join(run.overrides)] if run.overrides else [])]
        command = "<br>".join(f"<code>{escape(part)}</code>" for part in words)
        versions = ", ".join(f"{k} {v}" for k, v in result["env"]["versions"].items() if v)
        stages = ", ".join(f"{name} {value:.1f}" for name, value in result["seconds"].items())
        cells = [
            f"<td>{escape(run.name)}</td>",
            f'<td class="long">{command}</td>',
            *(f"<td>{escape(facts[name])}</td>" for name in ("N", "device", "commit")),
            f'<td class="long">{escape(versions)}</td>',
            _figure(result["seconds"].get("total"), 1, 1, title=stages),
            _figure(estimate and estimate["seconds"], 1, 1),
            _figure(result["bytes"]["peak"], 1e6, 0),
            _figure(estimate and estimate["memory_bytes"], 1e6, 0),
            _figure(result["bytes"]["checkpoint"], 1e6, 1),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return _plain("<tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>", rows)


def _figure(value: float | None, unit: float, digits: int, title: str = "") -> str:
    said = "" if value is None else f"{value / unit:.{digits}f}"
    return f'<td class="number" title="{escape(title)}">{said}</td>'


def _plain(head: str, rows: Sequence[str]) -> str:
    return f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'
