"""The end of a linear of packed weights: sums, added up where they are split, times the rows' bases plus a bias."""

import triton
import triton.language as tl
from dirotq_kernels.group_quantize import _round_to_bfloat16

OUTPUTS = 256  # a program that adds up split sums


@triton.jit
def write_sums(
    y,
    base_ptr,
    bias_ptr,
    out_ptr,
    places,
    inside,
    rows,
    has_row,
    BASE: tl.constexpr,  # bases from row to row of the weight: none, 0 or 1
    BIAS: tl.constexpr,
):
    """Write sums, of `rows` of the weight, times their bases, plus their bias."""
    if BASE is not None:
        y *= tl.load(base_ptr + rows * BASE, mask=has_row, other=0.0)
    if BIAS:
        y += tl.load(bias_ptr + rows, mask=has_row, other=0.0).to(tl.float32)
    if out_ptr.dtype.element_ty == tl.bfloat16:
        y = _round_to_bfloat16(y)
    tl.store(out_ptr + places, y, mask=inside)


@triton.jit
def add_splits_kernel(
    parts_ptr,  # float32 [SPLITS, M, N]
    base_ptr,
    bias_ptr,
    out_ptr,
    num_outputs,  # M * N
    num_rows,
    BASE: tl.constexpr,
    BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the parts, in order."""
    output = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = output < num_outputs
    y = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):
        y += tl.load(parts_ptr + split * num_outputs + output, mask=inside, other=0.0)
    rows = output % num_rows
    write_sums(y, base_ptr, bias_ptr, out_ptr, output, inside, rows, inside, BASE, BIAS)
