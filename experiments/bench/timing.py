"""Times of alternatives that are measured in turn, so that clocks and temperature are the same for all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from dirotq.graphs import record

Call = Callable[[], object]
Sample = dict[str, float | int]

_WARM_UP = 3


@dataclass(frozen=True)
class Timed:
    """What is timed at once: `run` makes `count` calls, the time of one of which is reported."""

    run: Call
    count: int = 1


def eager(calls: Sequence[Call]) -> Timed:
    """The calls one after the other, launched by Python."""

    def run() -> None:
        for call in calls:
            call()

    return Timed(run, len(calls))


def graphed(calls: Sequence[Call], device: torch.device) -> Timed:
    """The calls one after the other in a CUDA graph, without gaps between kernels; ValueError without a GPU."""
    if device.type != "cuda":
        raise ValueError(f"CUDA graphs on {device}, allowed is a GPU")

    def run() -> None:
        for call in calls:
            call()

    return Timed(record(run, device)[0], len(calls))


def in_turn(
    alternatives: Mapping[str, Timed], repetitions: int, device: torch.device
) -> dict[str, Sample]:
    """Milliseconds of a call of each alternative: in every repetition each of them is timed once, in order."""
    for timed in alternatives.values():
        for _ in range(min(_WARM_UP, repetitions)):
            timed.run()
    found: dict[str, list[float]] = {name: [] for name in alternatives}
    for _ in range(repetitions):
        for name, timed in alternatives.items():
            found[name].append(_milliseconds(timed.run, device) / timed.count)
    return {name: summary(times) for name, times in found.items()}


def summary(times: Sequence[float]) -> Sample:
    """Median, 10th and 90th percentile and number of `times`, milliseconds."""
    tenths = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    return {
        "median_ms": round(statistics.median(times), 6),
        "p10_ms": round(tenths[0], 6),
        "p90_ms": round(tenths[-1], 6),
        "repetitions": len(times),
    }


def _milliseconds(run: Call, device: torch.device) -> float:
    """One run, from an idle device to an idle one."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    torch.cuda.synchronize(device)
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    after.synchronize()
    elapsed: float = before.elapsed_time(after)
    return elapsed
