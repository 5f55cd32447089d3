"""FP8 products against float64: on a GPU where there is one, else by the definition."""

import pytest
import torch
from dirotq_kernels.fp8_layout import pack_scale
from dirotq_kernels.fp8_linear import (
    fp8_linear,
    packed_fp8_linear,
    packed_fp8_linear_ref,
)
from dirotq_kernels.unpack_e4m3 import unpack_e4m3
from torch import Tensor

from dirotq.formats import FP4H, FP8x2, pack_nibbles
from tests.support.draws import draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def left(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """An operand of E4M3 numbers and its scales."""
    scale = (draw(rows, 1, seed=5) * 3).round().exp2()
    return (draw(rows, width, seed=rows) * 20).to(torch.float8_e4m3fn), scale


def right(rows: int, low: int, high: int) -> list[Tensor | None]:
    """Packed weights with their rows' scales, as `unpack_e4m3` takes them."""
    encoded = FP4H(32).encode(draw(rows, low, seed=3))
    assert encoded.grid.base is not None
    parts: list[Tensor | None] = [
        pack_nibbles(encoded.codes),
        encoded.grid.scales,
        encoded.grid.base,
    ]
    codes, scales = None, None
    if high:
        protected = FP8x2(None).encode(draw(rows, high, seed=4))
        codes, scales = protected.codes, protected.grid.scales
    return [*parts, codes, scales, pack_scale(encoded.grid.base, scales)]


@pytest.mark.parametrize(("rows", "n", "low", "high"), [(1, 16, 32, 0), (17, 48, 160, 16)])
@pytest.mark.parametrize("bias", [None, torch.float32, torch.bfloat16])
def test_a_product_of_packed_weights_is_that_of_unpacked_ones(
    rows: int, n: int, low: int, high: int, bias: torch.dtype | None
) -> None:
    a, scale = (t.to(DEVICE) for t in left(rows, low + 3 * high))
    parts = [None if t is None else t.to(DEVICE) for t in right(n, low, high)]
    added = None if bias is None else draw(n, seed=9).to(DEVICE, bias)
    got = packed_fp8_linear(a, scale, *parts, added)
    w = unpack_e4m3(*parts)
    assert torch.equal(got, fp8_linear(a, scale, w, parts[-1], added))
    exact = (a.double() @ w.double().T) * scale.double() * parts[-1].double().T
    exact = exact if added is None else exact + added.bfloat16().double()
    # Half a unit in the last place of bfloat16, and of float32 sums of such lengths far less.
    error = (got.double() - exact).norm() / exact.norm()
    assert float(error) < 2.0**-8
    # Relative to all of them: where sums cancel, a GPU's shorter ones are as far off as elsewhere.
    other = packed_fp8_linear_ref(a, scale, *parts, added).double()
    assert float((got.double() - other).norm()) < 2.0**-7 * float(exact.norm())


def test_it_compiles_as_one_operator() -> None:
    a, scale = (t.to(DEVICE) for t in left(3, 32))
    parts = [None if t is None else t.to(DEVICE) for t in right(16, 32, 0)]
    # PyTorch's check of schemas cannot change E4M3 numbers, which it has to.
    checks = ("test_faketensor",)
    torch.library.opcheck(packed_fp8_linear, (a, scale, *parts, None), test_utils=checks)
    w = unpack_e4m3(*parts)
    torch.library.opcheck(fp8_linear, (a, scale, w, parts[-1], None), test_utils=checks)


def test_widths_that_do_not_agree() -> None:
    a, scale = (t.to(DEVICE) for t in left(3, 64))
    parts = [None if t is None else t.to(DEVICE) for t in right(16, 32, 0)]
    with pytest.raises(ValueError, match=r"fp8_linear: operands \(3, 64\) and \(16, 32\)"):
        packed_fp8_linear(a, scale, *parts, None)
