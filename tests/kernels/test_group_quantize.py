"""The kernel is bitwise the reference and the format: on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from dirotq_kernels.group_quantize import group_quantize, group_quantize_ref

from dirotq.formats import Integer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [
    (bits, *kind) for bits in (4, 8) for kind in ((True, False), (True, True), (False, False))
]
SHAPES = [(1, 64, 64), (17, 320, 64), (31, 1152, 64), (3, 1152, 1152), (5, 72, 24), (2, 48, 16)]


@pytest.mark.parametrize(("bits", "symmetric", "unsigned"), FORMATS)
@pytest.mark.parametrize(("rows", "width", "group"), SHAPES)
def test_kernel_is_bitwise_the_format(
    bits: int, symmetric: bool, unsigned: bool, rows: int, width: int, group: int
) -> None:
    generator = torch.Generator().manual_seed(rows * width + bits)
    x = (
        torch.randn(rows, width, generator=generator)
        * torch.rand(rows, 1, generator=generator).exp2()
    )
    x[0, :group] = 0.0  # a group without extent
    x[-1, -1] = 1000.0  # one outlier
    got = group_quantize(x.to(DEVICE), group, bits, symmetric, unsigned).cpu()
    assert torch.equal(got, Integer(group, bits, symmetric, unsigned).quantize(x))
    assert torch.equal(got, group_quantize_ref(x, group, bits, symmetric, unsigned))


@pytest.mark.parametrize("symmetric", [True, False])
def test_ties_and_shifted_groups(symmetric: bool) -> None:
    ties = torch.arange(-28, 36).float() / 4  # halves of the step are ties
    x = torch.stack([ties, ties + 100.0, ties * 1e-30, torch.full((64,), -3.7)])
    got = group_quantize(x.to(DEVICE), 64, 4, symmetric).cpu()
    assert torch.equal(got, Integer(64, 4, symmetric).quantize(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_are_read_as_float32(dtype: torch.dtype) -> None:
    x = torch.randn(9, 128, generator=torch.Generator().manual_seed(1)).to(dtype)
    got = group_quantize(x.to(DEVICE), 64, 4, False).cpu()
    assert torch.equal(got, Integer(64, 4, False).quantize(x))


def test_group_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="group=64 does not divide the width 100"):
        group_quantize(torch.zeros(2, 100), 64, 4, True)


def test_every_output_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    x = torch.randn(67, 192, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    assert bool(torch.isfinite(group_quantize(x, 64, 4, False)).all())


def test_the_operator_is_what_compilers_take_it_for() -> None:
    x = torch.randn(3, 128).to(DEVICE)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(group_quantize, (x, 64, 4, False), test_utils=checks)
