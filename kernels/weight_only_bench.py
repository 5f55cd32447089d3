"""Time `weight_only_linear` against PyTorch's bfloat16 linear and its bytes at the speed of a copy, on a GPU.

python kernels/weight_only_bench.py results.json [tune]

tune: the largest shape at every block shape, too.
"""

from __future__ import annotations

import json
import sys
from itertools import product

import dirotq_kernels.weight_only as module
import torch
import triton
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
    bandwidth = _copy_bandwidth()
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
            row["bound_us"] = round(1e6 * moved / bandwidth, 2)
            row["kernel_us"] = _median(lambda args=args: weight_only_linear(*args))
            row["bfloat16_us"] = _median(lambda x=x, w=weight, b=bias: F.linear(x, w, b))
            rows.append(row)
            print(row, flush=True)  # noqa: T201
    document = {
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "what": "a linear of packed 4-bit weights; medians; bound: the weights' bytes at the speed of a copy",
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "rows": rows,
        "block_shapes": _tune() if sys.argv[2:] == ["tune"] else [],
    }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)


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
            rows.append({**row, "kernel_us": _median(lambda args=args: weight_only_linear(*args))})
            print(rows[-1], flush=True)  # noqa: T201
    return rows


def _copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy of 512 MB."""
    source = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (1e-6 * _median(lambda: target.copy_(source)))


def _median(run) -> float:
    return round(1000 * triton.testing.do_bench(run, return_mode="median"), 2)


if __name__ == "__main__":
    main()
