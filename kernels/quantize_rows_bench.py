"""Time `quantize_rows` on a GPU, beside the bytes that it must move.

python kernels/quantize_rows_bench.py results.json
"""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import dirotq_kernels.quantize_rows as module
import torch
from dirotq_kernels.benching import copies, copy_speed, say, timed, write

SHAPES = [(4608, 3072), (4608, 12288), (8192, 1152), (8192, 4608), (2048, 2240), (2048, 5632)]
# Columns and warps of a tile.
CUTS = [(256, 1), (512, 1), (1024, 1), (2048, 2), (4096, 4), (4096, 8), (8192, 8), (16384, 16)]


def main() -> None:
    """Write medians in microseconds of both kinds, by the default cut and by others, and the bound."""
    speed = copy_speed()
    rows = []
    for tokens, width in SHAPES:
        inputs = [
            torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
            for _ in range(copies(2 * tokens * width))
        ]
        bound = round(1e6 * tokens * (3 * width + 4) / speed, 2)
        for kind in ("fp4h", "fp8"):
            row = {"kind": kind, "tokens": tokens, "width": width, "bound_us": bound}
            calls = [partial(module.quantize_rows, x, kind) for x in inputs]
            row["us"] = timed(calls)
            for columns, warps in CUTS:
                with patch.object(module, "cut", return_value=(columns, warps)):
                    row[f"us_{columns}_{warps}_warps"] = timed(calls)
            rows.append(row)
            say(row)
    write(
        "quantize_rows of bfloat16, medians in a CUDA graph over inputs that do not fit the cache",
        rows,
        copy_bytes_per_second=speed,
    )


if __name__ == "__main__":
    main()
