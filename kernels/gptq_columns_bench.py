"""Time `gptq_columns`, and all of GPTQ's rounding with and without it, on a GPU.

python kernels/gptq_columns_bench.py results.json [shapes]

With `shapes`, programs of several sizes are timed and printed; the launcher's constants are set from that.
"""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

import torch
from dirotq_kernels import gptq_columns as module
from dirotq_kernels.benching import copy_speed, median, say, write
from dirotq_kernels.gptq_columns import gptq_columns
from torch import Tensor

from dirotq.formats import FP4H, Format, Integer

# FLUX.1-dev's and PixArt-Sigma's layers at rank 64 and an eighth.
LAYERS = [(3008, 3072), (3008, 9216), (3008, 12288), (2688, 21504), (3008, 21504), (12224, 3072)]
LAYERS += [(1088, 1152), (1088, 3456), (4544, 1152)]
FORMATS: tuple[Format, ...] = (
    FP4H(group=32),
    Integer(group=64),
    Integer(group=64, symmetric=False),
)
COLUMNS = 128
# Datasheet: a float64 sum or product on each of an H100's 16896 lanes, 64 a multiprocessor and clock.
FLOAT64_PER_SECOND = 16.7e12


def main() -> None:
    """Write medians of one block in microseconds and times of whole matrices in milliseconds."""
    rounding = importlib.import_module("dirotq.rounding.gptq")
    if "shapes" in sys.argv:
        _shapes(rounding)
    speed = copy_speed()
    rows = []
    for width, outputs in LAYERS:
        for fmt in FORMATS:
            rows.append(_row(rounding, width, outputs, fmt, speed))
            say(rows[-1])
    write(
        f"blocks of {COLUMNS} columns, medians; whole matrices, lazy updates included, the better of two",
        rows,
        copy_bytes_per_second=speed,
    )


def _row(rounding: Any, width: int, outputs: int, fmt: Format, speed: float) -> dict[str, Any]:
    columns, feedback, step, zero = _problem(width, outputs, fmt)
    kernel = rounding._kernel_arguments(fmt)
    block = [None if x is None else x[:COLUMNS] for x in (columns, columns, step, zero)]
    block.insert(2, feedback[:COLUMNS, :COLUMNS])
    operations = outputs * COLUMNS * (COLUMNS - 1)
    moved = COLUMNS * outputs * (29 + (0 if zero is None else 2))
    row = {
        "format": repr(fmt),
        "width": width,
        "outputs": outputs,
        "block_us": median(lambda: gptq_columns(*block, *kernel)),
        "block_arithmetic_us": round(1e6 * operations / FLOAT64_PER_SECOND, 2),
        "block_bytes_us": round(1e6 * moved / speed, 2),
    }
    for name, used in (("ms", True), ("without_ms", False)):
        rounding._takes_kernel = lambda x, used=used: used
        row[name] = _once(
            lambda: rounding._round_columns(columns, feedback, fmt, step, zero, COLUMNS)
        )
    return row


def _problem(width: int, outputs: int, fmt: Format) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Columns, feedback that is about as large as a factor's, steps and zero points."""
    columns = torch.randn(width, outputs, dtype=torch.float64, device="cuda")
    feedback = torch.randn(width, width, dtype=torch.float64, device="cuda").triu() / width
    step, zero = (
        None if x is None else x.T.contiguous()
        for x in fmt.expand(fmt.grid(columns.T.float()), width)
    )
    assert step is not None
    return columns, feedback, step, zero


def _shapes(rounding: Any) -> None:
    for outputs in (1152, 3072, 9216, 21504):
        for fmt in FORMATS:
            columns, feedback, step, zero = _problem(COLUMNS, outputs, fmt)
            kind, bits, signed = rounding._kernel_arguments(fmt)
            inputs = columns, columns, feedback, step, zero
            inputs += module._outputs(*inputs, kind, bits, signed)
            inputs += kind == "e2m1", module._range(bits, signed)
            for rows in (1, 2, 4, 8, 16):
                for warps in (1, 2, 4):
                    found = median(lambda i=inputs, r=rows, w=warps: module._launch(*i, r, w))
                    print(outputs, repr(fmt), rows, warps, found, flush=True)  # noqa: T201


def _once(run) -> float:
    """Milliseconds, the better of two runs."""
    times = []
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return round(min(times), 2)


if __name__ == "__main__":
    main()
