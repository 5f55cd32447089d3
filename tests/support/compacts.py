"""Compact transforms, as the kernels take them."""

import torch
from torch import Tensor

from dirotq.transforms import Compact
from tests.support.draws import draw64

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def build(low: int, rank: int, block: int = 64, bits: int = 8) -> Compact:
    """A transform whose subspace has some columns that stand out, and the signs of a random draw."""
    width = low + rank
    spread = draw64(width, 1, seed=1).exp()
    subspace = torch.linalg.qr(draw64(width, rank, seed=2) * spread)[0]
    signs = draw64(low, seed=3).sign()
    return Compact(width, rank, block, subspace, signs, bits)


def arguments(compact: Compact) -> list[Tensor | None]:
    scaled = compact.bits == 8
    tensors = [
        compact.subspace,
        compact.subspace_scales if scaled else None,
        compact.correction,
        compact.correction_scales if scaled else None,
        compact.signs,
    ]
    return [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]
