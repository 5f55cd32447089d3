"""What stages keep in their cache entries, as files: statistics of inputs, and the report of a quantization."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from dirotq.atomic import atomic_write_json
from dirotq.calibrate import InputStatistics
from dirotq.quantize import LayerReport, Report

_TENSORS = ("moment", "absmax", "sample")
_PLAIN = ("members", "width", "rows", "lowest")
_FILE = "{:05d}.safetensors"


def save_statistics(statistics: Iterable[InputStatistics], folder: Path) -> None:
    """Write what `load_statistics` reads, each input when it comes: a file of its tensors; in the end `inputs.json`."""
    described: list[dict[str, Any]] = []
    for entry in statistics:
        tensors = {name: getattr(entry, name).cpu() for name in _TENSORS}
        save_file(tensors, folder / _FILE.format(len(described)))
        described.append({name: getattr(entry, name) for name in _PLAIN})
        # Nothing else refers to them: their memory is free before the next ones are made.
        del entry, tensors
    atomic_write_json(folder / "inputs.json", described)


def load_statistics(folder: Path) -> list[InputStatistics]:
    """The statistics in the order in which they were saved; the files are mapped, not read."""
    found = []
    for number, fields in enumerate(json.loads((folder / "inputs.json").read_text())):
        fields["members"] = tuple(fields["members"])
        fields |= load_file(folder / _FILE.format(number))
        found.append(InputStatistics(**fields))
    return found


def save_report(report: Report, path: Path) -> None:
    """Write a report as JSON, which has no infinities: the SNR of an exact layer is stored as text."""
    atomic_write_json(path, _finite(asdict(report)))


def load_report(path: Path) -> Report:
    """Read what `save_report` wrote."""
    fields = json.loads(path.read_text())
    rows: list[dict[str, Any]] = fields.pop("layers")
    layers: list[dict[str, Any]] = [
        {key: float(value) if value in ("inf", "-inf") else value for key, value in row.items()}
        for row in rows
    ]
    return Report(layers=tuple(LayerReport(**layer) for layer in layers), **fields)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value
