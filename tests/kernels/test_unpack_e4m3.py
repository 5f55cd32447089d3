"""The kernel is bitwise what the formats decode to, in E4M3: on a GPU where there is one, else in the interpreter."""

import pytest
import torch
from dirotq_kernels.fp8_layout import HIGH_SHIFT, interpreted
from dirotq_kernels.unpack_e4m3 import pack_scale, unpack_e4m3, unpack_e4m3_ref
from torch import Tensor

from dirotq.formats import FP4H, FP8x2, pack_nibbles
from tests.support.draws import draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# N, low, r: one program and several, of either part.
SHAPES = [(1, 32, 16), (17, 160, 32), (67, 1088, 64), (3, 2688, 384), (5, 96, 0), (16, 32, 272)]


def packed(low: Tensor, high: Tensor | None, group: int = 32) -> list[Tensor | None]:
    """Codes, scales, base, protected codes and their scales, as a layer holds them."""
    encoded = FP4H(group).encode(low)
    parts = [pack_nibbles(encoded.codes), encoded.grid.scales, encoded.grid.base]
    if high is None:
        return [*parts, None, None]
    protected = FP8x2(None).encode(high)
    return [*parts, protected.codes, protected.grid.scales]


def run(parts: list[Tensor | None], scale: Tensor, group: int = 32) -> Tensor:
    """The kernel's output on the CPU, after comparing it with the reference bitwise."""
    got = unpack_e4m3(*(None if t is None else t.to(DEVICE) for t in [*parts, scale]), group)
    assert got.dtype == torch.float8_e4m3fn
    got = got.cpu()
    expected = unpack_e4m3_ref(*parts, scale, group)
    assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8))
    return got


def weights(rows: int, low: int, r: int) -> tuple[Tensor, Tensor | None]:
    sizes = draw(rows, 1, seed=1).exp2() * 2.0**-6
    high = draw(rows, r, seed=2) * sizes * draw(rows, 1, seed=3).exp2() if r else None
    return draw(rows, low) * sizes, high


@pytest.mark.parametrize(("rows", "low_width", "r"), SHAPES)
def test_operand_holds_the_decoded_weights(rows: int, low_width: int, r: int) -> None:
    low, high = weights(rows, low_width, r)
    parts = packed(low, high)
    scale = pack_scale(parts[2], parts[4])
    assert scale.shape == (rows, 1)
    operand = run(parts, scale).float()
    assert operand.shape == (rows, low_width + 3 * r)
    decoded = FP4H(32).quantize(low)
    # What is lost is below E4M3's smallest number, and nothing where the row's scale is its base.
    assert bool(((operand[:, :low_width] * scale - decoded).abs() <= scale * 2.0**-10).all())
    own = (scale == parts[2])[:, 0]
    assert torch.equal(operand[own, :low_width] * scale[own], decoded[own])
    if high is not None:
        w1, w1_16, w2_16 = (operand[:, low_width:] * scale * 2.0**-HIGH_SHIFT).split(r, dim=-1)
        bottom = scale * 2.0 ** (-10 - HIGH_SHIFT)
        protected = FP8x2(None).quantize(high)
        assert bool(((w1 + w2_16 - protected).abs() <= 2 * bottom).all())
        assert bool(((w1 / 16 - w1_16).abs() <= 2 * bottom).all())


def test_product_of_both_operands_is_the_layer() -> None:
    """With activations laid out as `fp8_layout` says; beside the residuals' product only rounding at the bottom."""
    low, high = weights(33, 256, 32)
    assert high is not None
    parts = packed(low, high)
    scale = pack_scale(parts[2], parts[4])
    act, protected = FP4H(32).encode(draw(9, 256, seed=4)), FP8x2(None).encode(draw(9, 32, seed=5))
    scales = FP8x2(None).step(protected.grid)
    a1, a2 = protected.codes.view(torch.float8_e4m3fn).float().unflatten(-1, (-1, 2)).unbind(-1)
    # In units of 1 here, so that no bottom of E4M3 is reached on this side.
    a1, a2 = (a * scales * 2.0**-HIGH_SHIFT for a in (a1, a2))
    operand = torch.cat([FP4H(32).decode(act), a1, a2, a1], dim=-1).double()
    got = operand @ run(parts, scale).double().T * scale.double().T
    low_product = FP4H(32).decode(act).double() @ FP4H(32).quantize(low).double().T
    high_product = FP8x2(None).decode(protected).double() @ FP8x2(None).quantize(high).double().T
    assert float((got - low_product - high_product).norm()) < 2e-3 * float(high_product.norm())


@pytest.mark.parametrize("group", [16, 32, 64])
def test_every_code_at_every_scale_and_base(group: int) -> None:
    """The bottom of E4M3, too, where steps a power of two apart are rounded; a short last group at 64."""
    ladder = torch.tensor([0, *range(2, 29)], dtype=torch.uint8)
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(group // 16 * len(ladder))
    packed_codes = pack_nibbles(codes[: len(codes) - group // 64 * 32].repeat(25, 1))
    base = 2.0 ** torch.arange(-24.0, 1.0)[:, None]
    run([packed_codes, ladder.repeat(25, 1), base, None, None], torch.ones(25, 1), group)


def test_every_protected_code_at_every_scale() -> None:
    terms = torch.arange(256, dtype=torch.uint8)
    terms = terms[(terms & 0x7F) != 0x7F]  # not a number
    pairs = torch.stack([terms, terms.flip(0)], dim=-1).flatten().view(torch.int16)
    pairs = torch.cat([pairs, pairs[:2]]).repeat(25, 1)
    parts = packed(draw(25, 32), None)[:2]
    scales = 2.0 ** torch.arange(-27, -2.0)[:, None]
    run([*parts, torch.ones(25, 1), pairs, scales], torch.ones(25, 1))


def test_rows_without_a_part_are_scaled_by_the_other() -> None:
    low, high = weights(4, 64, 16)
    assert high is not None
    low[1] = low[3] = high[2] = high[3] = 0.0
    parts = packed(low, high)
    codes, _, base, protected, high_scales = parts
    assert base is not None
    assert high_scales is not None
    scale = pack_scale(base, high_scales, codes, protected)
    shifted = high_scales * 2.0**HIGH_SHIFT
    expected = torch.stack([torch.maximum(base[0], shifted[0]), shifted[1], base[2], base[3]])
    assert torch.equal(scale, expected)
    operand = run(parts, scale).float() * scale
    assert torch.equal(operand[2, :64], FP4H(32).quantize(low)[2])
    assert not bool(operand[3].any())
    assert torch.equal(pack_scale(base, None), base)


def test_scales_that_are_no_powers_of_two_raise() -> None:
    good, bad = torch.ones(2, 1), torch.tensor([[1.0], [0.75]])
    with pytest.raises(ValueError, match=r"base\[1\]=0.75, allowed are powers of two"):
        pack_scale(bad, good)
    with pytest.raises(ValueError, match=r"high_scales\[1\]=0.75"):
        pack_scale(good, bad)


def test_every_output_is_written_and_no_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = weights(19, 96, 16)
    parts = packed(low, high)
    scale = pack_scale(parts[2], parts[4])
    size = 19 * (96 + 48)
    memory = torch.full((size + 64,), 0x7F, dtype=torch.uint8, device=DEVICE)
    fake = memory.view(torch.float8_e4m3fn)
    monkeypatch.setattr(torch, "empty", lambda shape, **_: fake[:size].view(shape))
    unpack_e4m3(*(t if t is None else t.to(DEVICE) for t in [*parts, scale]))
    assert bool(torch.isfinite(fake[:size].float()).all())
    assert bool((memory[size:] == 0x7F).all())


def test_no_rows() -> None:
    parts = packed(torch.zeros(1, 32), torch.zeros(1, 16))
    empty = [None if t is None else t[:0].to(DEVICE) for t in [*parts, torch.ones(1, 1)]]
    assert unpack_e4m3(*empty).shape == (0, 80)


def test_bad_arguments_raise() -> None:
    low, high = weights(2, 64, 16)
    parts = packed(low, high)
    scale = pack_scale(parts[2], parts[4])
    with pytest.raises(ValueError, match="low=48, r=16, group=32; allowed are multiples of 32"):
        unpack_e4m3(parts[0][:, :24], *parts[1:], scale)
    with pytest.raises(ValueError, match="low=64, r=8"):
        unpack_e4m3(*parts[:3], parts[3][:, :8], parts[4], scale)
    with pytest.raises(ValueError, match=r"scales has the shape \(2, 2\), allowed is \(2, 4\)"):
        unpack_e4m3(*parts, scale, 16)
    with pytest.raises(ValueError, match=r"high_scales has the shape None, allowed is \(2, 1\)"):
        unpack_e4m3(*parts[:4], None, scale)


def test_operator_compiles_as_a_whole_and_keeps_its_promises() -> None:
    low, high = weights(3, 64, 16)
    parts = packed(low, high)
    args = [t.to(DEVICE) for t in [*parts, pack_scale(parts[2], parts[4])] if t is not None]
    torch.library.opcheck(unpack_e4m3, args)
    compiled = torch.compile(
        lambda *a: unpack_e4m3(*a).view(torch.uint8), fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(*args), unpack_e4m3(*args).view(torch.uint8))


def test_interpreter_is_told_from_a_gpu() -> None:
    assert interpreted() is (DEVICE == "cpu")
