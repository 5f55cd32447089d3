"""Outputs of a model's blocks for every calibration record, between two blocks: in memory, or in files.

What one record has is a list with an entry for each block that ran: the tensors that it returned. Only those of the
last one are real; the others are on the meta device, which has shapes and dtypes and no numbers.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dirotq.atomic import atomic_write_json

Outputs = list[list[Tensor]]
_MARK = "complete.json"
_WRITERS = 2
_MOST_PENDING = 4  # records that wait in memory to be written
_log = logging.getLogger(__name__)


class Store(Protocol):
    """Where outputs wait. `block` is the number of the last block that ran."""

    def newest(self, before: int) -> int:
        """The last block below `before` whose outputs of all records are there; -1 where there is none."""

    def load(self, block: int, record: int) -> Outputs:
        """Outputs of a record up to `block`, which is complete, on the CPU."""

    def save(self, block: int, record: int, outputs: Outputs) -> None:
        """Keep a record's outputs up to `block`."""

    def complete(self, block: int, records: int) -> None:
        """Say that those of all records are kept."""

    def keep(self, block: int) -> None:
        """Drop what all other blocks returned."""


class Memory:
    """Outputs on the host: a record's take the place of those of the block before, which it no longer needs."""

    def __init__(self) -> None:
        self._outputs: dict[int, Outputs] = {}

    def newest(self, before: int) -> int:
        return -1

    def load(self, block: int, record: int) -> Outputs:
        return self._outputs[record]

    def save(self, block: int, record: int, outputs: Outputs) -> None:
        self._outputs[record] = [*outputs[:-1], [_on_host(tensor) for tensor in outputs[-1]]]

    def complete(self, block: int, records: int) -> None:
        pass

    def keep(self, block: int) -> None:
        pass


class Files:
    """Outputs in `folder/<block>/<record>.safetensors`, so that a run can go on from them.

    A block's folder counts when its mark, which is written last, is there and each file has the sum it was written
    with: files are not flushed to the disk one by one, and what a machine that goes down loses has another sum.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # The next record is computed while the ones before it are written.
        self._writers = ThreadPoolExecutor(_WRITERS)
        self._pending: deque[Future[None]] = deque()

    def newest(self, before: int) -> int:
        blocks = sorted((block for block in self._blocks() if block < before), reverse=True)
        return next((block for block in blocks if self._is_whole(block)), -1)

    def load(self, block: int, record: int) -> Outputs:
        return _read(self._path(block, record))[0]

    def save(self, block: int, record: int, outputs: Outputs) -> None:
        path = self._path(block, record)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {str(index): _on_host(tensor) for index, tensor in enumerate(outputs[-1])}
        passed = [
            [(list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for tensor in earlier]
            for earlier in outputs[:-1]
        ]
        self._pending.append(self._writers.submit(_write, path, tensors, json.dumps(passed)))
        self._wait(_MOST_PENDING)

    def complete(self, block: int, records: int) -> None:
        self._wait(0)
        atomic_write_json(self._mark(block), {"records": records})

    def keep(self, block: int) -> None:
        self._wait(0)
        for other in self._blocks():
            if other != block:
                shutil.rmtree(self._mark(other).parent)

    def _wait(self, most: int) -> None:
        """Until no more than so many records are still to be written. Raises OSError when one could not be."""
        while len(self._pending) > most:
            self._pending.popleft().result()

    def _blocks(self) -> list[int]:
        return [int(path.name) for path in self._folder.glob("[0-9]*")]

    def _is_whole(self, block: int) -> bool:
        mark = self._mark(block)
        if not mark.is_file():
            return False
        try:
            for record in range(json.loads(mark.read_text())["records"]):
                outputs, total = _read(self._path(block, record))
                if _sum(outputs[-1]) != total:
                    raise ValueError(f"record {record} has another sum")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            _log.warning("%s is damaged (%s) and made anew", mark.parent, error)
            return False
        return True

    def _mark(self, block: int) -> Path:
        return self._folder / f"{block:04d}" / _MARK

    def _path(self, block: int, record: int) -> Path:
        return self._folder / f"{block:04d}" / f"{record:06d}.safetensors"


def _write(path: Path, tensors: dict[str, Tensor], passed: str) -> None:
    save_file(tensors, path, {"passed": passed, "sum": _sum(tensors.values())})


def _read(path: Path) -> tuple[Outputs, str]:
    """Outputs, in the file's own memory, and the sum they were written with."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        last = [file.get_tensor(str(index)) for index in range(len(file.keys()))]
    passed = [
        [torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for shape, dtype in block]
        for block in json.loads(header["passed"])
    ]
    return [*passed, last], header["sum"]


def _on_host(tensor: Tensor) -> Tensor:
    """Memory of its own, row-major."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _sum(tensors: Iterable[Tensor]) -> str:
    """Of all bytes, as numbers of eight bytes where they are so many: integers add up to the same in any order."""
    totals = []
    for tensor in tensors:
        flat = tensor.flatten()
        # In a file's memory numbers may lie between the places of those of eight bytes.
        flat = (flat.clone() if flat.data_ptr() % 8 else flat).view(torch.uint8)
        wide = flat.view(torch.int64) if flat.numel() % 8 == 0 else flat
        totals.append(int(wide.sum(dtype=torch.int64)))
    return " ".join(map(str, totals))
