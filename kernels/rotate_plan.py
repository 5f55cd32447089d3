"""How the work of `rotate_quantize` is cut into programs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from dirotq_kernels.launching import ceil_div


@dataclass(frozen=True)
class Plan:
    """Block shapes of the two large kernels, of which `rotate_quantize_bench` times several.

    across: a program walks along the columns of its rows, else down the rows of its columns. registers: most of a
    thread. resident: programs a multiprocessor, those that it holds at a time or, so that they end evenly, more.
    """

    project_rows: int = 128
    project_depth: int = 64
    project_warps: int = 8
    project_stages: int = 3
    project_resident: int = 2
    rows: int = 64
    columns: int = 64
    across: bool = False
    warps: int = 4
    stages: int = 1
    resident: int = 4
    registers: int = 128


_ACROSS = Plan(across=True, stages=2, resident=6, registers=168)
_DOWN = Plan()
_WIDE = Plan(columns=128, resident=2, registers=255)


def choose(block: int, rank: int) -> Plan:
    """The plan for a Hadamard block and a number of protected columns."""
    if block > _DOWN.columns:
        return _WIDE
    # Beyond, what its rows reflect fills the shared memory.
    return _ACROSS if rank <= 128 else _DOWN


@lru_cache(maxsize=256)
def share(outer: int, inner: int, slots: int, most: int) -> int:
    """How much of `inner` each of the programs takes that divide it, `outer` times, so that waves are full."""

    def cost(chunks: int) -> tuple[int, int]:
        each = ceil_div(inner, chunks)
        # A tile more a program, for what it does but once.
        return ceil_div(outer * ceil_div(inner, each), slots) * (each + 1), chunks

    return ceil_div(inner, min(range(1, min(inner, most) + 1), key=cost))


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 1 elsewhere."""
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
