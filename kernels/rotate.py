"""DiRotQ's compact transform alone, in two reads of the input: what formats quantize that no one kernel emits.

The kernels of `dirotq_kernels.rotate_quantize`, which say what they compute and how exactly; the low part is written as
it is, so formats whose scales depend on whole rows can be made of it, and all formats bitwise as they are defined.
Bound: the bytes of two reads of x and of one write of four bytes a value.
"""

from __future__ import annotations

import torch
from dirotq_kernels.launching import in_rows
from dirotq_kernels.operators import fake_of, operator
from dirotq_kernels.rotate_check import check_transform
from dirotq_kernels.rotate_plan import choose
from dirotq_kernels.rotate_quantize import transform, transform_ref
from torch import Tensor


@operator
def rotate(
    x: Tensor,
    subspace: Tensor,
    subspace_scales: Tensor | None,
    correction: Tensor,
    correction_scales: Tensor | None,
    signs: Tensor,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Transform `x` [..., K] by a `Compact`: low [M, low] and protected [M, r], float32; M: the rows of x.

    x: bfloat16, float16 or float32. The other arguments are those of `rotate_quantize`. What is not finite stays so.
    Raises ValueError for what does not fit together, and unless 32 divides low and 16 divides r.
    """
    tensors = (subspace, subspace_scales, correction, correction_scales, signs)
    check_transform(x, tensors, block, "rotate")
    x, rank = in_rows(x), subspace.shape[1]
    low = torch.empty((len(x), x.shape[1] - rank), dtype=torch.float32, device=x.device)
    high = torch.empty((len(x), rank), dtype=torch.float32, device=x.device)
    transform(choose(block, rank), x, tensors, block, "float", (low, high, high), (1.0, 1.0, 1.0))
    return low, high


@fake_of(rotate)
def _(x, subspace, *_):
    rows, rank = x.numel() // x.shape[-1], subspace.shape[1]
    low = x.new_empty((rows, x.shape[-1] - rank), dtype=torch.float32)
    return low, x.new_empty((rows, rank), dtype=torch.float32)


def rotate_ref(
    x: Tensor,
    subspace: Tensor,
    subspace_scales: Tensor | None,
    correction: Tensor,
    correction_scales: Tensor | None,
    signs: Tensor,
    block: int,
) -> tuple[Tensor, Tensor]:
    """The same in PyTorch, by float64."""
    tensors = (subspace, subspace_scales, correction, correction_scales, signs)
    low, high = transform_ref(x, tensors, block)
    return low.float(), high.float()
