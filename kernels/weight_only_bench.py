"""Time `weight_only_linear` against PyTorch's bfloat16 linear and its bytes at the speed of a copy, on a GPU.

python kernels/weight_only_bench.py results.json [tune]

tune: the largest shape at every block shape, too.
"""

from __future__ import annotations

import sys
from itertools import product

import dirotq_kernels.weight_only as module
import torch
from dirotq_kernels.benching import copy_speed, median, say, write
from dirotq_kernels.decode_bench import GROUPS, random_weight
from dirotq_kernels.weight_only import weight_only_linear
from torch.nn import functional as F

# N, K of modulations: FLUX.1's (double blocks, single blocks, last) and PixArt-Sigma's.
SHAPES = [(18432, 3072), (9216, 3072), (6144, 3072), (6912, 1152)]
INPUTS = (1, 2, 4, 8, 16)
ROWS = (4, 8, 16)
THREADS = (32, 64, 128, 256)


def main() -> None:
    """Write medians in microseconds: the kernel, PyTorch with a bfloat16 weight, and the bound."""
    speed = copy_speed()
    rows = []
    for (n, k), (kind, group) in product(SHAPES, GROUPS.items()):
        parts = random_weight(n, k, kind, group)
        moved = sum(t.nbytes for t in parts if t is not None)
        weight = torch.randn(n, k, device="cuda").bfloat16()
        bias = torch.randn(n, device="cuda").bfloat16()
        for m in INPUTS:
            x = torch.randn(m, k, device="cuda").bfloat16()
            args = (x, *parts, bias, kind, group)
            row = {"m": m, "n": n, "k": k, "kind": kind}
            row["bound_us"] = round(1e6 * moved / speed, 2)
            row["kernel_us"] = median(lambda args=args: weight_only_linear(*args))
            row["bfloat16_us"] = median(lambda x=x, w=weight, b=bias: F.linear(x, w, b))
            rows.append(row)
            say(row)
    write(
        "a linear of packed 4-bit weights; medians; bound: the weights' bytes at the speed of a copy",
        rows,
        copy_bytes_per_second=speed,
        block_shapes=_tune() if sys.argv[2:] == ["tune"] else [],
    )


def _tune() -> list[dict[str, object]]:
    """Medians of the kernel at every block shape, for the largest shape and a small one."""
    rows: list[dict[str, object]] = []
    for (n, k), kind in product((SHAPES[0], SHAPES[2]), ("integer", "fp4h")):
        parts = random_weight(n, k, kind, GROUPS[kind])
        for m, block, threads in product((1, 2, 4), ROWS, THREADS):
            if m * block > 32:
                continue  # more sums than registers
            module._ROWS = block
            module._THREADS = module._MOST_THREADS = threads
            x = torch.randn(m, k, device="cuda").bfloat16()
            args = (x, *parts, None, kind, GROUPS[kind])
            row = {"m": m, "n": n, "k": k, "kind": kind, "rows": block, "threads": threads}
            rows.append({**row, "kernel_us": median(lambda args=args: weight_only_linear(*args))})
            say(rows[-1])
    return rows


if __name__ == "__main__":
    main()
