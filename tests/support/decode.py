"""What stored codes mean, written out a second time: tables and powers instead of the library's arithmetic."""

import torch
from torch import Tensor

from dirotq.formats import Format

_MAGNITUDES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
E2M1 = torch.tensor([*_MAGNITUDES, *(-value for value in _MAGNITUDES)])


def decode(fmt: Format, stored: Tensor, scales: Tensor, base: Tensor | None, width: int) -> Tensor:
    """Values [N, width] of stored codes (two a byte where they have four bits)."""
    if fmt.code_bits == 4:
        nibbles = torch.stack([stored % 16, stored // 16], -1).flatten(1)[:, :width].long()
    if fmt.kind == "integer":
        signed = (
            torch.where(nibbles > 7, nibbles - 16, nibbles) if fmt.code_bits == 4 else stored
        ).float()
        return signed * _spread(scales.float(), fmt, width)
    if fmt.kind == "fp8":
        return stored.view(torch.float8_e4m3fn).float() * _spread(scales, fmt, width)
    if fmt.kind == "fp8x2":
        first = (stored.int() % 256).to(torch.uint8).view(torch.float8_e4m3fn).float()
        second = (stored.int() // 256).to(torch.int8).view(torch.float8_e4m3fn).float()
        return (first + second / 16) * _spread(scales, fmt, width)
    if fmt.kind == "nvfp4":
        step = scales.float()
    elif fmt.kind == "mxfp4":
        step = 2.0 ** (scales.float() - 127)
    else:
        step = (1 + scales.float() % 2 / 2) * 2.0 ** (scales.int() // 2 - 8)
    if base is not None:
        step = step * base
    return E2M1[nibbles] * _spread(step, fmt, width)


def _spread(step: Tensor, fmt: Format, width: int) -> Tensor:
    return step.repeat_interleave(fmt.group or width, 1)[:, :width]
