"""Calls of a transformer as files: what calibration replays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_PLAIN = "plain"


def save_call(kwargs: dict[str, Any], path: Path) -> None:
    """Write the keyword arguments of one call: tensors, and JSON values, in nested dictionaries.

    Raises TypeError, by name, for anything else.
    """
    tensors: dict[str, Tensor] = {}
    plain: dict[str, Any] = {}
    _flatten(kwargs, "", tensors, plain)
    save_file(
        {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, value in tensors.items()
        },
        path,
        {_PLAIN: json.dumps(plain)},
    )


def load_call(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read what `save_call` wrote, its tensors on `device`."""
    kwargs: dict[str, Any] = {}
    with safe_open(path, framework="pt", device=str(device)) as file:
        for key, value in json.loads(file.metadata()[_PLAIN]).items():
            _put(kwargs, key, value)
        for key in file.keys():  # noqa: SIM118 - not a dictionary
            _put(kwargs, key, file.get_tensor(key))
    return kwargs


def _flatten(
    values: dict[str, Any], prefix: str, tensors: dict[str, Tensor], plain: dict[str, Any]
) -> None:
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, dict) and value:
            _flatten(value, name + "/", tensors, plain)
        elif value is None or isinstance(value, bool | int | float | str | dict):
            plain[name] = value
        else:
            raise TypeError(
                f"argument {name} is a {type(value).__name__}, which a calibration record cannot hold"
            )


def _put(kwargs: dict[str, Any], name: str, value: Any) -> None:
    *folders, leaf = name.split("/")
    for folder in folders:
        kwargs = kwargs.setdefault(folder, {})
    kwargs[leaf] = value


def spread(total: int, count: int) -> set[int]:
    """`count` of the numbers 0 .. total - 1, evenly spread over all batches and steps."""
    count = min(count, total)
    return {(2 * i + 1) * total // (2 * count) for i in range(count)}
