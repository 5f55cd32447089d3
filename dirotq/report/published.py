"""Published numbers as data: one YAML file a model, `experiments/tables/<model>.yaml`.

model       name of the configuration of the same model, conf/model/<model>.yaml
checkpoint  name on the hub
prompts, n  prompt set and how many of it
size, steps pixels a side and sampling steps
numerics    simulated | kernel: what the published images were made with
metrics     by name, how the authors define it; names are those of result.json
ours        optional: by name, in what our metric of that name is another one
sources     by key: paper, arxiv, table
rows        id, method, rounding, bits (names of conf/), metrics, source, and optionally a note
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

TABLES = Path("experiments/tables")


@dataclass(frozen=True)
class Source:
    """A paper, its arXiv identifier, and where in it or its code the numbers stand."""

    paper: str
    arxiv: str
    table: str

    def __str__(self) -> str:
        return f"{self.paper} (arXiv {self.arxiv}), {self.table}"


@dataclass(frozen=True)
class PublishedRow:
    """One published row; ``metrics`` by the names of result.json."""

    id: str
    method: str
    rounding: str | None
    bits: str
    metrics: Mapping[str, float]
    source: Source
    note: str | None = None


@dataclass(frozen=True)
class Published:
    """The published numbers of a model, and how they were measured."""

    model: str
    checkpoint: str
    prompts: str
    n: int
    size: int
    steps: int
    numerics: str
    metrics: Mapping[str, str]
    rows: tuple[PublishedRow, ...]
    ours: Mapping[str, str] = field(default_factory=dict)

    def find(self, method: str, rounding: str | None, bits: str) -> PublishedRow | None:
        """The row of a method, rounding and format; None if it was not published."""
        keys = (method, rounding, bits)
        return next((r for r in self.rows if (r.method, r.rounding, r.bits) == keys), None)


def load_published(name: str, folder: Path = TABLES) -> Published:
    """Read and check ``<folder>/<name>.yaml``.

    Raises:
        ValueError: no such table (the message lists them), or one that is not as described above.
    """
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise ValueError(f"paper={name}: no such table in {folder}; there are {known}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        return _published(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _published(content: Any) -> Published:
    _keys("the file", content, Published, more={"sources"})
    _texts("the file", content, ("model", "checkpoint", "prompts", "numerics"))
    for name in ("n", "size", "steps"):
        if type(content[name]) is not int or content[name] < 1:
            raise ValueError(f"{name}={content[name]!r}, allowed is a whole number from 1")
    if content["numerics"] not in ("simulated", "kernel"):
        raise ValueError(f"numerics={content['numerics']}, allowed are simulated, kernel")
    _texts("metrics", content["metrics"], tuple(content["metrics"]))
    sources = {}
    for key, value in content["sources"].items():
        _keys(f"source {key}", value, Source)
        _texts(f"source {key}", value, ("paper", "arxiv", "table"))
        sources[key] = Source(**value)
    rows = tuple(_row(row, content["metrics"], sources) for row in content["rows"])
    for names in ([r.id for r in rows], [f"{r.method} {r.rounding} {r.bits}" for r in rows]):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"row {twice} is there twice")
    known = {f.name for f in fields(Published)} - {"rows"}
    return Published(**{k: v for k, v in content.items() if k in known}, rows=rows)


def _row(row: Any, metrics: Mapping[str, str], sources: Mapping[str, Source]) -> PublishedRow:
    _keys("a row", row, PublishedRow)
    place = f"row {row['id']}"
    _texts(place, row, ("id", "method", "bits", "source"))
    for name, value in row["metrics"].items():
        if name not in metrics:
            raise ValueError(f"{place}: {name} is not among metrics: {', '.join(metrics)}")
        if type(value) not in (int, float):
            raise ValueError(f"{place}: {name}={value!r} is not a number")
    if row["source"] not in sources:
        raise ValueError(f"{place}: source={row['source']}, allowed are {', '.join(sources)}")
    if row["rounding"] not in ("rtn", "gptq", None):
        raise ValueError(f"{place}: rounding={row['rounding']}, allowed are rtn, gptq, null")
    return PublishedRow(**{**row, "source": sources[row["source"]]})


def _keys(
    place: str, value: Any, kind: type, more: frozenset[str] | set[str] = frozenset()
) -> None:
    """Check that a mapping has the fields of a dataclass; those with a default may be missing."""
    if not isinstance(value, dict):
        raise ValueError(f"{place} must be a mapping, got {value!r}")
    allowed = {item.name for item in fields(kind)} | more
    optional = {"note", "ours"}
    missing, unknown = sorted(allowed - optional - set(value)), sorted(set(value) - allowed)
    if missing or unknown:
        wrong = f"lacks {missing[0]}" if missing else f"has an unknown key {unknown[0]}"
        raise ValueError(f"{place} {wrong}; allowed are {', '.join(sorted(allowed))}")


def _texts(place: str, value: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(value[name], str) or not value[name]:
            raise ValueError(f"{place}: {name}={value[name]!r}, allowed is a text")
