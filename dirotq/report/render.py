"""A table as aligned text, Markdown, LaTeX (booktabs) or CSV; footnotes are letters with a legend below."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

from dirotq.report.cells import Cell, Marked, Number, Table, shown_number
from dirotq.report.tex import escaped

_NONE = "-"
_ENDINGS = ("", "_low", "_high", "_n", "_marks")


def marks(table: Table) -> dict[str, str]:
    """Letter of each footnote, in the order in which a reader meets them."""
    said = [mark for row in table.rows for cell in row for mark in _marks_of(cell)]
    return {mark: _letter(number) for number, mark in enumerate(dict.fromkeys(said))}


def text(cell: Cell) -> str:
    """A cell without its footnotes."""
    if isinstance(cell, Number):
        return shown_number(cell)
    if isinstance(cell, Marked):
        return cell.text
    return _NONE if cell is None else cell


def letters(cell: Cell, legend: dict[str, str]) -> str:
    """Footnote letters of a cell, separated by commas; empty without any."""
    return ",".join(legend[mark] for mark in _marks_of(cell))


def terminal(table: Table) -> str:
    """Aligned columns of text."""
    legend = marks(table)
    cells = [[column.title for column in table.columns]]
    cells += [[_with(text(cell), " ({})", letters(cell, legend)) for cell in r] for r in table.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    numeric = _numeric(table)
    lines = ["  ".join(_aligned(row, widths, numeric)).rstrip() for row in cells]
    lines.insert(1, "  ".join("─" * width for width in widths))
    lines += [f"({letter}) {mark}" for mark, letter in legend.items()]
    lines += table.notes
    lines += [f"job {name} ({overrides}) {state}" for name, overrides, state in table.unfinished]
    return "\n".join(lines) + "\n"


def markdown(table: Table) -> str:
    """A Markdown table, its footnotes in superscripts."""
    legend = marks(table)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rules = ["---:" if numeric else "---" for numeric in _numeric(table)]
    lines = [line([column.title for column in table.columns]), "|" + "|".join(rules) + "|"]
    lines += [
        line([_with(text(cell), " <sup>{}</sup>", letters(cell, legend)) for cell in row])
        for row in table.rows
    ]
    below = [f"<sup>{letter}</sup> {mark}" for mark, letter in legend.items()]
    below += table.notes
    below += [f"Job {name} (`{words}`) {state}" for name, words, state in table.unfinished]
    return "\n".join(lines) + "".join(f"\n\n{said}" for said in below) + "\n"


def latex(table: Table) -> str:
    """A LaTeX table for the package booktabs."""
    legend = marks(table)

    def line(cells: Sequence[str]) -> str:
        return "  " + " & ".join(cells) + r" \\"

    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{{''.join('r' if n else 'l' for n in _numeric(table))}}}",
        r"\toprule",
        line([escaped(column.title) for column in table.columns]),
        r"\midrule",
    ]
    lines += [
        line([_with(_tex(c), r"\textsuperscript{{{}}}", letters(c, legend)) for c in row])
        for row in table.rows
    ]
    lines += [r"\bottomrule", r"\end{tabular}"]
    said = [rf"\textsuperscript{{{letter}}} {escaped(mark)}." for mark, letter in legend.items()]
    below = [" ".join(said)] if said else []
    below += [escaped(note) for note in table.notes]
    below += [escaped(f"Job {name} ({words}) {state}") for name, words, state in table.unfinished]
    lines += [rf"\par\smallskip{{\footnotesize {part}\par}}" for part in below]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def comma_separated(table: Table) -> str:
    """CSV in full precision.

    A column of measured or published numbers takes five: key, key_low, key_high, key_n, key_marks; one of text with
    footnotes has key_marks beside it. Jobs without a result follow as rows that hold their overrides and what became of
    them.
    """
    columns = [[row[i] for row in table.rows] for i in range(len(table.columns))]
    endings = [_endings(cells) for cells in columns]
    head = [c.key + e for c, ends in zip(table.columns, endings, strict=True) for e in ends]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*head, "job", "status"])
    for row in table.rows:
        cells = zip(row, endings, strict=True)
        fields = [_fields(cell)[_ENDINGS.index(end)] for cell, ends in cells for end in ends]
        writer.writerow([*fields, "", "finished"])
    for name, overrides, state in table.unfinished:
        writer.writerow([overrides, *[""] * (len(head) - 1), name, state])
    return stream.getvalue()


FORMATS: dict[str, tuple[str, Callable[[Table], str]]] = {
    "terminal": ("txt", terminal),
    "markdown": ("md", markdown),
    "latex": ("tex", latex),
    "csv": ("csv", comma_separated),
}


def _fields(cell: Cell) -> list[object]:
    if isinstance(cell, Number):
        said = [*([cell.verdict] if cell.verdict else []), *cell.marks]
        return [cell.value, cell.low, cell.high, cell.n, "; ".join(said)]
    if isinstance(cell, Marked):
        return ["" if cell.text == _NONE else cell.text, "", "", "", "; ".join(cell.marks)]
    return ["" if cell is None else cell, "", "", "", ""]


def _endings(cells: Sequence[Cell]) -> Sequence[str]:
    """Which of _ENDINGS a column of CSV needs."""
    if any(isinstance(c, Number) and (c.n is not None or c.marks or c.verdict) for c in cells):
        return _ENDINGS
    return ("", "_marks") if any(isinstance(cell, Marked) for cell in cells) else ("",)


def _marks_of(cell: Cell) -> tuple[str, ...]:
    return cell.marks if isinstance(cell, Number | Marked) else ()


def _numeric(table: Table) -> list[bool]:
    """Which columns are set flush right."""
    columns = [[row[i] for row in table.rows] for i in range(len(table.columns))]
    return [any(isinstance(cell, Number) for cell in cells) for cells in columns]


def _aligned(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> list[str]:
    return [
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    ]


def _with(shown: str, form: str, letters: str) -> str:
    return shown + form.format(letters) if letters else shown


def _letter(number: int) -> str:
    """a to z, then aa, ab ..."""
    before, last = divmod(number, 26)
    return (_letter(before - 1) if before else "") + "abcdefghijklmnopqrstuvwxyz"[last]


def _tex(cell: Cell) -> str:
    """A cell for LaTeX, a number's minus as a minus and not a hyphen."""
    made = escaped(text(cell))
    return made.replace("-", "$-$") if isinstance(cell, Number) else made
