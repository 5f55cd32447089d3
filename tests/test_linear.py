"""The quantized layer against its formula, and what moving and copying may not change."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dirotq.formats import Integer, unpack_nibbles
from dirotq.linear import InputSpec, QuantInput, QuantLinear, build
from dirotq.rounding import round_to_nearest
from dirotq.transforms import Dense, Identity, Transform, random_orthogonal
from tests.support.draws import draw
from tests.support.plain import bytes_of

WIDTH, OUT = 20, 6
INT4 = Integer(group=8)
ACT = Integer(group=8, symmetric=False)


def dense(high: int = 4) -> Dense:
    return Dense(WIDTH, high, random_orthogonal(WIDTH, torch.Generator().manual_seed(0)))


def make(
    transform: Transform,
    weight: Integer | None = INT4,
    act: Integer | None = ACT,
    members: tuple[str, ...] = ("a",),
) -> dict[str, QuantLinear]:
    spec = InputSpec(members, transform.to_dict(), weight, act)
    layers = build(spec, dict.fromkeys(members, OUT), transform)
    for seed, layer in enumerate(layers.values()):
        low, high = transform.fold(draw(OUT, WIDTH, seed=seed + 1))
        stored = low.float() if weight is None else round_to_nearest(low, weight)
        layer.store(stored, high, draw(OUT, seed=9))
    return layers


CASES = [
    pytest.param(Identity(WIDTH), INT4, ACT, id="rtn"),
    pytest.param(dense(), INT4, ACT, id="dirotq"),
    pytest.param(dense(), INT4, None, id="weight-only"),
    pytest.param(dense(), Integer(group=None, bits=8), Integer(group=None, bits=8), id="int8"),
    pytest.param(dense(3), INT4, ACT, id="odd-low-width"),
    pytest.param(dense(), None, None, id="unquantized"),
]


@pytest.mark.parametrize(("transform", "weight", "act"), CASES)
def test_forward_is_the_formula(
    transform: Transform, weight: Integer | None, act: Integer | None
) -> None:
    layer = make(transform, weight, act)["a"]
    x = draw(2, 3, WIDTH, seed=5)
    low, high = transform.online(x)
    if weight is None:
        low_weight = layer.weight
    else:
        codes = layer.codes
        if weight.bits == 4:
            assert codes.shape == (OUT, -(-transform.low_width // 2))
            codes = unpack_nibbles(codes, transform.low_width)
        group = weight.group or transform.low_width
        scales = layer.scales.float().repeat_interleave(group, 1)[:, : transform.low_width]
        low_weight = codes.float() * scales
    expected = (low if act is None else act.quantize(low)).double() @ low_weight.double().T
    if high is not None:
        protected = high if act is None else high.bfloat16()
        expected = expected + protected.double() @ layer.high.double().T
    expected = expected + layer.bias.double()
    # Float32 sums of 20 terms below 10.
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(layer.low_weight(), low_weight.float())


def test_storage_is_packed_and_protected_in_bfloat16() -> None:
    layer = make(dense())["a"]
    kinds = {name: (tuple(t.shape), t.dtype) for name, t in layer.state_dict().items()}
    assert kinds == {
        "codes": ((OUT, 8), torch.uint8),
        "scales": ((OUT, 2), torch.bfloat16),
        "high": ((OUT, 4), torch.bfloat16),
        "bias": ((OUT,), torch.float32),
        "input.transform.basis": ((WIDTH, WIDTH), torch.bfloat16),
    }
    assert layer.storage_bits() == OUT * (16 * 4 + 2 * 16 + 4 * 16) + WIDTH * WIDTH * 16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_output_has_the_dtype_of_the_input_and_is_computed_in_float32(dtype: torch.dtype) -> None:
    layer, x = make(dense())["a"], draw(3, WIDTH).to(dtype)
    assert layer(x).dtype == dtype
    assert torch.equal(layer(x), layer(x.float()).to(dtype))


@pytest.mark.parametrize(
    "cast",
    [
        pytest.param(lambda m: m.half(), id="half"),
        pytest.param(lambda m: m.bfloat16(), id="bfloat16"),
        pytest.param(lambda m: m.double(), id="double"),
        pytest.param(lambda m: m.to(torch.float16), id="to-dtype"),
        pytest.param(lambda m: m.to("cpu", torch.bfloat16), id="to-device-and-dtype"),
    ],
)
def test_casting_a_model_changes_no_stored_number(cast: object) -> None:
    model = nn.ModuleDict({**make(dense(), members=("a", "b")), "plain": nn.Linear(3, 3)})
    before, x = bytes_of(model.state_dict()), draw(2, WIDTH)
    outputs = model["a"](x), model["b"](x)
    assert callable(cast)
    cast(model)
    after = bytes_of(model.state_dict())
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"plain.weight", "plain.bias"}
    x = x.clone()  # nothing kept from before
    assert torch.equal(model["a"](x), outputs[0])
    assert torch.equal(model["b"](x), outputs[1])


def test_moving_a_model_moves_every_buffer() -> None:
    model = nn.ModuleDict(make(dense(), members=("a", "b"))).to("meta")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}
    assert model["a"].codes.dtype == torch.uint8
    assert model["b"].input is model["a"].input


def test_copies_are_complete_and_separate() -> None:
    model = nn.ModuleDict(make(dense(), members=("a", "b")))
    x = draw(2, WIDTH)
    expected = model["a"](x)  # the result is kept for "b" while the copy is made
    twin = copy.deepcopy(model)
    assert twin["b"].input is twin["a"].input
    assert twin["b"].input is not model["b"].input
    twin["a"].input.transform.basis.zero_()
    twin["a"].codes.zero_()
    assert torch.equal(model["a"](x.clone()), expected)
    assert not torch.equal(twin["b"](x.clone()), model["b"](x.clone()))


class Counting(Identity):
    calls = 0

    def online(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        self.calls += 1
        return super().online(x)


def counted(readers: int = 3) -> tuple[Counting, list[QuantLinear]]:
    transform = Counting(WIDTH)
    return transform, list(make(transform, members=tuple("abcd"[:readers])).values())


def test_a_shared_input_is_computed_once() -> None:
    transform, layers = counted()
    x = draw(2, WIDTH)
    outputs = [layer(x) for layer in layers]
    assert transform.calls == 1
    for layer, output in zip(layers, outputs, strict=True):
        alone = torch.nn.functional.linear(ACT.quantize(x), layer.low_weight()) + layer.bias
        torch.testing.assert_close(output, alone, rtol=0, atol=1e-5)  # float32 sums of 20 terms


def test_the_result_is_dropped_when_all_have_read_it() -> None:
    transform, layers = counted()
    x = draw(2, WIDTH)
    for layer in layers:
        layer(x)
    assert layers[0].input._kept is None
    layers[0](x)
    assert transform.calls == 2


def test_an_input_changed_in_place_is_computed_again() -> None:
    transform, (first, second) = counted(2)
    x = draw(2, WIDTH)
    first(x)
    x.mul_(2)
    assert torch.equal(second(x), second(x.clone()))
    assert transform.calls == 3


def test_another_tensor_with_the_same_numbers_is_computed_again() -> None:
    transform, (first, second) = counted(2)
    x = draw(2, WIDTH)
    first(x)
    second(x.clone())
    assert transform.calls == 2


def test_inference_mode() -> None:
    _, (first, second) = counted(2)
    x = draw(2, WIDTH)
    expected = first(x.clone()), second(x.clone())
    with torch.inference_mode():
        same = x.clone()
        assert torch.equal(first(same), expected[0])
        assert torch.equal(second(same), expected[1])
        changed = x * 3
        first(changed)
        changed.div_(3)  # unseen by version counters here
        torch.testing.assert_close(second(changed), second(changed.clone()), rtol=0, atol=0)


def test_compute_is_what_forward_returns() -> None:
    source = QuantInput(dense(), ACT)
    x = draw(4, WIDTH)
    low, high = source(x)
    assert torch.equal(low, ACT.quantize(dense().online(x)[0]))
    expected = dense().online(x)[1]
    assert expected is not None
    assert torch.equal(high, expected.bfloat16().float())
    assert low.dtype == high.dtype == torch.float32


def test_spec_round_trip() -> None:
    for weight, act in ((INT4, ACT), (INT4, None), (None, None)):
        spec = InputSpec(("a", "b"), dense().to_dict(), weight, act)
        assert InputSpec.from_dict(spec.to_dict()) == spec
    shifted = replace(spec, act=Integer(group=8, unsigned=True), shift=0.171875)
    assert InputSpec.from_dict(json.loads(json.dumps(shifted.to_dict()))) == shifted


@pytest.mark.parametrize("shift", [None, "much", float("nan"), float("inf")], ids=str)
def test_a_shift_that_is_no_number_raises(shift: object) -> None:
    fields = InputSpec(("a",), dense().to_dict(), INT4, ACT).to_dict()
    with pytest.raises(ValueError, match=f"shift={shift}, allowed are numbers"):
        InputSpec.from_dict({**fields, "shift": shift})


def test_a_shift_is_added_before_rounding_and_taken_out_after_it() -> None:
    """What the high part sees, and the low one of an unquantized input, is not shifted."""
    unsigned, x = Integer(group=8, unsigned=True), draw(4, WIDTH)
    low, high = QuantInput(dense(), unsigned, shift=3.0).compute(x)
    offset = dense().online(torch.full((WIDTH,), 3.0))[0]
    assert torch.equal(low, unsigned.quantize(dense().online(x)[0] + offset) - offset)
    assert torch.equal(high, QuantInput(dense(), unsigned).compute(x)[1])
    assert torch.equal(QuantInput(dense(), None, shift=3.0).compute(x)[0], dense().online(x)[0])


def test_only_the_first_reader_stores_the_input() -> None:
    layers = make(dense(), members=("a", "b"))
    assert "input.transform.basis" in layers["a"].state_dict()
    assert "input.transform.basis" not in layers["b"].state_dict()
    assert layers["a"].spec is not None
    assert layers["b"].spec is None
