"""Normalized Hadamard matrices (Sylvester's construction) and their block-diagonal application."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def hadamard(
    size: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """Symmetric orthogonal matrix [size, size] with entries ±1/sqrt(size). Shared: not to be changed in place.

    Raises ValueError unless `size` is a power of two.
    """
    if size < 1 or size & (size - 1):
        raise ValueError(f"hadamard: size={size}, allowed are powers of two")
    # What is kept must serve callers in other contexts: no inference tensor, the CPU named against default devices.
    with torch.inference_mode(False):
        matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
        while matrix.shape[0] < size:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        normalized: Tensor = matrix / size**0.5
        return normalized.to(dtype).to(device)


def blocks(width: int, size: int) -> list[tuple[int, int]]:
    """Cover `width` by powers of two: (block size, number of blocks), blocks of `size` first, then what remains."""
    parts = [(size, width // size)] if width >= size else []
    rest = width % size
    while rest:
        largest = 1 << (rest.bit_length() - 1)
        parts.append((largest, 1))
        rest -= largest
    return parts


def block_hadamard(x: Tensor, size: int) -> Tensor:
    """Multiply `x` [..., K] by a block-diagonal Hadamard matrix, its own inverse, in the dtype of `x`."""
    done, start = [], 0
    for block, count in blocks(x.shape[-1], size):
        part = x[..., start : start + block * count].unflatten(-1, (count, block))
        done.append((part @ hadamard(block, x.dtype, x.device)).flatten(-2))
        start += block * count
    return torch.cat(done, dim=-1)
