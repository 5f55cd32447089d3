"""Time `unpack_e4m3` against its PyTorch reference and its bytes at the speed of a copy, on a GPU.

python kernels/unpack_e4m3_bench.py results.json
"""

from __future__ import annotations

import json
import sys

import dirotq_kernels.unpack_e4m3 as module
import torch
import triton
from dirotq_kernels.unpack_e4m3 import pack_scale, unpack_e4m3, unpack_e4m3_ref

# N, K of FLUX.1 and PixArt-Sigma, and r.
SHAPES = [(9216, 3072), (12288, 3072), (3072, 3072), (21504, 3072), (3072, 12288)]
SHAPES += [(1152, 1152), (3456, 1152), (4608, 1152), (1152, 4608)]
RANKS = {1152: (64, 144), 3072: (64, 384), 4608: (64, 576), 12288: (64, 1536)}
BLOCKS = (128, 256, 512)


def main() -> None:
    """Write medians in microseconds: the kernel at each block size, the reference, and the bound."""
    bandwidth = _copy_bandwidth()
    rows = []
    for n, k in SHAPES:
        for r in RANKS[k]:
            args = _layer(n, k, r)
            moved = sum(t.nbytes for t in args) + n * (k + 2 * r)
            row = {"n": n, "k": k, "r": r, "bound_us": round(1e6 * moved / bandwidth, 2)}
            for block in BLOCKS:
                module._BLOCK = block
                row[f"block_{block}_us"] = _median(lambda args=args: unpack_e4m3(*args))
            row["reference_us"] = _median(lambda args=args: unpack_e4m3_ref(*args))
            rows.append(row)
            print(row, flush=True)  # noqa: T201
    document = {
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "what": "packed FP4H and FP8x2 weights to E4M3; medians; bound: their bytes at the speed of a copy",
        "copy_gb_per_s": round(bandwidth / 1e9, 1),
        "rows": rows,
    }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)


def _layer(n: int, k: int, r: int) -> list[torch.Tensor]:
    """Random codes with scales as weights have them."""
    low = k - r
    codes = torch.randint(0, 256, (n, low // 2), dtype=torch.uint8, device="cuda")
    scales = torch.randint(16, 25, (n, low // 32), dtype=torch.uint8, device="cuda")
    base = torch.full((n, 1), 2.0**-12, device="cuda")
    bytes_ = torch.randint(0, 0x7F, (n, 2 * r), dtype=torch.uint8, device="cuda")
    high_scales = torch.full((n, 1), 2.0**-15, device="cuda")
    return [
        codes,
        scales,
        base,
        bytes_.view(torch.int16),
        high_scales,
        pack_scale(base, high_scales),
    ]


def _copy_bandwidth() -> float:
    """Bytes a second, read and written, of a copy of 512 MB."""
    source = torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (1e-6 * _median(lambda: target.copy_(source)))


def _median(run) -> float:
    return round(1000 * triton.testing.do_bench(run, return_mode="median"), 2)


if __name__ == "__main__":
    main()
