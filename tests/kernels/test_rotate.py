"""The transform alone against `Compact.online` in float64: on a GPU where there is one, else in the interpreter."""

import pytest
import torch
from dirotq_kernels.rotate import rotate, rotate_ref
from torch import Tensor

from dirotq.transforms import Compact
from tests.kernels.test_rotate_quantize import DEVICE, SHAPES, arguments, build
from tests.support.draws import draw64


def error(found: Tensor, exact: Tensor) -> float:
    """Largest, relative to the largest of its row."""
    size = exact.abs().amax(1, keepdim=True)
    return float(((found.cpu().double() - exact).abs() / size).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_parts_are_the_transforms(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    """Within float32 sums of some 200 products and, for 16-bit codes, two terms of bfloat16, 2^-17 each."""
    rows, low, rank, block, bits = shape
    compact: Compact = build(low, rank, block, bits)
    x = (draw64(rows, low + rank, seed=rows) * draw64(rows, 1, seed=5).exp()).to(dtype)
    exact = compact.online(x.double())
    most = 2.0**-13 if bits == 16 else 2.0**-18
    for function in (rotate, rotate_ref):
        found = function(x.to(DEVICE), *arguments(compact), block)
        for part, wanted in zip(found, exact, strict=True):
            assert part.dtype == torch.float32
            assert error(part, wanted) < most


def test_leading_dimensions_become_rows_and_none_are_none() -> None:
    compact = build(64, 16)
    x = draw64(2, 3, 80).bfloat16().to(DEVICE)
    low, high = rotate(x, *arguments(compact), 64)
    assert (low.shape, high.shape) == ((6, 64), (6, 16))
    # A part of a wider tensor is read where it lies.
    wide = torch.cat([x, x], dim=-1)
    assert torch.equal(rotate(wide[..., :80], *arguments(compact), 64)[0], low)
    assert rotate(x[:0], *arguments(compact), 64)[0].shape == (0, 64)


def test_the_operator_is_what_compilers_take_it_for() -> None:
    x = draw64(3, 80).bfloat16().to(DEVICE)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(rotate, (x, *arguments(build(64, 16)), 64), test_utils=checks)


def test_what_does_not_fit_is_named() -> None:
    compact = build(64, 16)
    x = draw64(3, 80).to(DEVICE)
    with pytest.raises(
        ValueError, match=r"rotate: x of torch\.float64, allowed are torch\.bfloat16"
    ):
        rotate(x, *arguments(compact), 64)
    with pytest.raises(ValueError, match="rotate: block=256, allowed are powers of two up to 128"):
        rotate(x.float(), *arguments(compact), 256)
