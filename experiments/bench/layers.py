"""One linear layer of a model: 4-bit weights by kernels beside cuBLAS in bfloat16 and FP8 with a scale a row.

For every shape all alternatives are measured in turn, in one process; each has as many copies of its weights and
inputs as keep one call's tensors from being in the L2 cache when it is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dirotq.settings import Settings
from experiments.bench import ceilings
from experiments.bench.alternatives import Alternative, alternative
from experiments.bench.building import Precision, Source, collect_garbage
from experiments.bench.record import Recorder, Row, said
from experiments.bench.timing import Call, Sample, Timed, eager, graphed, in_turn

WHAT = (
    "one linear layer, complete (transform, quantization, unpacking, product, bias), random weights and inputs; "
    "milliseconds a call, alternatives measured in turn; speed: against bf16 of the same row and run; error: relative, "
    "of the output against a float64 product of the decoded operands; bound: bytes of the passes beside the product at "
    "the speed of a copy, and the product at the best rate measured or its bytes"
)
_MOST_COPIES = 32
_ERROR_ROWS = 512


@dataclass(frozen=True)
class Case(Settings):
    """tokens: numbers of rows M. shapes: [K, N]. layers: names of precisions (`experiments.bench.building`)."""

    tokens: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        for shape in self.shapes:
            if len(shape) != 2:
                raise ValueError(f"shapes={list(shape)}, allowed are pairs of integers, K and N")
        for name in self.layers:
            Precision.of(name)


@dataclass(frozen=True)
class LayerBench(Settings):
    """cases: what is measured. repetitions: of every alternative. ceiling: shapes [M, K, N] for the best rates, or the
    module's own; copy_bytes: of the copy that gives the bandwidth.
    """

    LISTS: ClassVar[tuple[str, ...]] = ()

    cases: tuple[dict[str, Any], ...]
    repetitions: int = 50
    ceiling: tuple[tuple[int, ...], ...] = ceilings.SHAPES
    copy_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        self._at_least(1, "repetitions", "copy_bytes")
        for index, case in enumerate(self.cases):
            Case.build(case, f"cases.{index}")

    def run(self, recorder: Recorder, device: torch.device, seed: int) -> None:
        """Measure every row that is wanted."""
        limits = ceilings.measure(device, self.ceiling, self.copy_bytes)  # type: ignore[arg-type]
        recorder.note("ceilings", limits)
        for values in self.cases:
            case = Case.build(values, "case")
            for k, n in case.shapes:
                for m in case.tokens:
                    measured = partial(
                        layer_row, device, seed, (m, k, n), case.layers, self.repetitions, limits
                    )
                    recorder.measure(f"{m}x{k}x{n}", measured)
                    collect_garbage(device)


def layer_row(
    device: torch.device,
    seed: int,
    shape: tuple[int, int, int],
    names: Sequence[str],
    repetitions: int,
    limits: dict[str, Any],
) -> Row:
    """All alternatives at one shape (M, K, N)."""
    if device.type == "cuda":
        torch.compiler.reset()  # there is a limit to how many shapes one function is compiled for
    m, k, n = shape
    source = Source(device, seed)
    copies = _copies(2 * m * k + n * k // 2, device)
    inputs = [source.normal(m, k) for _ in range(copies)]
    made: dict[str, list[Alternative]] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            made[name] = [alternative(source, Precision.of(name), k, n) for _ in range(copies)]
            with torch.no_grad():
                made[name][0].run(inputs[0])
        except Exception as error:  # the others are measured all the same
            made.pop(name, None)
            failed[name] = said(error)
    with torch.no_grad():
        times = _times(made, inputs, repetitions, device)
        rows = [_described(name, layers[0], inputs[0], limits) for name, layers in made.items()]
    base = times.get("bf16", {})
    for row in rows:
        for way, sample in times[row["layer"]].items():
            row[way] = sample
            if way in base:
                row[f"speed_{way}"] = round(base[way]["median_ms"] / sample["median_ms"], 4)
    parts = {name: _parts(layers, inputs, repetitions, device) for name, layers in made.items()}
    return {
        "m": m, "k": k, "n": n, "copies": copies,
        "layers": rows,
        "parts": {name: part for name, part in parts.items() if part},
        "failed_layers": failed,
    }  # fmt: skip


def _copies(size: int, device: torch.device) -> int:
    """Copies of `size` bytes each that fill the L2 cache twice over."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return int(min(_MOST_COPIES, max(2, -(-2 * cache // size))))


def _calls(layers: Sequence[Alternative], inputs: Sequence[Tensor]) -> list[Call]:
    return [partial(layer.run, x) for layer, x in zip(layers, inputs, strict=True)]


def _times(
    made: dict[str, list[Alternative]], inputs: list[Tensor], repetitions: int, device: torch.device
) -> dict[str, dict[str, Sample]]:
    """Milliseconds of each alternative, launched by Python and, on a GPU, in a graph."""
    calls = {name: _calls(layers, inputs) for name, layers in made.items()}
    ways = {"eager": {name: eager(its) for name, its in calls.items()}}
    if device.type == "cuda":
        ways["graph"] = {name: graphed(its, device) for name, its in calls.items()}
    found: dict[str, dict[str, Sample]] = {name: {} for name in made}
    for way, runs in ways.items():
        for name, sample in in_turn(runs, repetitions, device).items():
            found[name][way] = sample
    return found


@torch.no_grad()
def _parts(
    layers: list[Alternative], inputs: list[Tensor], repetitions: int, device: torch.device
) -> dict[str, Sample]:
    """Milliseconds of the passes of an alternative, each alone, in graphs on a GPU."""
    of_copy = [layer.parts(x) for layer, x in zip(layers, inputs, strict=True)]
    runs: dict[str, Timed] = {}
    for part in of_copy[0]:
        calls = [parts[part] for parts in of_copy]
        runs[part] = graphed(calls, device) if device.type == "cuda" else eager(calls)
    return in_turn(runs, repetitions, device)


def _described(name: str, layer: Alternative, x: Tensor, limits: dict[str, Any]) -> Row:
    rows = torch.arange(min(_ERROR_ROWS, x.shape[0]), device=x.device)
    rows = rows * x.shape[0] // len(rows)
    found = layer.run(x)[rows].double()
    wanted = layer.exact(x[rows])
    return {
        "layer": name,
        "by": layer.by,
        "rank": layer.rank,
        "weight_bytes": layer.weight_bytes,
        "error": float((found - wanted).norm() / wanted.norm()),
        **layer.work(x).bound(limits),
    }
