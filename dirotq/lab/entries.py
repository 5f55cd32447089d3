"""What stages keep in their cache entries, as files: statistics of inputs, and the report of a quantization."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from dirotq.atomic import atomic_write_json
from dirotq.calibrate import InputStatistics
from dirotq.quantize import LayerReport, Report

_TENSORS = ("moment", "absmax", "sample")


def save_statistics(statistics: Sequence[InputStatistics], folder: Path) -> None:
    """Write what `load_statistics` reads: `inputs.json` and `statistics.safetensors`."""
    tensors, entries = {}, []
    for index, entry in enumerate(statistics):
        entries.append(
            {
                "members": entry.members,
                "width": entry.width,
                "rows": entry.rows,
                "lowest": entry.lowest,
            }
        )
        for name in _TENSORS:
            tensors[f"{index:05d}/{name}"] = getattr(entry, name)
    save_file(tensors, folder / "statistics.safetensors")
    atomic_write_json(folder / "inputs.json", entries)


def load_statistics(folder: Path) -> list[InputStatistics]:
    """The statistics in the order in which they were saved."""
    tensors = load_file(folder / "statistics.safetensors")
    found = []
    for index, entry in enumerate(json.loads((folder / "inputs.json").read_text())):
        moment, absmax, sample = (tensors[f"{index:05d}/{name}"] for name in _TENSORS)
        members, width, rows = tuple(entry["members"]), entry["width"], entry["rows"]
        found.append(
            InputStatistics(members, width, rows, moment, absmax, sample, lowest=entry["lowest"])
        )
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
