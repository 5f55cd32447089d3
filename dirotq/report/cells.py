"""A table as data; dirotq.report.render writes it as text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A measured or published number with its interval.

    ``digits`` are the decimals shown, None for the number as it was given; ``marks`` are sentences that footnotes say
    about it; ``verdict`` is said right after it. A ``signed`` number is a difference and shows its plus.
    """

    value: float
    digits: int | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    marks: tuple[str, ...] = ()
    verdict: str = ""
    signed: bool = False


@dataclass(frozen=True)
class Marked:
    """Text with footnotes."""

    text: str
    marks: tuple[str, ...]


Cell = Number | Marked | str | None


@dataclass(frozen=True)
class Column:
    """``key`` names it in CSV, ``title`` elsewhere."""

    key: str
    title: str


@dataclass(frozen=True)
class Table:
    """Rows of cells, and what is said below: notes, and jobs without a result (name, overrides, what became of it)."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    unfinished: tuple[tuple[str, str, str], ...] = ()


def shown_number(number: Number) -> str:
    """Value with its interval to the number's digits, and the verdict."""
    if number.digits is None:
        return str(number.value)
    form = f"{'+' if number.signed else ''}.{number.digits}f"
    text = format(number.value, form)
    if number.low is not None and number.high is not None:
        text += f" [{format(number.low, form)}, {format(number.high, form)}]"
    return f"{text} {number.verdict}".rstrip()
