"""How a quantized layer's tensors are stored: 4-bit codes two a byte, and every dtype as a checkpoint has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from dirotq.formats import Encoded, Format, Grid, pack_nibbles, unpack_nibbles


class FixedDtype(nn.Module):
    """A module whose buffers move between devices but keep their dtype: `.half()` must not change what codes mean."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: buffer for name, buffer in self.named_buffers() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, original in before.items():
            owner_name, _, leaf = name.rpartition(".")
            owner = self.get_submodule(owner_name)
            changed = owner.get_buffer(leaf)
            if changed.dtype != original.dtype:
                setattr(owner, leaf, original.to(changed.device))
        return self


def allocate(fmt: Format, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Empty codes, scales and base of an encoded matrix [rows, width], as they are stored."""
    packed = fmt.code_bits == 4
    codes = torch.empty(
        rows, -(-width // 2) if packed else width, dtype=torch.uint8 if packed else fmt.code_dtype
    )
    scales = torch.empty(rows, fmt.num_groups(width), dtype=fmt.scale_dtype)
    shapes = {"row": (rows, 1), "tensor": ()}
    base = torch.empty(shapes[fmt.base_of]) if fmt.base_of else None
    return codes, scales, base


def pack(fmt: Format, encoded: Encoded) -> Tensor:
    """Codes of an encoded matrix [N, K] as they are stored."""
    return pack_nibbles(encoded.codes) if fmt.code_bits == 4 else encoded.codes


def unpack(fmt: Format, codes: Tensor, grid: Grid, width: int) -> Tensor:
    """Decode stored codes of rows of `width`: float32 [N, width]."""
    return fmt.decode(Encoded(unpack_nibbles(codes, width) if fmt.code_bits == 4 else codes, grid))
