"""Floating-point formats: E2M1 under three kinds of scales, E4M3, and the sum of two of them."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dirotq import formats
from dirotq.formats import (
    FP4H,
    FP8,
    MXFP4,
    NVFP4,
    Encoded,
    Format,
    FP8x2,
    pack_nibbles,
    unpack_nibbles,
)
from dirotq.formats.fp4 import _pair_sum
from tests.support.decode import E2M1, decode

FP4 = [
    NVFP4(group=4, scope="tensor"),
    NVFP4(group=4, scope="row"),
    MXFP4(group=4),
    FP4H(group=4),
    FP4H(group=None),
]
EVERY: list[Format] = [
    *FP4,
    FP8(group=None),
    FP8(group=4),
    FP8(group=4, power=True),
    FP8x2(group=None),
]
# Below it the absmax of a row may be lost (`_base`), which is tested on its own.
VALUE = st.just(0.0) | st.floats(2.0**-60, 2.0**100, width=32) | st.floats(-9, 9, width=16)
ROW = st.lists(VALUE, min_size=1, max_size=14).map(
    lambda row: torch.tensor([[0.0 if abs(x) < 2.0**-60 else x for x in row]])
)
every_format = pytest.mark.parametrize("fmt", EVERY, ids=repr)
every_fp4 = pytest.mark.parametrize("fmt", FP4, ids=repr)


def stored(encoded: Encoded, fmt: Format) -> Tensor:
    return pack_nibbles(encoded.codes) if fmt.code_bits == 4 else encoded.codes


@every_format
@settings(deadline=None, max_examples=40)
@given(x=ROW)
def test_decoding_agrees_with_the_written_out_one(fmt: Format, x: Tensor) -> None:
    encoded = fmt.encode(x)
    assert torch.equal(fmt.decode(encoded), fmt.quantize(x))
    grid, width = encoded.grid, x.shape[1]
    expected = decode(fmt, stored(encoded, fmt), grid.scales, grid.base, width)
    # -0 and 0 are equal: codes of E4M3 may keep the sign of a zero.
    assert torch.equal(fmt.decode(encoded), expected)
    assert grid.scales.dtype == fmt.scale_dtype
    assert encoded.codes.dtype == fmt.code_dtype
    assert grid.scales.shape == (1, fmt.num_groups(width))
    shapes = {"row": (1, 1), "tensor": ()}
    assert (grid.base is None) if fmt.base_of is None else (grid.base.shape == shapes[fmt.base_of])


@every_format
@settings(deadline=None, max_examples=30)
@given(x=ROW)
def test_packing_is_bitwise(fmt: Format, x: Tensor) -> None:
    codes = fmt.encode(x).codes
    if fmt.code_bits == 4:
        assert torch.equal(unpack_nibbles(pack_nibbles(codes), x.shape[1]), codes)
    rebuilt = formats.from_dict(fmt.to_dict())
    assert rebuilt == fmt


@every_fp4
@settings(deadline=None, max_examples=60)
@given(x=ROW)
def test_fp4_takes_the_nearest_value_of_its_grid(fmt: Format, x: Tensor) -> None:
    encoded = fmt.encode(x)
    step, _ = fmt.expand(encoded.grid, x.shape[1])
    choices = E2M1.double() * step.double()[..., None]
    least = (choices - x.double()[..., None]).abs().amin(-1)
    error = (fmt.decode(encoded).double() - x.double()).abs()
    # The quotient is rounded to float32 before it is compared: 2^-24 of a value up to 6 steps, and of the step itself.
    assert bool((error <= least + x.double().abs() * 2.0**-22).all())


def test_ties_go_to_the_even_code() -> None:
    middles = torch.tensor([[0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0]])
    fmt = MXFP4(group=8)  # 6 gives a scale of exactly 1
    expected = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]
    assert fmt.quantize(middles)[0].tolist() == expected
    assert fmt.quantize(-middles)[0].tolist() == [-value for value in expected]


@pytest.mark.parametrize("index", [0, *range(2, 29)])
def test_every_fp4h_value_is_an_e4m3_number(index: int) -> None:
    scales = torch.tensor([[index]], dtype=torch.uint8)
    codes = torch.arange(-8, 8, dtype=torch.int8)[None]
    grid = formats.Grid(scales, None, torch.ones(1, 1))
    values = FP4H(group=16).decode(Encoded(codes, grid))
    assert torch.equal(values.to(torch.float8_e4m3fn).float(), values)
    assert values.abs().max() <= 384


@settings(deadline=None, max_examples=100)
@given(x=ROW, group=st.integers(1, 5))
def test_fp4h_rows_are_e4m3_over_one_scale(x: Tensor, group: int) -> None:
    encoded = FP4H(group=group).encode(x)
    assert encoded.grid.base is not None
    assert not bool((encoded.grid.scales == 1).any())
    unit = formats.Grid(encoded.grid.scales, None, torch.ones(1, 1))
    over = FP4H(group=group).decode(Encoded(encoded.codes, unit))
    assert torch.equal(over.to(torch.float8_e4m3fn).float(), over)
    assert torch.equal(over * encoded.grid.base, FP4H(group=group).decode(encoded))


@settings(deadline=None, max_examples=100)
@given(x=ROW, octaves=st.integers(0, 3))
def test_a_larger_base_gives_the_same_values(x: Tensor, octaves: int) -> None:
    """As long as no group's scale falls below the smallest: what lets kernels use a bound for the row's absmax."""
    fmt = FP4H(group=4)
    grid = fmt.grid(x)
    assert grid.base is not None
    assert torch.equal(torch.frexp(grid.base).mantissa, torch.full_like(grid.base, 0.5))
    larger = fmt.grid(x, grid.base * 2.0**octaves)
    if bool((grid.scales > 3 + 2 * octaves).all()):
        assert torch.equal(fmt.decode(fmt.encode(x, larger)), fmt.quantize(x))


@settings(deadline=None, max_examples=100)
@given(x=ROW, octaves=st.integers(0, 3))
def test_a_larger_scale_of_fp8_gives_the_same_values(x: Tensor, octaves: int) -> None:
    fmt = FP8(group=None, power=True)
    grid = fmt.grid(x)
    larger = formats.Grid(grid.scales * 2.0**octaves)
    # Normal E4M3 numbers on both grids.
    x = torch.where(x.abs() < grid.scales * 2.0 ** (octaves - 6), torch.zeros_like(x), x)
    assert torch.equal(fmt.decode(fmt.encode(x, larger)), fmt.decode(fmt.encode(x, grid)))


@settings(deadline=None, max_examples=40)
@given(x=ROW)
def test_fp4h_chooses_no_worse_than_the_scale_that_just_fits(x: Tensor) -> None:
    fmt = FP4H(group=None)
    grid = fmt.grid(x)

    def error(index: int) -> float:
        trial = formats.Grid(torch.full_like(grid.scales, index), None, grid.base)
        return float((fmt.decode(fmt.encode(x, trial)).double() - x.double()).square().sum())

    # Errors are summed in float32 inside, where squares must not overflow.
    assume(float(x.abs().max()) < 1e18)
    just_fits = min(
        i
        for i in range(29)
        if fmt.step(formats.Grid(torch.full_like(grid.scales, i), None, grid.base)) * 6
        >= x.abs().max()
    )
    assert error(int(grid.scales)) <= error(just_fits) * (1 + 2.0**-18)


def test_errors_are_summed_by_pairs() -> None:
    # One after the other: 1e8 + 1 = 1e8, 0, 1. By pairs: 1e8 + (-1e8). The width is filled up to 4 and 8.
    assert float(_pair_sum(torch.tensor([1e8, 1.0, -1e8, 1.0]))) == 0
    assert float(_pair_sum(torch.tensor([1e8, 1.0, -1e8]))) == 0
    assert float(_pair_sum(torch.tensor([1e8, -1e8, 1.0, 1.0, 1.0]))) == 3
    assert float(_pair_sum(torch.tensor([7.0]))) == 7


def test_nvfp4_rounds_the_scale_before_it_divides() -> None:
    x = torch.tensor([[2688.0, 0.0, 10.5, 3.0]])  # base 1
    encoded = NVFP4(group=2, scope="tensor").encode(x)
    assert float(encoded.grid.base) == 1
    assert encoded.grid.scales.float().tolist() == [[448.0, 1.75]]
    # 10.5 / 1.75 = 6 and 3 / 1.75 = 1.71 -> 1.5; the unrounded scale 1.75 is E4M3 already.
    assert NVFP4(group=2, scope="tensor").decode(encoded).tolist() == [[2688.0, 0.0, 10.5, 2.625]]
    second = NVFP4(group=2).encode(torch.tensor([[2688.0, 0.0, 11.0, 3.0]]))
    # 11 / 6 = 1.8333 is between the E4M3 numbers 1.75 and 1.875.
    assert second.grid.scales.float().tolist() == [[448.0, 1.875]]


def test_nvfp4_rows_do_not_depend_on_each_other_but_tensors_do() -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    louder = torch.cat([x[:2], x[2:] * 50])
    row, tensor = NVFP4(group=4, scope="row"), NVFP4(group=4, scope="tensor")
    assert torch.equal(row.quantize(x)[:2], row.quantize(louder)[:2])
    assert not torch.equal(tensor.quantize(x)[:2], tensor.quantize(louder)[:2])


def test_mxfp4_scales_are_the_specifications() -> None:
    x = torch.tensor([[6.0, 7.9, 4.0, 0.75, 2.0**-126, 0.0]])
    grid = MXFP4(group=1).grid(x)
    # floor(log2) - 2, plus 127; the smallest scale is 2^-126, so that no step is subnormal.
    assert grid.scales.tolist() == [[127, 127, 127, 124, 1, 127]]
    assert MXFP4(group=1).quantize(x)[0, :3].tolist() == [6.0, 6.0, 4.0]


@every_format
def test_zero_groups_outliers_and_denormals(fmt: Format) -> None:
    x = torch.zeros(3, 12)
    x[1, 3] = 1e30
    x[2] = 2.0**-140
    decoded = fmt.quantize(x)
    assert bool(torch.isfinite(decoded).all())
    assert torch.equal(decoded[0], x[0])
    assert float(decoded[1, 3]) == pytest.approx(1e30, rel=2.0**-3)
    assert torch.equal(decoded[1, :3], torch.zeros(3))
    assert float(decoded[2].abs().max()) <= 2.0**-100


@every_format
def test_bits_a_value_are_the_bits_stored(fmt: Format) -> None:
    x = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    encoded = fmt.encode(x)
    bits = sum(
        t.numel() * t.element_size() * 8 for t in (stored(encoded, fmt), encoded.grid.scales)
    )
    if encoded.grid.base is not None and fmt.base_of == "row":
        bits += encoded.grid.base.numel() * 32
    assert fmt.bits_per_value(20) * x.numel() == pytest.approx(bits)


@pytest.mark.parametrize("fmt", [NVFP4(group=4), FP4H(group=4), MXFP4(group=4)], ids=repr)
def test_grids_merge_by_group(fmt: Format) -> None:
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    first = fmt.grid(x)
    second = fmt.grid(x * 0.5, first.base)
    mask = torch.tensor([[True, False]]).expand(3, 2)
    merged = first.where(mask, second)
    assert torch.equal(fmt.step(merged)[:, 0], fmt.step(first)[:, 0])
    assert torch.equal(fmt.step(merged)[:, 1], fmt.step(second)[:, 1])
    rows = fmt.encode(x).rows(slice(1, 3))
    assert torch.equal(fmt.decode(rows), fmt.decode(fmt.encode(x))[1:])


def test_two_terms_are_nearly_sixteen_bits() -> None:
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    one, two, half = (
        float((y - x).norm() / x.norm())
        for y in (FP8(group=None).quantize(x), FP8x2(group=None).quantize(x), x.bfloat16().float())
    )
    assert two < half < one  # 6e-4, 1.7e-3 and 2.6e-2 on normal values


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: NVFP4(group=16, scope="block"), "scope=block, allowed are row and tensor"),
        (lambda: FP4H(group=0), "fp4h format: group=0"),
        (lambda: FP8(group=-1), "fp8 format: group=-1"),
    ],
)
def test_bad_settings_raise(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
