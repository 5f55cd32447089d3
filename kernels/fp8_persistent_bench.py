"""Time the persistent FP8 product against `torch._scaled_mm`, on a GPU.

python kernels/fp8_persistent_bench.py results.json
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
from dirotq_kernels.benching import copies, say, timed, write
from dirotq_kernels.fp8_linear import product
from dirotq_kernels.fp8_persistent import Tile, persistent
from torch import Tensor

# M, N, K of FLUX.1, PixArt-Sigma and SANA; 64 protected columns add 128 to K.
SHAPES = [(4608, 3072, 3072), (4608, 9216, 3072), (4608, 12288, 3072), (4608, 3072, 12288)]
SHAPES += [(4608, 21504, 3072), (512, 3072, 3072), (512, 12288, 3072), (512, 3072, 12288)]
SHAPES += [(8192, 1152, 1152), (8192, 3456, 1152), (8192, 4608, 1152), (8192, 1152, 4608)]
SHAPES += [(2048, 2240, 2240), (2048, 6720, 2240), (2048, 11264, 2240), (2048, 2240, 5632)]
TILES = [
    Tile(128, 256, 128),
    Tile(128, 128, 128, warps=4, stages=4),
    Tile(128, 128, 128, warps=8, stages=4),
    Tile(256, 128, 128),
    Tile(64, 256, 128, warps=4, stages=4),
    Tile(128, 64, 128, warps=4, stages=5),
]
_PEAK = 1978.9e12  # dense E4M3 operations a second of an H100 SXM, by its data sheet


def main() -> None:
    """Write medians in microseconds of both, the kernel's by tile, and the bound of the tensor cores."""
    rows = []
    for m, n, k in SHAPES:
        operands = _operands(m, n, k + 128)
        row: dict[str, Any] = {"m": m, "n": n, "k": k + 128}
        row["bound_us"] = round(2e6 * m * n * (k + 128) / _PEAK, 2)
        row["scaled_mm_us"] = _time(product, operands)
        row["tiles"] = [{**vars(t), "us": _time(partial(persistent, t), operands)} for t in TILES]
        times = [tile["us"] for tile in row["tiles"] if isinstance(tile["us"], float)]
        row["speed"] = round(row["scaled_mm_us"] / min(times), 3) if times else None
        rows.append(row)
        say(row)
    write(
        "FP8 products with a scale a row, medians in a CUDA graph over operands that do not fit the cache; speed: of "
        "the quickest tile against torch._scaled_mm; bound: dense E4M3 operations by the data sheet of an H100 SXM",
        rows,
    )


def _operands(m: int, n: int, k: int) -> list[tuple[Tensor, ...]]:
    """Codes as layers have them, with scales and a bias."""

    def codes(rows: int) -> Tensor:
        return torch.randn(rows, k, device="cuda").mul_(2.0).to(torch.float8_e4m3fn)

    bias = torch.randn(n, device="cuda").bfloat16()
    scales = [torch.rand(rows, 1, device="cuda") + 0.5 for rows in (m, n)]
    return [(codes(m), scales[0], codes(n), scales[1], bias) for _ in range(copies((m + n) * k))]


def _time(run: Callable[..., Tensor], operands: list[tuple[Tensor, ...]]) -> float | str:
    try:
        return timed([partial(run, *parts) for parts in operands])
    except (RuntimeError, triton.runtime.OutOfResources) as error:
        return str(error).splitlines()[0]


if __name__ == "__main__":
    main()
