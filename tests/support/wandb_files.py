"""Read the transaction log of a W&B run back: `run-<id>.wandb`, a LevelDB log of protobuf records."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

_BLOCK, _HEADER = 32768, 7
_FULL, _LAST = 1, 4


def run_folders(folder: Path, name: str = "*") -> list[Path]:
    """W&B's folders of the runs with this id, oldest first."""
    return sorted((folder / "wandb").glob(f"*run-*-{name}"))


def read(folder: Path) -> dict[str, Any]:
    """What the log of one run folder says; JSON values are parsed.

    Keys: "run" (the record), "config", "summary", "history" (a list of rows), "files", "artifacts" (records) and "exit"
    (None for a run that never ended).
    """
    found: dict[str, Any] = {
        "config": {}, "summary": {}, "history": [], "files": [], "artifacts": [], "exit": None
    }  # fmt: skip
    (path,) = folder.glob("*.wandb")
    for record in _records(path):
        match record.WhichOneof("record_type"):
            case "run":
                found["run"] = record.run
                found["config"] |= _values(record.run.config.update)
            case "config":
                found["config"] |= _values(record.config.update)
            case "summary":
                found["summary"] |= _values(record.summary.update)
            case "history":
                found["history"].append(_values(record.history.item))
            case "files":
                found["files"] += [item.path for item in record.files.files]
            case "artifact":
                found["artifacts"].append(record.artifact)
            case "exit":
                found["exit"] = record.exit.exit_code
    return found


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(path: Path) -> Iterator[Record]:
    data, position, parts = path.read_bytes(), _HEADER, b""
    assert data[:4] == b":W&B"
    while position + _HEADER <= len(data):
        if _BLOCK - position % _BLOCK < _HEADER:  # the rest of a block is padding
            position += _BLOCK - position % _BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        position += _HEADER
        payload = data[position : position + length]
        assert checksum == zlib.crc32(bytes([kind]) + payload), f"{path.name} is damaged"
        position += length
        parts += payload
        if kind in (_FULL, _LAST):
            yield Record.FromString(parts)
            parts = b""
