"""Time the Hadamard kernel and its quantization on a GPU, beside the bytes that it must move.

python kernels/hadamard_bench.py results.json
"""

from __future__ import annotations

from functools import partial

import torch
from dirotq_kernels.benching import copies, copy_speed, say, timed, write
from dirotq_kernels.hadamard import hadamard, hadamard_quantize

# Tokens and the orders of FLUX.1's, PixArt's and SANA's widths.
SHAPES = [(4608, [48, 64]), (4608, [16, 24, 32]), (8192, [32, 36]), (8192, [64, 72])]
SHAPES += [(2048, [28, 80]), (2048, [44, 128])]


def main() -> None:
    """Write medians in microseconds, quantized and not, and the bounds of their bytes at the speed of a copy."""
    speed = copy_speed()
    rows = []
    for tokens, orders in SHAPES:
        width = 1
        for order in orders:
            width *= order
        inputs = [
            torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)
            for _ in range(copies(2 * tokens * width))
        ]
        # Times do not depend on the signs.
        size = sum(order * order for order in orders)
        signs, factors = (torch.ones(n, dtype=torch.int8, device="cuda") for n in (width, size))
        row = {"tokens": tokens, "width": width, "orders": orders}
        row["bound_us"] = round(1e6 * tokens * (3 * width + 4) / speed, 2)
        for kind in ("fp4h", "fp8"):
            calls = [partial(hadamard_quantize, x, signs, factors, orders, kind) for x in inputs]
            row[f"{kind}_us"] = timed(calls)
        row["float_bound_us"] = round(1e6 * tokens * 6 * width / speed, 2)
        row["float_us"] = timed([partial(hadamard, x, signs, factors, orders) for x in inputs])
        rows.append(row)
        say(row)
    write(
        "Hadamard transforms of bfloat16 rows, medians in a CUDA graph over inputs that do not fit the cache",
        rows,
        copy_bytes_per_second=speed,
    )


if __name__ == "__main__":
    main()
