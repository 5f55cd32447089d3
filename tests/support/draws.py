"""Random inputs, the same for the same seed."""

import torch
from torch import Tensor


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw64(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return draw(*shape, seed=seed, dtype=torch.float64)


def finite_bit_patterns(seed: int) -> Tensor:
    """float32 [96, 96] of any sign and fraction; a row's exponents lie in a window of 1 to 24 of them.

    The lowest rows are subnormal, the highest overflow when squared.
    """
    generator = torch.Generator().manual_seed(seed)
    signs_and_fractions = torch.randint(0, 1 << 24, (96, 96), generator=generator)
    window = torch.arange(96)[:, None] % 24 + 1
    start = torch.linspace(0, 254, 96).long()[:, None]
    offset = (torch.rand(96, 96, generator=generator) * window).long()
    exponent = (start + offset).clamp(max=254)
    bits = (signs_and_fractions & 0x7FFFFF) | exponent << 23 | (signs_and_fractions >> 23) << 31
    return bits.to(torch.int32).view(torch.float32)
