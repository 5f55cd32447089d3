"""Time `rotate_quantize`, its kernels and several block shapes of each, on a GPU, beside the bytes that it must move.

python kernels/rotate_quantize_bench.py results.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import triton
from dirotq_kernels.benching import copies, copy_speed, timed, write
from dirotq_kernels.rotate_plan import Plan, choose
from dirotq_kernels.rotate_quantize import launch

# Tokens, width, protected columns, Hadamard block, and whether plans are compared: FLUX.1's, PixArt's, larger ranks.
SHAPES = [(4608, 3072, 64, 64, True), (4608, 12288, 64, 64, True), (4608, 3072, 64, 128, True)]
SHAPES += [(4608, 12288, 64, 128, False), (8192, 1152, 64, 64, False), (8192, 4608, 64, 64, False)]
SHAPES += [(4608, 3072, 128, 64, False), (4608, 3072, 384, 64, False)]
PROJECT = [
    {},
    {"project_stages": 2},
    {"project_stages": 4},
    {"project_depth": 128},
    {"project_depth": 128, "project_stages": 4, "project_resident": 1},
    {"project_rows": 64, "project_warps": 4, "project_resident": 3},
    {"project_rows": 64, "project_warps": 4, "project_stages": 4, "project_resident": 4},
    {"project_rows": 64, "project_warps": 4, "project_depth": 128, "project_resident": 2},
]
DOWN = {"across": False, "rows": 64, "warps": 4}
ACROSS = {"across": True, "rows": 128, "warps": 8}
EMIT = [
    {"across": True, "stages": 1, "resident": 8, "registers": 128},
    {"across": True, "stages": 3, "resident": 4, "registers": 255},
    {**ACROSS, "stages": 2, "resident": 2, "registers": 128},
    {**ACROSS, "stages": 1, "resident": 2, "registers": 128},
    {**DOWN, "stages": 1, "resident": 4, "registers": 128},
    {**DOWN, "stages": 1, "resident": 8, "registers": 128},
    {**DOWN, "stages": 2, "resident": 3, "registers": 168},
    {**DOWN, "columns": 128, "stages": 1, "resident": 2, "registers": 255},
    {**DOWN, "columns": 128, "stages": 1, "resident": 2, "registers": 168},
    {**ACROSS, "columns": 128, "stages": 1, "resident": 1, "registers": 255},
    {"across": True, "columns": 128, "rows": 64, "warps": 4, "resident": 2, "registers": 255},
]


def draw(tokens: int, width: int, rank: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Inputs that together do not fit the cache, and the tensors of a transform like those of a `Compact`."""
    inputs = [
        torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
        for _ in range(copies(2 * tokens * width))
    ]
    low = width - rank
    subspace, correction = (
        torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda")
        for shape in ((width, rank), (rank, low))
    )
    scales = torch.full((rank,), 1 / (73 * width**0.5), dtype=torch.bfloat16, device="cuda")
    signs = torch.randint(0, 2, (low,), dtype=torch.int8, device="cuda") * 2 - 1
    return inputs, [subspace, scales, correction, scales, signs]


def time_shape(
    tokens: int, width: int, rank: int, block: int, every: bool, speed: float
) -> dict[str, Any]:
    """Times at one shape, microseconds: the default plan's, its kernels' by the profiler, and those of other plans."""
    inputs, tensors = draw(tokens, width, rank)

    def calls(plan: Plan, kind: str) -> list[Callable[[], Any]]:
        return [partial(launch, plan, x, *tensors, 0.03, block, kind) for x in inputs]

    def run(plan: Plan, kind: str) -> float | str:
        try:
            return timed(calls(plan, kind))
        except (RuntimeError, triton.runtime.OutOfResources) as error:
            return str(error).splitlines()[0]

    default = choose(block, rank)
    plans = [replace(default, **change) for change in [*PROJECT, *EMIT]] if every else []
    plans = [plan for plan in plans if plan.columns >= block]
    row: dict[str, Any] = {"tokens": tokens, "width": width, "rank": rank, "block": block}
    row["bytes"] = tokens * (4 * width + width + 2 * rank + 4)
    row["bound_us"] = round(1e6 * row["bytes"] / speed, 2)
    row["default"] = asdict(default)
    row["default_us"] = {kind: run(default, kind) for kind in ("fp4h", "fp8")}
    row["kernels"] = profile(calls(default, "fp4h"))
    row["plans"] = [{"us": run(plan, "fp4h"), **_changes(plan, default)} for plan in plans]
    return row


def profile(calls: Sequence[Callable[[], Any]]) -> dict[str, float]:
    """Mean microseconds of each kernel, by the profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for call in calls:
            call()
        torch.cuda.synchronize()
    events = [event for event in profiler.key_averages() if event.device_time_total]
    return {event.key: round(event.device_time_total / event.count, 2) for event in events}


def _changes(plan: Plan, default: Plan) -> dict[str, Any]:
    before = asdict(default)
    return {key: value for key, value in asdict(plan).items() if value != before[key]}


def _order(plan: dict[str, Any]) -> float:
    return plan["us"] if isinstance(plan["us"], float) else float("inf")


def main() -> None:
    """Write the document, and print each shape's plans, the quickest first."""
    speed = copy_speed()
    rows = []
    for shape in SHAPES:
        row = time_shape(*shape, speed)
        rows.append(row)
        print({key: value for key, value in row.items() if key != "plans"})  # noqa: T201
        for plan in sorted(row["plans"], key=_order):
            print("   ", plan)  # noqa: T201
    write(
        "rotate_quantize of bfloat16, medians in a CUDA graph over inputs that do not fit the cache",
        rows,
        copy_bytes_per_second=speed,
    )


if __name__ == "__main__":
    main()
