"""Integer formats: codes, bounds, groups, storage."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dirotq import formats
from dirotq.formats import Encoded, Integer, pack_nibbles, unpack_nibbles

EVERY = [
    Integer(group=group, bits=bits, symmetric=symmetric)
    for group in (None, 1, 3, 8)
    for bits in (4, 8)
    for symmetric in (True, False)
]
SYMMETRIC = [fmt for fmt in EVERY if fmt.symmetric]
# Below 1e-20 the difference of two values over 15 can be subnormal, where bfloat16 scales have fewer than 8 bits.
MAGNITUDE = st.floats(2.0**-66, 2.0**100, width=32)
VALUE = st.just(0.0) | MAGNITUDE | MAGNITUDE.map(lambda x: -x) | st.floats(-8, 8, width=16)
ROW = st.lists(VALUE, min_size=1, max_size=20).map(
    lambda row: torch.tensor([[0.0 if abs(x) < 1e-20 else x for x in row]])
)


def name(fmt: Integer) -> str:
    kind = "unsigned" if fmt.unsigned else "sym" if fmt.symmetric else "asym"
    return f"{kind}{fmt.bits}-g{fmt.group or 'row'}"


UNSIGNED = [
    Integer(group=group, bits=bits, unsigned=True) for group in (None, 1, 3, 8) for bits in (4, 8)
]


def top(fmt: Integer) -> int:
    return 2 ** (fmt.bits - 1) - 1 if fmt.symmetric else 2**fmt.bits - 1


@pytest.mark.parametrize("fmt", EVERY, ids=name)
@settings(deadline=None, max_examples=30)
@given(x=ROW)
def test_codes_are_in_range_and_errors_below_half_a_step(fmt: Integer, x: Tensor) -> None:
    encoded = fmt.encode(x)
    low = -top(fmt) if fmt.symmetric else 0
    assert encoded.codes.min() >= low
    assert encoded.codes.max() <= top(fmt)
    scale, zero = fmt.expand(encoded.grid, x.shape[1])
    error = (fmt.decode(encoded).double() - x.double()).abs()
    # Half a step, or what lies beyond the top code: a bfloat16 scale is off by up to 2^-8 of itself, which is below
    # half a step for every format but asymmetric 8-bit codes. Float32 arithmetic adds 2^-22 of the code.
    steps = max(0.5, top(fmt) * 2.0**-8 / (1 - 2.0**-8)) + (top(fmt) + 1) * 2.0**-22
    if zero is not None:
        steps = steps + zero.double().abs() * (2.0**-8 + 2.0**-20)  # bfloat16 too
    assert bool((error <= scale.double() * steps).all())


@pytest.mark.parametrize("fmt", SYMMETRIC, ids=name)
@settings(deadline=None, max_examples=30)
@given(x=ROW)
def test_symmetric_grids_reproduce_themselves(fmt: Integer, x: Tensor) -> None:
    once = fmt.encode(x)
    again = fmt.encode(fmt.decode(once))
    # The largest code of a group is the top one, and top * scale / top is exact in float32.
    assert torch.equal(once.codes, again.codes)
    assert torch.equal(fmt.decode(once), fmt.decode(again))


@pytest.mark.parametrize("fmt", UNSIGNED, ids=name)
@settings(deadline=None, max_examples=30)
@given(x=ROW)
def test_unsigned_codes_of_values_that_are_not_negative(fmt: Integer, x: Tensor) -> None:
    x, most = x.abs(), 2**fmt.bits - 1
    encoded = fmt.encode(x)
    assert encoded.codes.dtype == torch.uint8
    assert encoded.grid.zeros is None
    assert int(encoded.codes.max()) <= most
    step = fmt.expand(encoded.grid, x.shape[1])[0].double()
    decoded = fmt.decode(encoded)
    assert torch.equal(decoded.double(), encoded.codes * step)
    assert torch.equal(decoded, fmt.quantize(x))
    # Half a step, or what lies beyond the top code, whose bfloat16 scale is off by up to 2^-8 of itself; float32
    # arithmetic adds 2^-22 of the code.
    steps = max(0.5, most * 2.0**-8 / (1 - 2.0**-8)) + (most + 1) * 2.0**-22
    assert bool(((decoded.double() - x.double()).abs() <= step * steps).all())


def test_unsigned_codes_written_out() -> None:
    fmt = Integer(group=4, unsigned=True)
    encoded = fmt.encode(torch.tensor([[15.0, 0.0, 2.5, 0.6, 30.0, -4.0, 3.0, 16.8]]))
    assert encoded.grid.scales.tolist() == [[1.0, 2.0]]
    assert encoded.codes.tolist() == [[15, 0, 2, 1, 15, 0, 2, 8]]  # ties to even: 2.5, 1.5
    packed = pack_nibbles(encoded.codes)
    assert packed.tolist() == [[0x0F, 0x12, 0x0F, 0x82]]
    assert torch.equal(unpack_nibbles(packed, 8) & 15, encoded.codes)
    assert fmt.bits_per_value(64) == Integer(group=4).bits_per_value(64)
    assert formats.from_dict(json.loads(json.dumps(fmt.to_dict()))) == fmt


@pytest.mark.parametrize("fmt", EVERY, ids=name)
def test_zero_groups_are_exact(fmt: Integer) -> None:
    x = torch.zeros(2, 10)
    x[1, 9] = 5.0
    assert torch.equal(fmt.quantize(x)[0], x[0])
    assert torch.isfinite(fmt.encode(x).grid.scales).all()


@pytest.mark.parametrize("fmt", EVERY, ids=name)
@pytest.mark.parametrize("value", [3.0, -0.25, 1000.0], ids=str)
def test_constant_groups_are_exact_where_bfloat16_holds_the_value(
    fmt: Integer, value: float
) -> None:
    x = torch.full((1, 11), value)
    # A symmetric group's scale |value| / top is rounded to bfloat16, 2^-9 off at most; a zero point is exact here.
    tolerance = abs(value) * 2.0**-8 if fmt.symmetric else 0.0
    assert float((fmt.quantize(x) - x).abs().max()) <= tolerance


def test_one_outlier_costs_its_own_group_only() -> None:
    x = torch.linspace(-1, 1, 16).repeat(1, 2)
    spoiled = x.clone()
    spoiled[0, 3] = 700.0
    fmt = Integer(group=16)
    clean, dirty = fmt.quantize(x), fmt.quantize(spoiled)
    assert torch.equal(dirty[0, 16:], clean[0, 16:])
    assert torch.equal(dirty[0, :3], torch.zeros(3))  # a step is 100
    assert float(dirty[0, 3]) == pytest.approx(700, rel=2**-8)  # the scale is a bfloat16


def test_codes_and_scales_written_out() -> None:
    encoded = Integer(group=4).encode(torch.tensor([[7.0, -7.0, 2.5, 0.4, 14.0, 3.0, -1.0, 5.0]]))
    assert encoded.grid.scales.tolist() == [[1.0, 2.0]]
    assert encoded.grid.scales.dtype == torch.bfloat16
    assert encoded.grid.zeros is None
    assert encoded.codes.tolist() == [
        [7, -7, 2, 0, 7, 2, 0, 2]
    ]  # ties to even: 2.5, 1.5, -0.5, 2.5
    shifted = Integer(group=4, symmetric=False).encode(torch.tensor([[-3.0, 0.0, 1.2, 12.0]]))
    assert shifted.grid.scales.tolist() == [[1.0]]
    assert shifted.grid.zeros is not None
    assert shifted.grid.zeros.tolist() == [[3.0]]
    assert shifted.codes.tolist() == [[0, 3, 4, 15]]


@pytest.mark.parametrize("fmt", EVERY, ids=name)
@settings(deadline=None, max_examples=15)
@given(x=ROW)
def test_every_group_has_the_grid_it_would_have_alone(fmt: Integer, x: Tensor) -> None:
    """Also the last one when it is short: what fills it up must not show."""
    grid, group = fmt.grid(x), fmt.group or x.shape[1]
    alone = Integer(group=None, bits=fmt.bits, symmetric=fmt.symmetric)
    for index, part in enumerate(x.split(group, dim=1)):
        expected = alone.grid(part)
        assert torch.equal(grid.scales[:, index : index + 1], expected.scales)
        if grid.zeros is not None and expected.zeros is not None:
            assert torch.equal(grid.zeros[:, index : index + 1], expected.zeros)
    assert grid.scales.shape[1] == fmt.num_groups(x.shape[1]) == len(x.split(group, dim=1))


def test_rows_and_leading_dimensions_are_independent() -> None:
    x = torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    fmt = Integer(group=4, symmetric=False)
    each = torch.stack([torch.stack([fmt.quantize(row) for row in part]) for part in x])
    assert torch.equal(fmt.quantize(x), each)
    encoded = fmt.encode(x[0])
    assert torch.equal(fmt.decode(encoded.rows(slice(1, 3))), fmt.decode(encoded)[1:3])


@pytest.mark.parametrize("fmt", EVERY, ids=name)
@pytest.mark.parametrize("width", [16, 18, 24], ids=lambda width: f"K{width}")
def test_bits_per_value_are_the_bytes_stored(fmt: Integer, width: int) -> None:
    encoded = fmt.encode(torch.randn(3, width, generator=torch.Generator().manual_seed(0)))
    stored = [pack_nibbles(encoded.codes) if fmt.bits == 4 else encoded.codes, encoded.grid.scales]
    stored += [] if encoded.grid.zeros is None else [encoded.grid.zeros]
    bits = sum(t.numel() * t.element_size() * 8 for t in stored)
    assert bits == pytest.approx(fmt.bits_per_value(width) * 3 * width)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_float_dtype_is_taken_as_its_float32_values(dtype: torch.dtype) -> None:
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(0)).to(dtype)
    for fmt in EVERY:
        decoded = fmt.quantize(x)
        assert decoded.dtype == torch.float32
        assert torch.equal(decoded, fmt.quantize(x.float()))


def test_dictionary_round_trip_goes_through_json() -> None:
    for fmt in EVERY:
        fields = json.loads(json.dumps(fmt.to_dict()))
        assert formats.from_dict(fields) == fmt
        assert fields["kind"] == "integer"  # from_dict must not eat the caller's fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group": 64, "bits": 5}, "bits=5, allowed are 4 and 8"),
        ({"group": 64, "bits": 4.0}, r"bits=4.0, allowed"),
        ({"group": 0}, "group=0, allowed are positive integers"),
        ({"group": -64}, "group=-64, allowed are positive integers"),
        ({"group": 2.5}, "group=2.5, allowed are positive integers"),
        ({"group": "all"}, "group=all, allowed are positive integers"),
        ({"group": True}, "group=True, allowed are positive integers"),
        ({"group": 64, "symmetric": "no"}, "symmetric=no, allowed are true and false"),
        ({"group": 64, "unsigned": 1}, "unsigned=1, allowed are true and false"),
        ({"group": 64, "symmetric": False, "unsigned": True}, "allowed is false beside a zero"),
    ],
    ids=str,
)
def test_bad_settings_raise_with_the_value(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Integer(**fields)


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="kind='posit', allowed are fp4h, fp8, fp8x2, integer, mxfp4, nvfp4"
    ):
        formats.from_dict({"kind": "posit"})


def test_decoding_needs_only_what_is_stored() -> None:
    fmt = Integer(group=8, symmetric=False)
    encoded = fmt.encode(torch.randn(2, 20, generator=torch.Generator().manual_seed(1)))
    rebuilt = Encoded(encoded.codes.clone(), encoded.grid)
    scale = encoded.grid.scales.float().repeat_interleave(8, -1)[:, :20]
    assert encoded.grid.zeros is not None
    zero = encoded.grid.zeros.float().repeat_interleave(8, -1)[:, :20]
    assert torch.equal(fmt.decode(rebuilt), (encoded.codes.float() - zero) * scale)
