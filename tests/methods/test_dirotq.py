"""DiRotQ: which coordinates are protected, how the rest is mixed, and what the settings allow."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dirotq
from dirotq.calibrate import InputStatistics
from dirotq.formats import Integer
from dirotq.linear import QuantLinear
from dirotq.methods import DiRotQ
from dirotq.quantize import quantize, snr_db
from dirotq.rounding import round_to_nearest
from tests.support.decode import decode
from tests.support.plain import Mlp, bytes_of, outlier_rows

WIDTH = 40


def statistics(name: str = "layer", seed: int = 0) -> InputStatistics:
    x = outlier_rows(400, WIDTH, seed).double()
    return InputStatistics((name,), WIDTH, 400, x.T @ x / 400, x.abs().amax(0).float(), x.float())


def basis(method: DiRotQ, name: str = "layer") -> Tensor:
    if method.rotation == "compact":
        method = replace(method, rotation="dense")
    transform = method.transform(statistics(name), [torch.ones(1, WIDTH)], None, None)
    stored = transform.basis
    assert isinstance(stored, Tensor)
    return stored.double()


def span(columns: Tensor) -> Tensor:
    """Orthogonal projection onto the columns: equal exactly when the subspaces are."""
    return columns @ torch.linalg.pinv(columns)


def test_the_protected_coordinates_are_the_principal_ones() -> None:
    _, vectors = torch.linalg.eigh(statistics().moment)
    found = basis(DiRotQ(rank=6))
    # The basis is stored in bfloat16: entries off by 2^-8 of themselves.
    torch.testing.assert_close(span(found[:, -6:]), span(vectors[:, -6:]), rtol=0, atol=0.02)
    torch.testing.assert_close(found[:, -6:].abs(), vectors[:, -6:].abs(), rtol=2**-7, atol=1e-4)
    torch.testing.assert_close(found.T @ found, torch.eye(WIDTH).double(), rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", ["pca", "random", "identity", "joint"])
def test_compact_protects_what_the_basis_says(kind: str) -> None:
    compact = DiRotQ(rank=6, basis=kind).transform(statistics(), [torch.eye(WIDTH)], None, None)
    plain = DiRotQ(rank=6, basis=kind, rotation="none")
    columns = plain.transform(statistics(), [torch.eye(WIDTH)], None, None).basis.double()[:, -6:]
    # Both are stored in bfloat16, in other bases of one subspace.
    torch.testing.assert_close(span(compact.subspace.double()), span(columns), rtol=0, atol=0.02)
    again = DiRotQ(rank=6, basis=kind).transform(statistics(), [torch.eye(WIDTH)], None, None)
    other = (
        DiRotQ(rank=6, basis=kind, seed=1).transform(statistics(), [], None, None)
        if kind == "pca"
        else None
    )
    assert torch.equal(again.signs, compact.signs)
    assert other is None or not torch.equal(other.signs, compact.signs)


def test_the_low_part_is_mixed_within_its_own_subspace() -> None:
    mixed, plain = basis(DiRotQ(rank=6)), basis(DiRotQ(rank=6, rotation="none"))
    torch.testing.assert_close(span(mixed[:, :-6]), span(plain[:, :-6]), rtol=0, atol=0.02)
    assert torch.equal(mixed[:, -6:], plain[:, -6:])
    overlap = (mixed[:, :-6].T @ plain[:, :-6]).abs()
    assert float(overlap.max()) < 0.8  # no principal direction survives by itself
    moment = statistics().moment
    spread = [(b[:, :-6].T @ moment @ b[:, :-6]).diagonal() for b in (mixed, plain)]
    assert float(spread[0].max() / spread[0].mean()) < float(spread[1].max() / spread[1].mean())


def test_identity_basis_protects_the_largest_channels() -> None:
    found = basis(DiRotQ(rank=2, basis="identity", rotation="none"))
    order = torch.argsort(statistics().moment.diagonal())
    assert set(order[-2:].tolist()) == {0, 1}  # the planted ones
    assert torch.equal(found, torch.eye(WIDTH).double()[:, order])


def test_random_basis_is_orthogonal_and_ignores_the_moment() -> None:
    method = DiRotQ(rank=4, basis="random", rotation="dense")
    found = basis(method)
    torch.testing.assert_close(found.T @ found, torch.eye(WIDTH).double(), rtol=0, atol=0.02)
    other = method.transform(statistics(seed=1), [], None, None).basis
    assert torch.equal(found, other.double())


def test_joint_basis_leaves_less_of_input_times_weight() -> None:
    inputs, generator = statistics(), torch.Generator().manual_seed(5)
    weight = torch.randn(24, WIDTH, generator=generator).double()
    weight[:, 7] *= 9  # a direction that matters to the weight alone
    gram = weight.T @ weight
    left = {}
    for name in ("pca", "joint"):
        method = DiRotQ(rank=5, basis=name, rotation="none")
        transform = method.transform(inputs, [weight], None, None)
        outside = transform.basis.double()[:, :-5]
        energies = [(outside.T @ matrix @ outside).trace() for matrix in (inputs.moment, gram)]
        left[name] = float(energies[0] * energies[1])
    assert left["joint"] < 0.6 * left["pca"]


def test_a_basis_for_each_head() -> None:
    inputs = replace(statistics(), heads=4)
    method = DiRotQ(rank=0.2, rotation="dense")
    transform = method.transform(inputs, [], None, None)
    assert (transform.kind, transform.high) == ("heads", 8)  # 2 of each head's 10
    found = transform.basis.double()
    for head in range(4):
        part = slice(10 * head, 10 * head + 10)
        _, vectors = torch.linalg.eigh(inputs.moment[part, part])
        torch.testing.assert_close(
            span(found[head, :, -2:]), span(vectors[:, -2:]), rtol=0, atol=0.02
        )
    assert replace(method, per_head=False).transform(inputs, [], None, None).kind == "dense"
    assert replace(method, rotation="compact").transform(inputs, [], None, None).kind == "compact"


@pytest.mark.parametrize("protect", ["int8", "fp8x2"])
def test_protected_formats_cost_little_accuracy(protect: str, tmp_path: Path) -> None:
    x, reference = outlier_rows(256, 48, seed=3), Mlp()(outlier_rows(256, 48, seed=3))
    outputs, bits = {}, {}
    for chosen in ("bf16", protect):
        model = Mlp()
        recipe = dirotq.recipe("method=dirotq", "rank=8", f"protect={chosen}")
        report = quantize(model, recipe, [(outlier_rows(200, 48),)])
        outputs[chosen], bits[chosen] = snr_db(reference, model(x)), report.weight_bits
    assert outputs[protect] > outputs["bf16"] - 1.0  # dB
    assert protect == "fp8x2" or bits["int8"] < bits["bf16"]
    layer = model.gate
    assert isinstance(layer, QuantLinear)
    fmt = layer.protect
    assert fmt is not None
    expected = decode(fmt, layer.high, layer.high_scales, None, 8)
    assert torch.equal(layer.high_weight(), expected)
    dirotq.save(model, tmp_path / "saved")
    loaded = Mlp(seed=4)
    dirotq.load(loaded, tmp_path / "saved")
    assert torch.equal(loaded(x), model(x))


def test_randomness_depends_on_seed_and_input_alone() -> None:
    same = basis(DiRotQ(rank=4))
    torch.manual_seed(99)
    assert torch.equal(basis(DiRotQ(rank=4)), same)
    assert not torch.equal(basis(DiRotQ(rank=4, seed=1)), same)
    assert not torch.equal(basis(DiRotQ(rank=4), name="other"), same)


def test_another_seed_gives_other_bytes() -> None:
    states = []
    for seed in (0, 1):
        model = Mlp()
        chosen = dirotq.recipe("method=dirotq", "rank=8", f"seed={seed}")
        quantize(model, chosen, [(outlier_rows(64, 48),)])
        states.append(bytes_of(model.state_dict()))
    assert states[0]["gate.codes"] != states[1]["gate.codes"]
    assert states[0]["norm.weight"] == states[1]["norm.weight"]


@pytest.mark.parametrize(
    ("rank", "width", "group", "expected"),
    [
        (0.125, 1152, 64, 192),
        (0.125, 1024, 64, 128),
        (0.125, 100, None, 13),
        (0.3, 256, 64, 128),
        (10, 256, 64, 10),
        (1, 256, 64, 1),
        (255, 256, 64, 255),
        (0.5, 256, 64, 128),
    ],
)
def test_rank_is_a_number_or_a_fraction_rounded_up_to_the_group(
    rank: float, width: int, group: int | None, expected: int
) -> None:
    assert DiRotQ(rank=rank).coordinates(width, Integer(group=group)) == expected
    assert DiRotQ(rank=rank).coordinates(width, None) == (
        expected if rank >= 1 else -(-rank * width // 1)
    )


@pytest.mark.parametrize("rank", [64, 65, 0.99, 1000], ids=str)
def test_rank_not_below_the_width_names_rank_and_width(rank: float) -> None:
    text = rf"rank={rank} protects \d+ coordinates of an input of width 64, allowed are integers from 1 to 63"
    with pytest.raises(ValueError, match=text):
        DiRotQ(rank=rank).coordinates(64, Integer(group=64))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "rank=0, allowed are integers from 1 and fractions"),
        ({"rank": -1}, "rank=-1, allowed"),
        ({"rank": 2.5}, "rank=2.5, allowed"),
        ({"rank": float("nan")}, "rank=nan, allowed"),
        ({"rank": float("inf")}, "rank=inf, allowed"),
        ({"basis": "svd"}, "basis=svd, allowed are pca, joint, random, identity"),
        ({"rotation": "fast"}, "rotation=fast, allowed are compact, dense, none"),
        ({"protect": "int4"}, "protect=int4, allowed are bf16, int8, fp8x2"),
        ({"transform_bits": 4}, "transform_bits=4, allowed are 8 and 16"),
        ({"gptq_reference": "all"}, "gptq_reference=all, allowed are low, full"),
        ({"rounding": "up"}, "rounding=up, allowed are rtn, gptq and null"),
        ({"seed": -1}, "seed=-1, allowed are integers from 0"),
    ],
    ids=str,
)
def test_bad_settings_raise_with_the_value(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiRotQ(**fields)


def test_gptq_reference_chooses_the_mean_of_the_damping() -> None:
    """With the mean of the whole input as reference the damping swamps the low block: hardly other than nearest."""
    fmt, generator = Integer(group=None), torch.Generator().manual_seed(0)
    weight = torch.randn(16, WIDTH, generator=generator)
    x = torch.randn(200, WIDTH, generator=generator) @ torch.randn(
        WIDTH, WIDTH, generator=generator
    )
    moment = (x.T @ x / 200).double()
    nearest = round_to_nearest(weight, fmt).codes
    differing = {}
    for reference in ("low", "full"):
        method = DiRotQ(gptq_reference=reference, scale_search=False)
        encoded, fallback = method.round(weight, moment, fmt, 1e9)
        assert not fallback
        differing[reference] = int((encoded.codes != nearest).sum())
    assert differing["full"] == 0
    assert differing["low"] > 100


def test_a_moment_that_cannot_be_factored_is_reported() -> None:
    fmt, weight = Integer(group=None), torch.randn(3, 2)
    hopeless = torch.tensor([[1.0, 5e4], [5e4, 1.0]])
    encoded, fallback = DiRotQ().round(weight, hopeless, fmt, 1.0)
    assert fallback
    assert torch.equal(encoded.codes, round_to_nearest(weight, fmt).codes)
    assert not DiRotQ(rounding="rtn").round(weight, hopeless, fmt, 1.0)[1]
