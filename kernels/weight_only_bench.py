"""Time `weight_only_linear` against PyTorch's bfloat16 linear and its bytes at the speed of a copy, on a GPU.

python kernels/weight_only_bench.py results.json [tune]

tune: both of its kernels at every block shape, too, for the largest linear and a small one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import dirotq_kernels.weight_only as module
import torch
from dirotq_kernels.benching import copies, copy_speed, say, timed, write
from dirotq_kernels.decode_bench import GROUPS, random_weight
from dirotq_kernels.weight_only import weight_only_linear
from torch import Tensor
from torch.nn import functional as F

# N, K of modulations: FLUX.1's (double blocks, single blocks, last) and PixArt-Sigma's.
SHAPES = [(18432, 3072), (9216, 3072), (6144, 3072), (6912, 1152)]
INPUTS = (1, 2, 4, 8, 16)


def main() -> None:
    """Write medians in microseconds: the kernel, PyTorch with a bfloat16 weight, and the bound."""
    speed = copy_speed()
    rows = []
    for (n, k), kind in product(SHAPES, GROUPS):
        weights = _weights(n, k, kind)
        plain = [torch.randn(n, k, device="cuda").bfloat16() for _ in range(copies(2 * n * k))]
        bias = torch.randn(n, device="cuda").bfloat16()
        moved = sum(t.nbytes for t in weights[0] if t is not None)
        for m in INPUTS:
            x = torch.randn(m, k, device="cuda").bfloat16()
            row: dict[str, Any] = {"m": m, "n": n, "k": k, "kind": kind}
            row["bound_us"] = round(1e6 * moved / speed, 2)
            row["kernel_us"] = _kernel(x, weights, bias, kind)
            row["bfloat16_us"] = timed([partial(F.linear, x, weight, bias) for weight in plain])
            rows.append(row)
            say(row)
    write(
        "a linear of packed 4-bit weights; medians in a CUDA graph over weights that do not fit the cache; "
        "bound: the weights' bytes at the speed of a copy",
        rows,
        copy_bytes_per_second=speed,
        block_shapes=_tune() if sys.argv[2:] == ["tune"] else [],
    )


def _weights(n: int, k: int, kind: str) -> list[tuple[Tensor | None, ...]]:
    return [random_weight(n, k, kind, GROUPS[kind]) for _ in range(copies(n * k // 2))]


def _kernel(
    x: Tensor, weights: list[tuple[Tensor | None, ...]], bias: Tensor | None, kind: str
) -> float:
    return timed(
        [partial(weight_only_linear, x, *parts, bias, kind, GROUPS[kind]) for parts in weights]
    )


def _cuts(m: int) -> Iterator[tuple[dict[str, int], AbstractContextManager[Any]]]:
    """Ways to cut the work of both kernels, and what sets each."""
    for rows, threads in product((4, 8, 16), (32, 64, 128, 256)):
        if m * rows <= 32:  # more sums than registers
            values: dict[str, Any] = {"_ROWS": rows, "_THREADS": threads, "_MOST_THREADS": threads}
            cut = patch.multiple(module, fits=lambda _: False, **values)
            yield {"rows": rows, "threads": threads}, cut
    for parts in (1, 2, 3, 4, 6, 8):
        cut = patch.multiple(module, fits=lambda _: True, parts_of=lambda *_, parts=parts: parts)
        yield {"parts": parts}, cut


def _tune() -> list[dict[str, Any]]:
    """Medians of both kernels at every cut."""
    rows: list[dict[str, Any]] = []
    for (n, k), kind in product((SHAPES[0], SHAPES[2]), ("integer", "fp4h")):
        weights = _weights(n, k, kind)
        for m in (1, 2, 4, 16):
            x = torch.randn(m, k, device="cuda").bfloat16()
            for cut, setting in _cuts(m):
                with setting:
                    us = _kernel(x, weights, None, kind)
                rows.append({"m": m, "n": n, "k": k, "kind": kind, **cut, "kernel_us": us})
                say(rows[-1])
    return rows


if __name__ == "__main__":
    main()
