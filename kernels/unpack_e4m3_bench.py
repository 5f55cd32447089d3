"""Time `unpack_e4m3` against its PyTorch reference and its bytes at the speed of a copy, on a GPU.

python kernels/unpack_e4m3_bench.py results.json
"""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import dirotq_kernels.unpack_e4m3 as module
import torch
from dirotq_kernels.benching import copies, copy_speed, median, say, timed, write
from dirotq_kernels.unpack_e4m3 import pack_scale, unpack_e4m3, unpack_e4m3_ref

# N, K of FLUX.1 and PixArt-Sigma, and r.
SHAPES = [(9216, 3072), (12288, 3072), (3072, 3072), (21504, 3072), (3072, 12288)]
SHAPES += [(1152, 1152), (3456, 1152), (4608, 1152), (1152, 4608)]
RANKS = {1152: (64, 160), 3072: (64, 384), 4608: (64, 576), 12288: (64, 1536)}
BLOCKS = (128, 256, 512)


def main() -> None:
    """Write medians in microseconds: the kernel at each block size, the reference, and the bound."""
    speed = copy_speed()
    rows = []
    for n, k in SHAPES:
        for r in RANKS[k]:
            layers = [_layer(n, k, r) for _ in range(copies(n * k))]
            moved = sum(t.nbytes for t in layers[0]) + n * (k + 2 * r)
            calls = [partial(unpack_e4m3, *layer) for layer in layers]
            row = {"n": n, "k": k, "r": r, "bound_us": round(1e6 * moved / speed, 2)}
            for block in BLOCKS:
                with patch.object(module, "_BLOCK", block):
                    row[f"block_{block}_us"] = timed(calls)
            row["reference_us"] = median(partial(unpack_e4m3_ref, *layers[0]))
            rows.append(row)
            say(row)
    write(
        "packed FP4H and FP8x2 weights to E4M3; medians in a CUDA graph over weights that do not fit the cache; "
        "the reference's are of calls; bound: bytes read and written at the speed of a copy",
        rows,
        copy_bytes_per_second=speed,
    )


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


if __name__ == "__main__":
    main()
