"""Quantizing a model of published dimensions: what it takes in seconds, by stage, and in memory.

Weights and records are random, but unlike channels: of the modulations of adaptive norms the biases are spread over
orders of magnitude, and of all other linears the columns, so that inputs have outliers and weights a spectrum that
falls, as in trained models. Where it is flat, a truncated SVD takes several times as long. Each input's seconds are
noted as it is finished, so that a run that is cut short says how far it came; with a `workdir` it goes on from there.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

import dirotq
from dirotq.settings import Settings
from experiments.bench.architectures import Architecture, Batch
from experiments.bench.building import Precision, Source, collect_garbage, model_of, stored_bytes
from experiments.bench.record import Recorder, Row

WHAT = (
    "dirotq.quantize on a transformer of random weights and random records, and saving it; seconds; peak_bytes: most "
    "memory allocated on the GPU, the model included where it is there; host_bytes: largest resident set of the process"
)
_SPREAD = 1.5  # of the logarithms of the modulations
_COLUMN_SPREAD = 1.0  # of those of columns
_NOTED_EVERY = 15.0  # seconds


class BudgetSpentError(Exception):
    """No further input is to be begun."""


@dataclass(frozen=True)
class QuantizeBench(Settings):
    """architecture, config, text: of `Architecture`. recipe: overrides of `dirotq.recipe`, by key.

    records: calls of the model at `size` pixels. low_memory: the model stays in host memory and its blocks go to the
    GPU one after the other (`stream=` of `dirotq.quantize`). memory: bytes for second moments at once; null for what is
    free. workdir: of `dirotq.quantize`, for a run in several parts: earlier_seconds are those of the parts before.
    save: whether the result is also written.
    """

    LISTS: ClassVar[tuple[str, ...]] = ()

    architecture: str
    config: dict[str, Any]
    text: int
    recipe: dict[str, Any]
    records: int = 128
    size: int = 1024
    low_memory: bool = False
    memory: int | None = None
    workdir: str | None = None
    save: bool = True

    def __post_init__(self) -> None:
        self._at_least(1, "records", "size", "memory")
        dirotq.recipe(*self.overrides)
        Architecture(self.architecture, self.config, self.text)

    @property
    def overrides(self) -> list[str]:
        """The recipe as `dirotq` takes it on the command line."""
        return [f"{key}={value}" for key, value in self.recipe.items()]

    def run(self, recorder: Recorder, device: torch.device, seed: int) -> None:
        """Build, quantize and save."""
        name = " ".join(self.overrides) + (" low_memory" if self.low_memory else "")
        recorder.measure(name, lambda: self._row(name, recorder, device, seed))

    def _row(self, name: str, recorder: Recorder, device: torch.device, seed: int) -> Row:
        source = Source(device, seed)
        architecture = Architecture(self.architecture, self.config, self.text)
        start = time.monotonic()
        model, _ = model_of(architecture, Precision.of("bf16"), source)
        unlike_channels(model, source)
        row: Row = {"bytes_before": stored_bytes(model)}
        earlier = recorder.row(name) if self.workdir else None
        if earlier and not earlier.get("finished", True):
            done = [*earlier.get("earlier_seconds", []), earlier["seconds_so_far"]]
            row["earlier_seconds"] = done
        if self.low_memory:
            model.to("cpu")
            collect_garbage(device)
        row["build_seconds"] = round(time.monotonic() - start, 2)
        progress = Progress(name, recorder, row)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = time.monotonic()
        try:
            report = dirotq.quantize(
                model,
                dirotq.recipe(*self.overrides),
                lambda: records(architecture, self.records, self.size, device, seed),
                progress=progress,
                memory=self.memory,
                stream=device if self.low_memory else None,
                workdir=self.workdir,
                calibration=f"random {self.records} {self.size} {seed}",
            )
        except BudgetSpentError:
            return {**row, **progress.so_far(), **_memory(device), "finished": False}
        row |= {
            **progress.so_far(),
            "seconds_quantize": round(time.monotonic() - start, 2),
            "finished": True,
        }
        row |= {
            "stages": {stage: round(value, 2) for stage, value in report.stages.items()},
            "weight_bits": report.weight_bits,
            "activation_bits": report.act_bits,
            "fallbacks": sum(layer.fallback for layer in report.layers),
            "bytes_after": stored_bytes(model),
            **_memory(device),
        }
        return {**row, **(_saved(model) if self.save else {})}


class Progress:
    """Notes when each input is begun, in the document too, and stops when the recorder's budget is spent."""

    def __init__(self, name: str, recorder: Recorder, row: Row) -> None:
        self._name, self._recorder, self._row = name, recorder, row
        self._laps: list[tuple[str, float]] = []
        self._total = 0
        self._start = self._noted = time.monotonic()

    def __call__(self, names: Sequence[str]) -> Iterable[str]:
        self._total = len(names)
        return self._over(names)

    def _over(self, names: Sequence[str]) -> Iterator[str]:
        last = time.monotonic()
        for name in names:
            if self._recorder.spent():
                raise BudgetSpentError
            yield name
            now = time.monotonic()
            self._laps.append((name, round(now - last, 3)))
            last = now
            if now - self._noted > _NOTED_EVERY:
                self._noted = now
                self._recorder.put(
                    {"name": self._name, **self._row, **self.so_far(), "finished": False}
                )

    def so_far(self) -> Row:
        """Inputs that are finished, with their seconds; statistics of several at once count in the first of them."""
        return {
            "inputs": self._total,
            "inputs_finished": len(self._laps),
            "seconds_so_far": round(time.monotonic() - self._start, 2),
            "seconds_by_input": dict(self._laps),
        }


def records(
    architecture: Architecture, count: int, size: int, device: torch.device, seed: int
) -> Iterator[Batch]:
    """Random calls, the same each time they are read."""
    for index in range(count):
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed * 1_000_003 + index)
            batch = architecture.batch(1, size, device, torch.bfloat16)
        yield batch


def unlike_channels(model: nn.Module, source: Source) -> None:
    """Spread biases of adaptive norms' modulations, and columns of other linears, over orders of magnitude."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        if "norm" not in name:
            spread = source.normal(module.in_features, scale=_COLUMN_SPREAD).exp()
            # Outputs are as large as before.
            module.weight.data.mul_(spread / spread.float().square().mean().sqrt())
        elif module.bias is not None and name.endswith("linear"):
            spread = source.normal(module.out_features, scale=_SPREAD).exp()
            module.bias.data.copy_(0.1 * spread * source.normal(module.out_features).sign())


def _saved(model: nn.Module) -> Row:
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        dirotq.save(model, Path(folder) / "checkpoint")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return {"save_seconds": round(time.monotonic() - start, 2), "checkpoint_bytes": size}


def _memory(device: torch.device) -> Row:
    found: Row = {"host_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    if device.type == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return found
