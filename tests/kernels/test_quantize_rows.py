"""The kernel is bitwise what the formats decode to, in E4M3: on a GPU where there is one, else in the interpreter."""

import dirotq_kernels.quantize_rows as module
import pytest
import torch
from dirotq_kernels.quantize_rows import cut, quantize_rows, quantize_rows_ref
from torch import Tensor

from dirotq.formats import FP4H, FP8, Format
from tests.support.draws import draw, finite_bit_patterns

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Kind and whether its scales are powers of two.
FORMATS: dict[tuple[str, bool], Format] = {
    ("fp4h", True): FP4H(group=32),
    ("fp8", True): FP8(group=None, power=True),
    ("fp8", False): FP8(group=None),
}
# NumPy says so in the interpreter; squares of errors may overflow (`FP4H.fit`).
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
every_format = pytest.mark.parametrize(("kind", "power"), FORMATS)


def check(x: Tensor, kind: str, power: bool) -> None:
    expected = FORMATS[kind, power].quantize(x.float())
    for a, scale in (
        quantize_rows(x.to(DEVICE), kind, power),
        quantize_rows_ref(x, kind, power),
    ):
        assert (a.dtype, scale.dtype) == (torch.float8_e4m3fn, torch.float32)
        assert scale.shape == (len(x), 1)
        assert torch.equal(a.float().cpu() * scale.cpu(), expected)
        assert not power or bool((torch.frexp(scale).mantissa == 0.5).all())


@every_format
@pytest.mark.parametrize(("rows", "width"), [(1, 32), (17, 1152), (67, 96), (2, 3072), (3, 2240)])
def test_codes_are_the_formats(rows: int, width: int, kind: str, power: bool) -> None:
    x = draw(rows, width, seed=width) * 4 * draw(rows, 1, seed=1).exp2()
    x[0, :32] = 0.0  # a group without extent
    x[-1, -1] = 1000.0  # one outlier
    check(x, kind, power)


@pytest.mark.parametrize(
    ("kind", "width", "tile"),
    [
        ("fp4h", 3072, (1024, 1)),  # of larger ones a quarter would be padding
        ("fp4h", 1152, (256, 1)),
        ("fp4h", 5632, (2048, 2)),
        ("fp4h", 12288, (4096, 4)),
        ("fp4h", 48, (64, 1)),
        ("fp8", 3072, (4096, 4)),
        ("fp8", 12288, (16384, 16)),
        ("fp8", 1 << 20, (16384, 16)),
        ("fp8", 20, (32, 1)),
    ],
)
def test_tiles_fit_the_width(kind: str, width: int, tile: tuple[int, int]) -> None:
    assert cut(width, kind) == tile


@every_format
@pytest.mark.parametrize("tile", [(2048, 2), (4096, 4), (64, 2)])
def test_tiles_of_several_warps(
    tile: tuple[int, int], kind: str, power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cut", lambda *_: tile)
    check(draw(3, 2240, seed=2) * 3, kind, power)


@every_format
def test_every_finite_bit_pattern_within_a_window_of_exponents(kind: str, power: bool) -> None:
    check(finite_bit_patterns(2), kind, power)


@every_format
@pytest.mark.parametrize("tile", [(64, 1), (128, 1)])
def test_rows_that_are_not_finite_have_no_scale_and_others_theirs(
    tile: tuple[int, int], kind: str, power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cut", lambda *_: tile)
    x = draw(4, 96, seed=3)
    x[0, 70], x[1, 3], x[3, 95] = float("nan"), float("inf"), float("-inf")
    for _, scale in (
        quantize_rows(x.to(DEVICE), kind, power),
        quantize_rows_ref(x, kind, power),
    ):
        assert scale.isnan().flatten().tolist() == [True, True, False, True]


@every_format
def test_parts_of_a_wider_tensor(kind: str, power: bool) -> None:
    x = draw(5, 160, seed=4)
    found = quantize_rows(x.to(DEVICE)[:, 32:128], kind, power)
    for one, other in zip(
        found, quantize_rows(x[:, 32:128].to(DEVICE).clone(), kind, power), strict=True
    ):
        assert torch.equal(one.float(), other.float())


@every_format
def test_neighbours_of_all_ties(kind: str, power: bool) -> None:
    """Up to three units in the last place around each midpoint of codes, at scales 1 and 1.5 and both signs."""
    midpoints = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, 10.0, 17.0, 23.0])
    bits = midpoints[:, None].view(torch.int32) + torch.arange(-3, 4, dtype=torch.int32)
    near = torch.cat([torch.zeros(3), bits.view(torch.float32).flatten()])  # 80
    near = torch.cat([near, near.flip(0) * -1.5, near[:32] * 1.5])
    rows = [near * factor for factor in (1.0, 1.5, 3.0, 2.0**-40, 2.0**30)]
    # The largest of a group decides on its scales.
    for largest in (6.0, 8.9, 9.1, 11.9):
        row = near.clone().clamp(-largest, largest).unflatten(0, (-1, 32))
        row[:, 0] = largest
        rows.append(row.flatten())
    check(torch.stack(rows), kind, power)


@every_format
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_inputs_are_read_as_float32(dtype: torch.dtype, kind: str, power: bool) -> None:
    check(draw(9, 64).to(dtype), kind, power)


@every_format
def test_zeros_rows_that_vanish_and_rows_apart_in_memory(kind: str, power: bool) -> None:
    x = draw(64, 5).T * torch.tensor([0.0, 1.0, 2.0**-93, 2.0**-140, -0.0])[:, None]
    check(x, kind, power)


def test_widths_that_are_no_multiple_of_a_group() -> None:
    check(draw(3, 100), "fp8", True)
    check(draw(3, 7), "fp8", False)


def test_leading_dimensions_are_flattened() -> None:
    a, scale = quantize_rows(draw(2, 3, 64).to(DEVICE), "fp4h")
    assert (a.shape, scale.shape) == ((6, 64), (6, 1))
    assert quantize_rows(torch.zeros(0, 64, device=DEVICE), "fp4h")[0].shape == (0, 64)


@every_format
def test_every_output_is_written_and_no_other_memory(
    kind: str, power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    empty = torch.empty

    def poisoned(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
        count = shape[0] * shape[1]
        memory = empty(count + 64, dtype=torch.float32, device=device).fill_(float("nan")).to(dtype)
        made.append((count, memory))
        return memory[:count].view(shape)

    monkeypatch.setattr(torch, "empty", poisoned)
    quantize_rows(draw(67, 96).to(DEVICE), kind, power)
    assert len(made) == 2
    for count, memory in made:
        assert bool(memory[:count].float().isfinite().all())
        assert bool(memory[count:].float().isnan().all())


def test_it_compiles_as_one_operator() -> None:
    x = draw(3, 64).to(DEVICE)

    def decoded(x: Tensor) -> Tensor:
        a, scale = quantize_rows(x, "fp4h")
        return a.float() * scale

    assert torch.equal(torch.compile(decoded, fullgraph=True, backend="aot_eager")(x), decoded(x))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(quantize_rows, (x, "fp8"), test_utils=checks)


def test_bad_arguments_raise() -> None:
    x = torch.zeros(2, 100)
    with pytest.raises(ValueError, match="kind='nf4', allowed are fp4h, fp8"):
        quantize_rows(x, "nf4")
    with pytest.raises(
        ValueError, match="fp4h of 100 columns, power=True, allowed are multiples of 32"
    ):
        quantize_rows(x, "fp4h")
    with pytest.raises(ValueError, match=r"x of torch\.float64, allowed are torch\.bfloat16"):
        quantize_rows(x.double(), "fp8")


@pytest.mark.skipif(DEVICE == "cpu", reason="7 GB")
@every_format
def test_more_values_than_32_bits_count(kind: str, power: bool) -> None:
    x = torch.zeros((1 << 31) // 4096 + 3, 4096, dtype=torch.bfloat16, device=DEVICE)
    last = draw(2, 4096).bfloat16()
    x[-2:] = last.to(DEVICE)
    a, scale = quantize_rows(x, kind, power)
    assert torch.equal(
        (a[-2:].float() * scale[-2:]).cpu(), FORMATS[kind, power].quantize(last.float())
    )
    assert not bool(a[:-2].view(torch.uint8).any())
