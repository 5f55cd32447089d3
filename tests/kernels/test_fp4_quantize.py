"""The kernel is bitwise the reference and the formats: on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from dirotq_kernels.fp4_quantize import fp4_quantize, fp4_quantize_ref
from torch import Tensor

from dirotq.formats import FP4H, MXFP4, NVFP4, Format, Integer
from dirotq.linear import _quantize
from tests.support.draws import draw, finite_bit_patterns

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS: dict[str, type[Format]] = {"nvfp4": NVFP4, "mxfp4": MXFP4, "fp4h": FP4H}
SHAPES = [(1, 16, 16), (17, 320, 16), (5, 1152, 32), (3, 320, 64), (2, 72, 24), (3, 15, 5)]
SHAPES += [(2, 7, 1), (2, 192, 192), (1, 15360, 16)]
# NumPy says so in the interpreter; squares of errors may overflow (`FP4H.fit`).
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
every_kind = pytest.mark.parametrize("kind", FORMATS)


def check(x: Tensor, group: int, kind: str) -> None:
    """Bits of the kernel against the definition on the CPU, on the device, and the reference."""
    expected = FORMATS[kind](group).quantize(x).view(torch.int32)
    for got in (
        fp4_quantize(x.to(DEVICE), group, kind),
        FORMATS[kind](group).quantize(x.to(DEVICE)),
        fp4_quantize_ref(x, group, kind),
    ):
        assert torch.equal(got.cpu().view(torch.int32), expected)


@every_kind
@pytest.mark.parametrize(("rows", "width", "group"), SHAPES)
def test_kernel_is_bitwise_the_format(rows: int, width: int, group: int, kind: str) -> None:
    x = draw(rows, width, seed=width) * 4 * draw(rows, 1, seed=1).exp2()
    x[0, :group] = 0.0  # a group without extent
    x[-1, -1] = 1000.0  # one outlier
    check(x, group, kind)


@every_kind
@pytest.mark.parametrize("group", [16, 24, 32])
def test_every_finite_bit_pattern_within_a_window_of_exponents(group: int, kind: str) -> None:
    check(finite_bit_patterns(group), group, kind)


@every_kind
def test_ties_outliers_and_rows_that_vanish(kind: str) -> None:
    ties = (
        torch.arange(-24, 24).float() / 4
    )  # 0.25, 0.75, ... 5 are halfway between codes at step 1
    ties = torch.cat([ties, torch.tensor([6.0, 384.0, 448.0] + 13 * [5.0])])
    outlier = torch.full((64,), 2.0**-30)
    outlier[40] = -3e38
    rows = [ties, ties * 7, outlier, torch.zeros(64), -torch.zeros(64), torch.full((64,), -3.7)]
    rows += [ties * 2.0**power for power in (-149, -128, -110, -101, -99, -76, -66, 40, 90)]
    check(torch.stack(rows), 16, kind)
    check(torch.stack(rows), 64, kind)


@every_kind
@pytest.mark.parametrize("group", [16, 32])
def test_ties_of_scales(group: int, kind: str) -> None:
    """Group extents whose quotient lies halfway between E4M3 numbers, subnormal ones too, and equal errors."""
    extents = torch.arange(1, 34)[:, None] * 2.0 ** torch.arange(-13, 3)  # of a row of absmax 2688
    eighths = (draw(33, 16, group, seed=3) * 4).clamp(-8, 8).round() / 8
    eighths[..., 0] = 1.0
    x = (eighths * 6 * extents[..., None]).flatten(1)
    x[:, -1] = 2688.0  # base 1 for nvfp4, 16 for fp4h
    check(x, group, kind)


@pytest.mark.parametrize("group", [16, 24, 32])
def test_equal_errors_in_another_order(group: int) -> None:
    """1 + t and 2.25 + t have the errors t and 0.25 + t at scale 1, and the same ones exchanged at scale 1.5.

    So which of the two scales is chosen is up to the roundings of the sum, and with it to its order.
    """
    generator = torch.Generator().manual_seed(4)
    t = torch.randint(1, 1 << 18, (32, 32, group // 2 - 1), generator=generator) * 2.0**-21
    pairs = torch.cat([1 + t, 2.25 + t], dim=-1)
    shuffled = pairs.gather(-1, torch.rand(pairs.shape, generator=generator).argsort(-1))
    top = torch.tensor([6.0, 0.0]).expand(32, 32, 2)  # 6 / 6 is the scale in the middle
    x = torch.cat([top, shuffled], dim=-1).flatten(1)
    x[:, 0] = 256.0  # base 1
    check(x, group, "fp4h")


@every_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_are_read_as_float32(dtype: torch.dtype, kind: str) -> None:
    x = draw(9, 2, 64).to(dtype)
    got = fp4_quantize(x.to(DEVICE), 16, kind).cpu()
    assert torch.equal(got, FORMATS[kind](16).quantize(x.float()))


@every_kind
def test_rows_that_are_not_adjacent_in_memory(kind: str) -> None:
    x = draw(64, 6).T
    assert torch.equal(
        fp4_quantize(x.to(DEVICE), 16, kind).cpu(), FORMATS[kind](16).quantize(x.contiguous())
    )


@every_kind
def test_every_output_is_written_and_no_other_memory(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = torch.full((67 * 72 + 64,), float("nan"), device=DEVICE)
    monkeypatch.setattr(torch, "empty", lambda shape, **_: memory[: shape.numel()].view(shape))
    assert bool(torch.isfinite(fp4_quantize(draw(67, 72).to(DEVICE), 24, kind)).all())
    assert bool(torch.isnan(memory[67 * 72 :]).all())


@every_kind
def test_no_rows(kind: str) -> None:
    assert fp4_quantize(torch.zeros(0, 32, device=DEVICE), 16, kind).shape == (0, 32)


def test_bad_arguments_raise() -> None:
    with pytest.raises(ValueError, match="group=16 does not divide the width 100"):
        fp4_quantize(torch.zeros(2, 100), 16, "nvfp4")
    with pytest.raises(ValueError, match="kind='nf4', allowed are nvfp4, mxfp4, fp4h"):
        fp4_quantize(torch.zeros(2, 64), 16, "nf4")


@pytest.mark.parametrize(
    "act",
    [
        *(kind(group) for kind in FORMATS.values() for group in (16, 40, None)),
        NVFP4(16, scope="tensor"),
        Integer(16, symmetric=False),
    ],
    ids=repr,
)
def test_a_layer_quantizes_its_input_as_the_format_does(act: Format) -> None:
    x = draw(2, 3, 64)  # 40 does not divide it: no kernel
    assert torch.equal(_quantize(act, x.to(DEVICE)).cpu(), act.quantize(x))


@pytest.mark.skipif(DEVICE == "cpu", reason="13 GB and a million programs")
@every_kind
def test_more_values_than_32_bits_count(kind: str) -> None:
    rows, width = (1 << 31) // 4096 + 3, 4096
    x = torch.zeros(rows, width, dtype=torch.bfloat16, device=DEVICE)
    last = draw(2, width).bfloat16()
    x[-2:] = last.to(DEVICE)
    got = fp4_quantize(x, 16, kind)
    assert torch.equal(got[-2:].cpu(), FORMATS[kind](16).quantize(last))
    assert not bool(got[:-2].any())


@every_kind
def test_the_operator_is_what_compilers_take_it_for(kind: str) -> None:
    x = draw(3, 64).to(DEVICE)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(fp4_quantize, (x, 16, kind), test_utils=checks)
