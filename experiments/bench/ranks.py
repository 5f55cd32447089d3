"""What protected coordinates cost: a layer and a block of the model against their number."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dirotq.settings import Settings
from experiments.bench import ceilings
from experiments.bench.architectures import Architecture, Batch
from experiments.bench.building import Precision, Source, collect_garbage, model_of, stored_bytes
from experiments.bench.layers import layer_row
from experiments.bench.record import Recorder, Row
from experiments.bench.timing import Timed, graphed, in_turn

WHAT = (
    "time and memory against the rank, random weights; a row `layer MxKxN` as in the bench of layers, and `block`, one "
    "block of the model: milliseconds a call, ranks measured in turn; peak_bytes: most memory during a call beside the "
    "inputs and the other blocks, its own weights included"
)


@dataclass(frozen=True)
class RankBench(Settings):
    """architecture, config, text: of `Architecture`, few blocks will do. block: name of the one that is measured.

    bits: a file of conf/bits. ranks: of its transform. layer: M, K, N. ceiling, copy_bytes: as for layers.
    """

    LISTS: ClassVar[tuple[str, ...]] = ()

    architecture: str
    config: dict[str, Any]
    text: int
    block: str
    layer: tuple[int, ...]
    bits: str = "w4a4_fp4h"
    ranks: tuple[int, ...] = (32, 64, 128, 256)
    size: int = 1024
    repetitions: int = 50
    ceiling: tuple[tuple[int, ...], ...] = ceilings.SHAPES
    copy_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        self._at_least(1, "size", "repetitions", "copy_bytes")
        if len(self.layer) != 3:
            raise ValueError(f"layer={list(self.layer)}, allowed are three integers, M, K and N")
        Architecture(self.architecture, self.config, self.text)

    @property
    def _names(self) -> list[str]:
        return ["bf16", self.bits, *(f"{self.bits}:{rank}" for rank in self.ranks)]

    def run(self, recorder: Recorder, device: torch.device, seed: int) -> None:
        """Measure both rows."""
        m, k, n = self.layer

        def layer() -> Row:
            limits = ceilings.measure(device, self.ceiling, self.copy_bytes)  # type: ignore[arg-type]
            recorder.note("ceilings", limits)
            return layer_row(device, seed, (m, k, n), self._names, self.repetitions, limits)

        recorder.measure(f"layer {m}x{k}x{n}", layer)
        collect_garbage(device)
        recorder.measure("block", partial(self._block_row, Source(device, seed)))

    @torch.no_grad()
    def _block_row(self, source: Source) -> Row:
        device = source.device
        architecture = Architecture(self.architecture, self.config, self.text)
        call = architecture.batch(1, self.size, device, torch.bfloat16)
        rows: list[Row] = []
        blocks: dict[str, tuple[nn.Module, Batch]] = {}
        for name in self._names:
            model, by = model_of(architecture, Precision.of(name), source)
            blocks[name] = captured(model, self.block, call)
            del model
            block, inputs = blocks[name]
            rank = Precision.of(name).rank
            rows.append({
                "layer": name, "rank": int(rank), "linears": dict(Counter(by.values())),
                "weight_bytes": stored_bytes(block), **_peak(block, inputs, device),
            })  # fmt: skip
        runs = {name: Timed(partial(block, **inputs)) for name, (block, inputs) in blocks.items()}
        ways = {"eager": runs}
        if device.type == "cuda":
            ways["graph"] = {name: graphed([timed.run], device) for name, timed in runs.items()}
        for way, timed in ways.items():
            times = in_turn(timed, self.repetitions, device)
            for row in rows:
                row[way] = times[str(row["layer"])]
        return {
            "block": self.block,
            "tokens": architecture.tokens(self.size) + self.text,
            "layers": rows,
        }


def captured(model: nn.Module, name: str, call: Batch) -> tuple[nn.Module, Batch]:
    """The block `name` of a model and the keyword arguments that a forward hands to it."""
    block = model.get_submodule(name)
    found: list[Batch] = []
    handle = block.register_forward_pre_hook(
        lambda _, __, kwargs: found.append(dict(kwargs)), with_kwargs=True
    )
    model(**call)
    handle.remove()
    return block, found[0]


def _peak(block: nn.Module, inputs: Batch, device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    before = collect_garbage(device)
    torch.cuda.reset_peak_memory_stats(device)
    output: tuple[Tensor, ...] = block(**inputs)
    del output
    used = torch.cuda.max_memory_allocated(device) - before
    return {"peak_bytes": used + stored_bytes(block)}
