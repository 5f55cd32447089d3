"""Two 4-bit codes a byte, row-major: the even column in the low nibble, the odd one in the high nibble."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_nibbles(codes: Tensor) -> Tensor:
    """Pack int8 codes in [-8, 7] [N, K] into uint8 [N, ceil(K / 2)], two's complement, zero-filled."""
    nibbles = (codes.to(torch.int16) & 0xF).to(torch.uint8)
    if nibbles.shape[-1] % 2:
        nibbles = torch.cat([nibbles, nibbles.new_zeros(*nibbles.shape[:-1], 1)], dim=-1)
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_nibbles(packed: Tensor, width: int) -> Tensor:
    """Unpack uint8 [N, ceil(width / 2)] into int8 codes in [-8, 7] [N, width]."""
    nibbles = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)[..., :width]
    return ((nibbles ^ 8).to(torch.int8) - 8).contiguous()
