"""Time `quantize_rows` on a GPU, beside the bytes that it must move.

python kernels/quantize_rows_bench.py results.json
"""

from __future__ import annotations

import dirotq_kernels.quantize_rows as module
import torch
from dirotq_kernels.benching import copy_speed, say, timed, write

SHAPES = [(4608, 3072), (4608, 12288), (8192, 1152), (8192, 4608)]
# Values a program, and a warp.
CUTS = [(4096, 1024), (4096, 512), (2048, 512), (1, 1024), (1, 512)]


def main() -> None:
    """Write medians in microseconds of both kinds at each cut, of the reference, and the bound."""
    speed = copy_speed()
    rows = []
    for tokens, width in SHAPES:
        inputs = [
            torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
            for _ in range(max(2, (1 << 28) // (2 * tokens * width)))
        ]
        bound = round(1e6 * tokens * (3 * width + 4) / speed, 2)
        for kind in ("fp4h", "fp8"):
            row = {"kind": kind, "tokens": tokens, "width": width, "bound_us": bound}
            for cut in CUTS:
                module._VALUES_PER_PROGRAM, module._VALUES_PER_WARP = cut
                row[f"us_{cut[0]}_{cut[1]}"] = timed(
                    [lambda x=x, kind=kind: module.quantize_rows(x, kind) for x in inputs]
                )
            rows.append(row)
            say(row)
    write(
        "quantize_rows of bfloat16, medians in a CUDA graph over inputs that do not fit the cache",
        rows,
        copy_bytes_per_second=speed,
    )


if __name__ == "__main__":
    main()
