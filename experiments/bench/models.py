"""A whole transformer with random weights: time and memory of a forward, by what computes its linears.

Models are built one at a time, and the one before is gone. How a model is run: `eager`; `compiled`, its repeated blocks
by torch.compile in one graph each; and either of them replayed as a CUDA graph (`eager+graph`, `compiled+graph`) by
`dirotq.capture`, whose copies of arguments and results are in the time. The compiler's own CUDA graphs (its mode
`reduce-overhead`) are no way: blocks share their code, so each would overwrite the result of the one before.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dirotq.graphs import capture, release
from dirotq.models import auto
from dirotq.settings import Settings
from experiments.bench.architectures import Architecture, Batch
from experiments.bench.building import Precision, Source, collect_garbage, model_of, stored_bytes
from experiments.bench.kinds import breakdown
from experiments.bench.record import Recorder, Row
from experiments.bench.timing import Timed, in_turn

WHAT = (
    "one forward of the transformer, random weights and inputs of the published dimensions; models built one at a "
    "time; peak_bytes: most memory allocated during a forward, model included; weight_bytes: all parameters and "
    "buffers; kinds: milliseconds of kernels in one profiled forward"
)
RUNS = ("eager", "compiled", "compiled+graph", "eager+graph")


@dataclass(frozen=True)
class ModelBench(Settings):
    """architecture, config, text: of `Architecture`. precisions: names (`experiments.bench.building`). runs: of RUNS.

    batch: rows of the input. size: pixels a side. tuned: inductor tunes each of its kernels by coordinate descent, as
    torchao recommends; compiling takes minutes then.
    """

    LISTS: ClassVar[tuple[str, ...]] = ("precisions", "runs", "batch", "size")

    architecture: str
    config: dict[str, Any]
    text: int
    precisions: tuple[str, ...]
    runs: tuple[str, ...] = RUNS
    batch: tuple[int, ...] = (1,)
    size: tuple[int, ...] = (1024,)
    tuned: bool = False
    repetitions: int = 20

    def __post_init__(self) -> None:
        self._at_least(1, "repetitions")
        for run in self.runs:
            if run not in RUNS:
                raise ValueError(f"runs={run}, allowed are {', '.join(RUNS)}")
        for name in self.precisions:
            Precision.of(name)
        Architecture(self.architecture, self.config, self.text)

    def run(self, recorder: Recorder, device: torch.device, seed: int) -> None:
        """Measure every row that is wanted."""
        architecture = Architecture(self.architecture, self.config, self.text)
        for name in self.precisions:
            rows = {
                f"{name} {run} {size} b{batch}": (run, size, batch)
                for size in self.size
                for batch in self.batch
                for run in self.runs
            }
            wanted = {row: how for row, how in rows.items() if recorder.wanted(row)}
            if wanted:
                self._of_precision(name, wanted, architecture, recorder, Source(device, seed))

    def _of_precision(
        self,
        name: str,
        rows: dict[str, tuple[str, int, int]],
        architecture: Architecture,
        recorder: Recorder,
        source: Source,
    ) -> None:
        loaded: list[Loaded] = []

        def row(run: str, size: int, batch: int) -> Row:
            if not loaded:
                loaded.append(Loaded.of(architecture, name, source))
            call = architecture.batch(batch, size, source.device, torch.bfloat16)
            with torch._inductor.config.patch(coordinate_descent_tuning=self.tuned):
                found = loaded[0].measured(call, run, self.repetitions, source.device)
            what = {"precision": name, "run": run, "size": size, "batch": batch}
            return {**what, **loaded[0].facts, **found}

        for title, how in rows.items():
            recorder.measure(title, partial(row, *how))


class Loaded:
    """A model on its device. facts: what is stored, how many linears are computed by what, seconds to build it."""

    def __init__(self, model: nn.Module, facts: Row) -> None:
        self.model = model
        self.facts = facts
        lists = [model.get_submodule(name) for name in auto.repeated(model)]
        self._blocks = [block for its in lists for block in its.children()]
        self._compiled: list[Any] = []
        self._compiled_for: list[torch.Size] = []

    @classmethod
    def of(cls, architecture: Architecture, precision: str, source: Source) -> Loaded:
        """Build a model."""
        start = time.monotonic()
        model, by = model_of(architecture, Precision.of(precision), source)
        collect_garbage(source.device)
        facts = {
            "weight_bytes": stored_bytes(model),
            "linears": dict(Counter(by.values())),
            "build_seconds": round(time.monotonic() - start, 2),
        }
        return cls(model, facts)

    @torch.no_grad()
    def measured(self, call: Batch, run: str, repetitions: int, device: torch.device) -> Row:
        """Time, memory and, on a GPU, kernels by kind of one way to run the model."""
        collect_garbage(device)
        start = time.monotonic()
        self._compile(call if run.startswith("compiled") else None)
        output: Tensor = self.model(**call)[0]
        finite = bool(torch.isfinite(output).all())
        found: Row = {"first_seconds": round(time.monotonic() - start, 2), "finite": finite}
        del output
        timed = Timed(lambda: self.model(**call))
        with captured(self.model) if run.endswith("+graph") else nullcontext():
            collect_garbage(device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                timed.run()
                torch.cuda.synchronize(device)
                found["peak_bytes"] = torch.cuda.max_memory_allocated(device)
            found |= in_turn({"forward": timed}, repetitions, device)["forward"]
        if device.type == "cuda" and not run.endswith("+graph"):
            # CUPTI's times of kernels in graphs are not to be relied on (pytorch/kineto issue 1165).
            found["kinds"] = breakdown(timed.run)
        return found

    def _compile(self, call: Batch | None) -> None:
        """Let the repeated blocks run compiled, each in one graph, for the shapes of `call`; without it as they are."""
        if call is not None:
            shapes = [value.shape for value in call.values() if isinstance(value, Tensor)]
            if shapes != self._compiled_for:
                # Another size would be compiled for any size, which is slower.
                torch.compiler.reset()
                for block in self._blocks:
                    block.compile(fullgraph=True)
                self._compiled = [block._compiled_call_impl for block in self._blocks]
                self._compiled_for = shapes
        for index, block in enumerate(self._blocks):
            block._compiled_call_impl = None if call is None else self._compiled[index]


@contextmanager
def captured(model: nn.Module) -> Iterator[None]:
    """Calls of the model replay a CUDA graph meanwhile."""
    capture(model)
    try:
        yield
    finally:
        release(model)
