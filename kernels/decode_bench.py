"""Time `decode` against its PyTorch reference and its bytes at the speed of a copy, on a GPU.

python kernels/decode_bench.py results.json
"""

from __future__ import annotations

from functools import partial
from unittest.mock import patch

import dirotq_kernels.decode as module
import torch
from dirotq_kernels.benching import copies, copy_speed, median, say, timed, write
from dirotq_kernels.decode import decode, decode_ref

# N, K of FLUX.1, its modulations first, and of PixArt-Sigma.
SHAPES = [(18432, 3072), (9216, 3072), (12288, 3072), (3072, 3072), (21504, 3072), (3072, 12288)]
SHAPES += [(1152, 1152), (3456, 1152), (4608, 1152), (1152, 4608)]
GROUPS = {"integer": 64, "nvfp4": 16, "mxfp4": 32, "fp4h": 32}
BLOCKS = (128, 256, 512)


def main() -> None:
    """Write medians in microseconds: the kernel at each block size, the reference, and the bound."""
    speed = copy_speed()
    rows = []
    for n, k in SHAPES:
        for kind, group in GROUPS.items():
            weights = [random_weight(n, k, kind, group) for _ in range(copies(2 * n * k))]
            moved = sum(t.nbytes for t in weights[0] if t is not None) + 2 * n * k
            calls = [partial(decode, *parts, kind, group, k) for parts in weights]
            row = {"n": n, "k": k, "kind": kind, "bound_us": round(1e6 * moved / speed, 2)}
            for block in BLOCKS:
                with patch.object(module, "_BLOCK", block):
                    row[f"block_{block}_us"] = timed(calls)
            row["reference_us"] = median(partial(decode_ref, *weights[0], kind, group, k))
            rows.append(row)
            say(row)
    write(
        "packed 4-bit weights to bfloat16; medians in a CUDA graph over weights that do not fit the cache; "
        "the reference's are of calls; bound: bytes read and written at the speed of a copy",
        rows,
        copy_bytes_per_second=speed,
    )


def random_weight(
    n: int, k: int, kind: str, group: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Random codes, scales and base as a layer stores them, of weights around 0.01."""
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
    shape = (n, k // group)
    base = torch.full((n, 1), 2.0**-12, device="cuda")
    if kind == "integer":
        return codes, (torch.rand(shape, device="cuda") * 0.01).bfloat16(), None
    low, high = {"nvfp4": (0x38, 0x58), "mxfp4": (117, 121), "fp4h": (18, 25)}[kind]
    scales = torch.randint(low, high, shape, dtype=torch.uint8, device="cuda")
    if kind == "nvfp4":
        return codes, scales.view(torch.float8_e4m3fn), base
    return codes, scales, base if kind == "fp4h" else None


if __name__ == "__main__":
    main()
