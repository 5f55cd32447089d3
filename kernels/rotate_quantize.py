"""DiRotQ's compact transform, its protected part and the quantization of both to E4M3, in two reads of the input.

With U [K, r], C [r, low], random signs D and a block Hadamard H (`dirotq.transforms.Compact`)

    high = -x U,    low = (x_low - (x U + x_high) C) D H = x_low (D H) - (x U + x_high) (C D H).

D H and C D H are folded once a call, so that each tile of `low` is one sum of tensor-core products, exact but for its
additions and for x U + x_high, of which two terms are taken: of float16 (2^-22 of its row's largest) where C is codes,
whose sums C D H are whole numbers that float16 holds, and of bfloat16 (2^-17) where it is not. What is written is laid
out as `dirotq_kernels.fp8_layout` says. Bound on a GPU: the bytes of two reads of x and of one write of a byte a value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton.language as tl
from dirotq_kernels.fp4_quantize import _least_error_ref
from dirotq_kernels.fp8_layout import HIGH_SHIFT
from dirotq_kernels.launching import ceil_div, in_rows, power_above, start
from dirotq_kernels.operators import fake_of, operator
from dirotq_kernels.rotate_check import TERMS, TOPS, Tensors, check
from dirotq_kernels.rotate_emit import rotate_kernel
from dirotq_kernels.rotate_plan import Plan, choose, processors, share
from dirotq_kernels.rotate_project import combine_kernel, project_kernel
from torch import Tensor

_HALVES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
# Of |x|², for what float32 sums of squares and of products lose: some 2^-20 of it.
_MARGIN = 2.0**-12
_NO_ENERGY = 2.0**-100
_MOST_SPLITS = 16
_MOST_RANKS = 128  # at a time
_COMBINED = 1024  # values a program of `combine_kernel`


@operator
def rotate_quantize(
    x: Tensor,
    subspace: Tensor,
    subspace_scales: Tensor | None,
    correction: Tensor,
    correction_scales: Tensor | None,
    signs: Tensor,
    slack: float,
    block: int,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """Transform `x` [..., K] by a `Compact` and quantize it: a [M, low + 3 r] float8_e4m3fn and scale [M, 1] float32.

    a = [low codes | a1 | a2 | a1] as in `dirotq_kernels.fp8_layout`; M: the rows of x. x: bfloat16, float16 or
    float32. subspace [K, r], correction [r, low]: int8 codes with bfloat16 scales [r], or bfloat16 with None. signs:
    int8 [low]. slack: at least |T Tᵀ - I|₂ of the transform T (`transform_slack`); with it no code can saturate.
    block: of the Hadamard matrices. kind: of the low codes, fp4h (groups of 32) or fp8. A scale is NaN where the row is
    not finite or its squares overflow; rows of a norm below 2^-50 are zero.

    Raises ValueError for what does not fit together, and unless 32 divides low and 16 divides r.
    """
    tensors = (subspace, subspace_scales, correction, correction_scales, signs)
    check(x, tensors, slack, block, kind)
    plan = choose(block, subspace.shape[1])
    return launch(plan, x, *tensors, slack, block, kind)


@fake_of(rotate_quantize)
def _(x, subspace, *_, **__):
    rows = x.numel() // x.shape[-1]
    a = x.new_empty((rows, x.shape[-1] + 2 * subspace.shape[1]), dtype=torch.float8_e4m3fn)
    return a, x.new_empty((rows, 1), dtype=torch.float32)


def launch(
    plan: Plan,
    x: Tensor,
    subspace: Tensor,
    subspace_scales: Tensor | None,
    correction: Tensor,
    correction_scales: Tensor | None,
    signs: Tensor,
    slack: float,
    block: int,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """`rotate_quantize` of checked arguments by a plan whose `columns` are not below `block`."""
    x = in_rows(x)
    (rows, width), rank = x.shape, subspace.shape[1]
    a = torch.empty((rows, width + 2 * rank), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    factors = (1.0 + slack + _MARGIN, 1.0 / TOPS[kind], 2.0**-HIGH_SHIFT)
    tensors = (subspace, subspace_scales, correction, correction_scales, signs)
    transform(plan, x, tensors, block, kind, (a, a, scale), factors)
    return a, scale


def transform(
    plan: Plan,
    x: Tensor,
    tensors: Tensors,
    block: int,
    kind: str,
    outputs: tuple[Tensor, Tensor, Tensor],
    factors: tuple[float, float, float],
) -> None:
    """Write low part, protected part and scales of `x` [M, K], quantized to `kind`, or as float32 where it is float."""
    subspace, subspace_scales, correction, correction_scales, signs = tensors
    (rows, width), rank = x.shape, subspace.shape[1]
    low, high, scale = outputs
    if not rows:
        return
    # Triton's interpreter cannot multiply bfloat16.
    shared = {"TERMS": TERMS[x.dtype], "TYPE": tl.bfloat16 if x.is_cuda else tl.float32}
    shared |= {"BLOCK": block, "COLUMNS": plan.columns, "enable_fp_fusion": True}
    shared["PARTS"] = 2 if subspace_scales is None else 1
    half = torch.bfloat16 if subspace_scales is None else torch.float16
    operands = (x, subspace.contiguous(), correction.contiguous(), signs.contiguous())
    sums, energy, mix = _project(plan, operands, half, shared)
    reflected = torch.empty((rows, 2 * rank), dtype=half, device=x.device)
    reach = torch.empty((rows,), dtype=torch.float32, device=x.device)
    padded = power_above(rank)
    combined = max(1, _COMBINED // padded)
    start(
        combine_kernel,
        (ceil_div(rows, combined),),
        *(x, sums, energy, subspace_scales, correction_scales, reflected, reach, high, scale),
        *(rows, width, x.stride(0), rank, sums.shape[0], *factors),
        KIND=kind,
        SCALED=subspace_scales is not None,
        ROWS=combined,
        RANKS=padded,
    )
    _emit(plan, x, reflected, reach, mix, scale, low, KIND=kind, **shared)


def _project(
    plan: Plan,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    half: torch.dtype,
    shared: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    """Partial sums [splits, M, r] of `x` times the codes, and [splits, M] of squares; the folded matrices."""
    x, rank = tensors[0], tensors[1].shape[1]
    (rows, width), device = x.shape, x.device
    ranks = min(power_above(rank), _MOST_RANKS)
    row_tiles, parts = ceil_div(rows, plan.project_rows), ceil_div(rank, ranks)
    steps = ceil_div(width, plan.project_depth)
    slots = processors(device) * plan.project_resident
    each = share(row_tiles * parts, steps, slots, _MOST_SPLITS)
    splits, fold_tiles = ceil_div(steps, each), ceil_div(width - rank, plan.columns)
    sums = torch.empty((splits, rows, rank), dtype=torch.float32, device=device)
    energy = torch.empty((splits, rows), dtype=torch.float32, device=device)
    shape = (fold_tiles, plan.columns + shared["PARTS"] * rank, plan.columns)
    mix = torch.empty(shape, dtype=torch.bfloat16, device=device)
    outputs = (sums, energy, mix, mix.view(half))
    start(
        project_kernel,
        (fold_tiles + row_tiles * splits, parts),
        *(*tensors, *outputs, rows, width, x.stride(0), rank, splits, each, fold_tiles),
        ROWS=plan.project_rows,
        DEPTH=plan.project_depth,
        RANKS=ranks,
        num_warps=plan.project_warps,
        num_stages=plan.project_stages,
        **shared,
    )
    return sums, energy, mix


def _emit(
    plan: Plan,
    x: Tensor,
    reflected: Tensor,
    reach: Tensor,
    mix: Tensor,
    scale: Tensor,
    a: Tensor,
    **constants: Any,
) -> None:
    (rows, width), rank = x.shape, reflected.shape[1] // 2
    whole = rank <= _MOST_RANKS
    ranks = power_above(rank) if whole else 64
    row_tiles, column_tiles = ceil_div(rows, plan.rows), mix.shape[0]
    outer, inner = (row_tiles, column_tiles) if plan.across else (column_tiles, row_tiles)
    tiles = share(outer, inner, processors(x.device) * plan.resident, inner)
    if x.is_cuda:
        constants["maxnreg"] = plan.registers
    folded = mix.view(reflected.dtype)
    start(
        rotate_kernel,
        (outer, ceil_div(inner, tiles)),
        *(x, reflected, reach, mix, folded, scale, a, rows, width, x.stride(0), rank, tiles),
        ROWS=plan.rows,
        ACROSS=plan.across,
        RANKS=ranks,
        WHOLE=whole,
        EVEN=rank % ranks == 0,
        HALF=_HALVES[reflected.dtype] if x.is_cuda else tl.float32,
        num_warps=plan.warps,
        num_stages=plan.stages,
        **constants,
    )


def rotate_quantize_ref(
    x: Tensor,
    subspace: Tensor,
    subspace_scales: Tensor | None,
    correction: Tensor,
    correction_scales: Tensor | None,
    signs: Tensor,
    slack: float,
    block: int,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """The same in PyTorch, the transform in float64; a zero may have another sign."""
    tensors = (subspace, subspace_scales, correction, correction_scales, signs)
    low, high = transform_ref(x, tensors, block)
    low, x = low.float(), x.reshape(-1, x.shape[-1]).double()
    energy = x.square().sum(1, keepdim=True)
    left_over = (energy * (1.0 + slack + _MARGIN) - high.square().sum(1, keepdim=True)).clamp(min=0)
    largest = high.abs().amax(1, keepdim=True) * 2.0**-HIGH_SHIFT
    scale = torch.maximum(left_over.sqrt() / TOPS[kind], largest / 448.0)
    mantissa, exponent = torch.frexp(torch.where(energy < _NO_ENERGY, 1.0, scale))
    scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
    high = high * 2.0**-HIGH_SHIFT / scale
    first = high.float().to(torch.float8_e4m3fn).double()
    second = (high - first) * 16.0
    low = low / scale.float()
    if kind == "fp4h":
        groups = low.unflatten(-1, (-1, 32))
        wanted = groups.abs().amax(-1, keepdim=True) * (1.0 / 6.0)
        low = _least_error_ref(groups, wanted, torch.ones_like(wanted)).flatten(-2)
    codes = torch.cat([low, first.float(), second.float(), first.float()], dim=1)
    return codes.to(torch.float8_e4m3fn), scale.float()


def transform_ref(x: Tensor, tensors: Tensors, block: int) -> tuple[Tensor, Tensor]:
    """Low part [M, low] and protected part [M, r] of the rows of `x`, float64."""
    subspace, subspace_scales, correction, correction_scales, signs = tensors
    x = x.reshape(-1, x.shape[-1]).double()
    left, right = subspace.double(), correction.double()
    if subspace_scales is not None and correction_scales is not None:
        left, right = left * subspace_scales.double(), right * correction_scales.double()[:, None]
    low, high = right.shape[1], -(x @ left)
    corrected = (x[:, :low] - (x[:, low:] - high) @ right) * signs.double()
    return _block_hadamard_ref(corrected, block), high


def _block_hadamard_ref(x: Tensor, block: int) -> Tensor:
    """`x` times a block-diagonal Hadamard matrix; the tail in powers of two, the largest first."""
    done, start, width = [], 0, x.shape[1]
    while start < width:
        size = min(block, 1 << ((width - start).bit_length() - 1))
        matrix = torch.ones(1, 1, dtype=x.dtype, device=x.device)
        while matrix.shape[0] < size:
            matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
        done.append(x[:, start : start + size] @ matrix / math.sqrt(size))
        start += size
    return torch.cat(done, dim=1)
