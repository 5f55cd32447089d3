"""What `rotate_quantize` and `rotate` take."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The kinds, and the largest value over the row's scale.
TOPS = {"fp4h": 256.0, "fp8": 448.0}
TERMS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}
_LARGEST_BLOCK = 128


Tensors = tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor]


def check(x: Tensor, tensors: Tensors, slack: float, block: int, kind: str) -> None:
    """Raise ValueError that names what does not fit and what is allowed. tensors: the transform's, in order."""
    if kind not in TOPS:
        raise ValueError(f"rotate_quantize: kind={kind!r}, allowed are {', '.join(TOPS)}")
    if not (math.isfinite(slack) and slack >= 0):
        raise ValueError(f"rotate_quantize: slack={slack}, allowed are numbers from 0")
    check_transform(x, tensors, block, "rotate_quantize")


def check_transform(x: Tensor, tensors: Tensors, block: int, operator: str) -> None:
    """The same of the transform and its input alone."""
    reason = _unfit(x, tensors, block)
    if reason:
        raise ValueError(f"{operator}: {reason}")


def _unfit(x: Tensor, tensors: Tensors, block: int) -> str | None:
    subspace, subspace_scales, correction, correction_scales, signs = tensors
    width, rank = x.shape[-1], subspace.shape[-1]
    low = width - rank
    stored = torch.bfloat16 if subspace_scales is None else torch.int8
    if x.dtype not in TERMS:
        return f"x of {x.dtype}, allowed are {', '.join(map(str, TERMS))}"
    if block < 1 or block & (block - 1) or block > _LARGEST_BLOCK:
        return f"block={block}, allowed are powers of two up to {_LARGEST_BLOCK}"
    if rank % 16 or low <= 0 or low % 32:
        return f"{rank} protected of {width} columns, allowed are multiples of 16 beside multiples of 32"
    expected = {
        "subspace": (subspace, (width, rank), stored),
        "correction": (correction, (rank, low), stored),
        "signs": (signs, (low,), torch.int8),
    }
    if (subspace_scales is None) != (correction_scales is None):
        return "scales of subspace or of correction, allowed are both and none"
    if subspace_scales is not None and correction_scales is not None:
        expected["subspace_scales"] = (subspace_scales, (rank,), torch.bfloat16)
        expected["correction_scales"] = (correction_scales, (rank,), torch.bfloat16)
    for name, (tensor, shape, dtype) in expected.items():
        if tensor.shape != shape or tensor.dtype != dtype:
            return f"{name} {list(tensor.shape)} of {tensor.dtype}, allowed is {list(shape)} of {dtype}"
    return None
