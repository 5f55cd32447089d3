"""Published values beside ours, each marked with its source and with whatever makes it another thing."""

from __future__ import annotations

from collections.abc import Mapping

from dirotq.lab.results import Result
from dirotq.report.cells import Number
from dirotq.report.metrics import shown
from dirotq.report.published import Published, PublishedRow
from dirotq.report.rows import origin

_UNKNOWN = "published, from the run's own settings; how it was measured is not on record"


def published_values(
    result: Result, asked: Published | None, tables: Mapping[str, Published]
) -> dict[str, Number]:
    """Published numbers of a run's row by metric.

    Args:
        result: of the run.
        asked: table to find the row of the same method, rounding and format in. Without one, the numbers are those that
            the run's own settings name (`paper`).
        tables: by model, to find out where the numbers of the run's settings stand.
    """
    table = asked or tables.get(result["model"])
    row = table.find(result["method"], result["rounding"], result["bits"]) if table else None
    numbers = (result["paper"] or {}) if asked is None else row.metrics if row else {}
    found = {}
    for name, value in numbers.items():
        if table is not None and row is not None and row.metrics.get(name) == value:
            marks = (f"published in {row.source}", *_differences(result, name, table, row))
            found[name] = Number(value, None, n=table.n, marks=marks)
        else:
            found[name] = Number(value, None, marks=(_UNKNOWN,))
    return found


def without_ours(table: Published, row: PublishedRow) -> dict[str, Number]:
    """Numbers of a published row that no run of ours stands beside."""
    marks = [f"published in {row.source}", *([row.note] if row.note else [])]
    return {
        name: Number(value, None, n=table.n, marks=tuple(marks))
        for name, value in row.metrics.items()
    }


def _differences(result: Result, name: str, table: Published, row: PublishedRow) -> list[str]:
    """In what a published value was measured differently from ours."""
    ours = origin(result)
    if name in result["metrics"]:
        ours["N"] = str(result["metrics"][name]["n"])
    theirs = {
        "model": table.model,
        "weights": "trained",
        "numerics": table.numerics,
        "N": str(table.n),
        "prompts": table.prompts,
    }
    said = [
        f"{fact}: published {text}, ours {ours[fact]}"
        for fact, text in theirs.items()
        if ours[fact] != text
    ]
    if name in table.ours:
        said.append(
            f"{shown(name).title}: published {table.metrics[name]}; ours {table.ours[name]}"
        )
    return [*said, *([row.note] if row.note else [])]
