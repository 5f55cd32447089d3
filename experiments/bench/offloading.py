"""A memory budget that the 16-bit model does not fit: its weights wait in host memory and come for every forward.

The budget is enforced: PyTorch's allocator may take no more of the GPU. `resident` is a model that stays on it,
`captured` one whose calls replay a CUDA graph (`dirotq.capture`), too; `sequential`, accelerate's hooks, which fetch
each module when it is called (diffusers' sequential CPU offload); `stream`, diffusers' group offloading by blocks,
which fetches the next block from pinned memory meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from dirotq.graphs import capture
from dirotq.settings import Settings
from experiments.bench.architectures import Architecture
from experiments.bench.building import Precision, Source, collect_garbage, model_of, stored_bytes
from experiments.bench.record import Recorder, Row
from experiments.bench.timing import Timed, in_turn

WHAT = (
    "one forward of the transformer, random weights, its memory on the GPU limited to the budget; offloaded weights "
    "are in host memory and cross to the GPU in every forward; milliseconds of single forwards"
)
MODES = ("resident", "captured", "sequential", "stream")
_ON_GPU = MODES[:2]


@dataclass(frozen=True)
class OffloadBench(Settings):
    """architecture, config, text: of `Architecture`. rows: "PRECISION MODE", a mode of MODES.

    budget_bytes: of the GPU; null for all of it. unlimited: rows that have all of it, for comparison.
    """

    LISTS: ClassVar[tuple[str, ...]] = ("rows", "unlimited")

    architecture: str
    config: dict[str, Any]
    text: int
    rows: tuple[str, ...]
    unlimited: tuple[str, ...] = ()
    budget_bytes: int | None = 24_000_000_000
    batch: int = 1
    size: int = 1024
    repetitions: int = 5

    def __post_init__(self) -> None:
        self._at_least(1, "batch", "size", "repetitions", "budget_bytes")
        for row in (*self.rows, *self.unlimited):
            precision, _, mode = row.partition(" ")
            Precision.of(precision)
            if mode not in MODES:
                raise ValueError(f"rows={row}, allowed behind the precision are {', '.join(MODES)}")
        Architecture(self.architecture, self.config, self.text)

    def run(self, recorder: Recorder, device: torch.device, seed: int) -> None:
        """Measure every row that is wanted."""
        for row in self.unlimited:
            recorder.measure(f"{row} unlimited", partial(self._row, row, device, seed, None))
            collect_garbage(device)
        for row in self.rows:
            recorder.measure(row, partial(self._row, row, device, seed, self.budget_bytes))
            collect_garbage(device)

    @torch.no_grad()
    def _row(self, row: str, device: torch.device, seed: int, budget: int | None) -> Row:
        precision, _, mode = row.partition(" ")
        source = Source(device, seed)
        collect_garbage(device)
        architecture = Architecture(self.architecture, self.config, self.text)
        facts: Row = {"precision": precision, "mode": mode, "budget_bytes": budget}
        # What will be offloaded may be larger than the budget while it is made.
        with limited(device, budget if mode in _ON_GPU else None):
            model, _ = model_of(architecture, Precision.of(precision), source)
        facts["weight_bytes"] = stored_bytes(model)
        if mode not in _ON_GPU:
            model.to("cpu")
            collect_garbage(device)
        call = architecture.batch(self.batch, self.size, device, torch.bfloat16)
        with limited(device, budget):
            offload(model, mode, device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            times = in_turn({"forward": Timed(lambda: model(**call))}, self.repetitions, device)
        if device.type == "cuda":
            facts["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        return {**facts, **times["forward"]}


def offload(model: nn.Module, mode: str, device: torch.device) -> None:
    """Make a model run on `device` in one of MODES; it is there or, to be offloaded, in host memory."""
    if mode == "captured":
        capture(model)
    elif mode == "sequential":
        from accelerate import cpu_offload

        cpu_offload(model, device)
    elif mode == "stream":
        from diffusers.hooks import apply_group_offloading

        apply_group_offloading(
            model,
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=device.type == "cuda",
        )


@contextmanager
def limited(device: torch.device, budget: int | None) -> Iterator[None]:
    """Let PyTorch take at most `budget` bytes of a GPU meanwhile."""
    if device.type != "cuda" or budget is None:
        yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)
