"""Statistics of layer inputs by whole forwards, in as few passes over the batches as memory allows.

The moments of all inputs can be larger than the model: those of FLUX.1-dev are 105 GB. A pass sums up as many, in
forward order, as fit beside the model; its inputs are quantized, and their moments freed, before the next one. The
model itself stays as it was until the end, so every pass sees the same forward.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from dirotq import calibrate
from dirotq.calibrate import Batch, InputStatistics, Members

Batches = Iterable[Batch] | Callable[[], Iterable[Batch]]

_MOMENT_BYTES = 8  # float64
# Of the widest input [K, K], float64: what the subspace and GPTQ hold at once, and in a forward the activations.
_WORKSPACE = 12
_SHARE = 0.9  # of what is then left; the rest is for memory in pieces
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class Calls:
    """Calibration batches, and whether they can be read more than once."""

    def __init__(self, batches: Batches) -> None:
        source = batches() if callable(batches) else batches
        iterator = iter(source)
        first = next(iterator, None)
        if first is None:
            raise ValueError(calibrate.NO_BATCHES)
        self.first: Batch = first
        self._batches = batches
        self._repeatable = callable(batches) or iterator is not source
        self._rest = iter(()) if self._repeatable else itertools.chain([first], iterator)
        self._count = 0

    def once_more(self, why: str) -> None:
        """Raise ValueError if a reading that is followed by another one is not possible, saying what asks for it."""
        if not self._repeatable:
            raise ValueError(
                f"calibration: batches is an iterator, which can be read only once, but {why};"
                " allowed are a list, or a function that returns an iterator each time"
            )

    def read(self) -> Iterator[Batch]:
        """All batches. Raises ValueError, at the end, when they are not as many as the last time."""
        if self._repeatable:
            batches = self._batches() if callable(self._batches) else self._batches
        else:
            batches, self._rest = self._rest, iter(())
        count = 0
        for batch in batches:
            count += 1
            yield batch
        if count != (self._count or count) or not count:
            raise ValueError(f"calibration: {count} batches, {self._count} when last read")
        self._count = count


class Passes:
    """Statistics by forwards of the whole model, on the device where it is.

    memory: bytes that the moments of one pass may take; None for what is free when it begins.
    """

    def __init__(self, model: nn.Module, calls: Calls, memory: int | None) -> None:
        self._model = model
        self._calls = calls
        self._memory = memory

    def groups(self, names: Iterable[str], *, strict: bool) -> list[Members]:
        """The distinct inputs of the linears `names`, in forward order (`calibrate.trace_inputs`)."""
        return calibrate.trace_inputs(self._model, names, self._calls.first, strict=strict)

    def statistics(self, groups: Sequence[Members]) -> Generator[InputStatistics, None, None]:
        """Statistics of `groups`, which are in forward order; a caller is to drop each before it takes the next.

        Raises ValueError when batches that cannot be read again are needed again.
        """
        waiting = list(groups)
        device = next(self._model.parameters()).device
        while waiting:
            number = fitting(self._model, waiting, device, self._memory)
            part, waiting = waiting[:number], waiting[number:]
            if waiting:
                self._calls.once_more(
                    f"the moments of {number + len(waiting)} inputs need more than one pass"
                )
            with calibrate.summing(self._model, part) as sums:
                for batch in self._calls.read():
                    calibrate.call(self._model, batch)
            yield from taken(sums, part)


def taken(
    sums: dict[Members, calibrate.Accumulator], groups: Iterable[Members]
) -> Iterator[InputStatistics]:
    """Statistics of `groups`, each out of `sums` when it is asked for."""
    for members in groups:
        if members not in sums:
            raise ValueError(f"layer {members[0]} is not reached by the calibration batches")
        yield sums.pop(members).finish(members)


def fitting(
    model: nn.Module, groups: Sequence[Members], device: torch.device, memory: int | None
) -> int:
    """How many of `groups`, from the first on, have moments that fit `memory` bytes together; at least one.

    memory: None for what is free on `device`, less what quantizing the widest of them takes.
    """
    sizes = [_MOMENT_BYTES * _width(model, members) ** 2 for members in groups]
    if memory is None:
        memory = int(_SHARE * (free_bytes(device) - _WORKSPACE * max(sizes, default=0)))
    return max(1, sum(total <= memory for total in itertools.accumulate(sizes)))


def _width(model: nn.Module, members: Members) -> int:
    return int(model.get_submodule(members[0]).in_features)  # type: ignore[arg-type]


def free_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device, what PyTorch keeps for reuse included."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    free = [_available()]
    for limit, usage in _CGROUPS:
        if Path(limit).is_file() and (text := Path(limit).read_text().strip()) != "max":
            free.append(int(text) - int(Path(usage).read_text()))
    return min(free)


def _available() -> int:
    """Memory of this machine that programs could have without swapping."""
    path = Path("/proc/meminfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
