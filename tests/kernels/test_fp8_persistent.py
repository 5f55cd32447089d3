"""The persistent kernel against float32, and bitwise where sums are exact: on a GPU or in Triton's interpreter."""

import pytest
import torch
from dirotq_kernels.fp8_linear import fp8_linear_ref
from dirotq_kernels.fp8_persistent import Tile, persistent
from torch import Tensor

from tests.support.draws import draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (9, 0),
    reason="tensor memory accelerators came with Hopper",
)
# Rows, columns, width: less than a tile, several tiles with rests, more tiles than are taken together.
SHAPES = [(1, 16, 16), (17, 48, 80), (131, 272, 208), (300, 32, 64)]
TILES = [
    Tile(64, 64, 64, warps=4, together=2),
    Tile(128, 128, 128, warps=4, stages=4),
    Tile(128, 256),
]


def check(a: Tensor, w: Tensor, tile: Tile, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """The kernel's output and the reference's."""
    scale_a, scale_w = draw(len(a), 1, seed=5).exp(), draw(len(w), 1, seed=6).exp()
    parts = (a.to(torch.float8_e4m3fn), scale_a, w.to(torch.float8_e4m3fn), scale_w)
    on_device = [t.to(DEVICE) for t in parts]
    got = persistent(tile, *on_device, None if bias is None else bias.to(DEVICE))
    assert (got.dtype, got.shape) == (torch.bfloat16, (len(a), len(w)))
    return got.cpu().double(), fp8_linear_ref(*parts, bias).double()


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("rows", "columns", "width"), SHAPES)
def test_error_is_that_of_the_output(rows: int, columns: int, width: int, tile: Tile) -> None:
    bias = draw(columns, seed=3).bfloat16()
    got, expected = check(draw(rows, width, seed=1), draw(columns, width, seed=2), tile, bias)
    # Two roundings to bfloat16, of the reference and of the kernel, and what tensor cores lose in sums.
    assert float((got - expected).norm() / expected.norm()) < 3e-3


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_every_product_is_there_once(tile: Tile) -> None:
    """Sums of small whole numbers are exact in any order, but for the rounding of the output."""
    generator = torch.Generator().manual_seed(4)
    a, w = (
        torch.randint(-3, 4, shape, generator=generator).float()
        for shape in ((131, 208), (48, 208))
    )
    got, expected = check(a, w, tile, None)
    assert torch.equal(got, expected)


def test_no_rows() -> None:
    a, w = (torch.zeros(rows, 32, dtype=torch.float8_e4m3fn, device=DEVICE) for rows in (0, 16))
    scales = [torch.ones(rows, 1, device=DEVICE) for rows in (0, 16)]
    assert persistent(TILES[0], a, scales[0], w, scales[1], None).shape == (0, 16)
