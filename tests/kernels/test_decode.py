"""The kernel is bitwise the formats, rounded to bfloat16: on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from dirotq_kernels.decode import decode, decode_ref
from torch import Tensor

from dirotq.formats import FP4H, MXFP4, NVFP4, Encoded, Format, Grid, Integer, pack_nibbles
from tests.support.draws import draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [Integer(64), Integer(None), Integer(24), NVFP4(16), NVFP4(16, scope="tensor")]
FORMATS += [MXFP4(32), FP4H(32), FP4H(16)]
# Rows, width: short last groups, and more than one program.
SHAPES = [(1, 8), (17, 152), (67, 320), (5, 1152)]
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=repr)


def run(fmt: Format, encoded: Encoded) -> Tensor:
    """The kernel's output on the CPU, after comparing it and the reference with the format bitwise."""
    width = encoded.codes.shape[-1]
    grid = encoded.grid
    base = None if grid.base is None else grid.base.to(DEVICE)
    tail = (fmt.kind, fmt.group or width, width)
    parts = (pack_nibbles(encoded.codes).to(DEVICE), grid.scales.to(DEVICE), base)
    got = decode(*parts, *tail)
    assert got.dtype == torch.bfloat16
    expected = fmt.decode(encoded).bfloat16().view(torch.int16)
    assert torch.equal(got.cpu().view(torch.int16), expected)
    assert torch.equal(decode_ref(*parts, *tail).cpu().view(torch.int16), expected)
    return got.cpu()


@every_format
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_kernel_is_bitwise_the_format(rows: int, width: int, fmt: Format) -> None:
    w = draw(rows, width, seed=width) * 2.0**-5 * draw(rows, 1, seed=1).exp2()
    w[0] = 0.0
    run(fmt, fmt.encode(w))


def every_scale() -> list[tuple[Format, Grid]]:
    """Grids of all stored scales that are normal numbers: of bfloat16 each fourth one, up to 2^120."""
    bfloat16 = torch.arange(0x80, 0x7B80, 4, dtype=torch.int16).view(torch.bfloat16)
    e4m3 = torch.arange(1, 0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn)
    ladder = torch.tensor([0, *range(2, 29)], dtype=torch.uint8)
    bases = torch.cat([2.0 ** torch.arange(-100.0, 100.0, 20)[:, None], draw(6, 1).abs() + 0.1])
    return [
        (Integer(16), Grid(bfloat16.unflatten(0, (-1, 96)))),
        (MXFP4(16), Grid(torch.arange(1, 253, dtype=torch.uint8)[None])),
        (NVFP4(16), Grid(e4m3.repeat(16, 1), None, bases)),
        (NVFP4(16, scope="tensor"), Grid(e4m3[None], None, bases[-1, 0])),
        (FP4H(16), Grid(ladder.repeat(10, 1), None, bases[:10])),
    ]


@pytest.mark.parametrize(
    ("fmt", "grid"), every_scale(), ids=lambda value: getattr(value, "kind", "")
)
def test_every_code_at_every_scale(fmt: Format, grid: Grid) -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(*grid.scales.shape)
    run(fmt, Encoded(codes, grid))


def parts_of(fmt: Format, rows: int, width: int) -> list[Tensor | None]:
    encoded = fmt.encode(draw(rows, width))
    parts = [pack_nibbles(encoded.codes), encoded.grid.scales, encoded.grid.base]
    return [None if t is None else t.to(DEVICE) for t in parts]


@every_format
def test_every_output_is_written_and_no_other_memory(
    fmt: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(fmt, 67, 72)
    memory = torch.full((67 * 72 + 64,), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    monkeypatch.setattr(torch, "empty", lambda shape, **_: memory[: 67 * 72].view(shape))
    assert bool(torch.isfinite(decode(*parts, fmt.kind, fmt.group or 72, 72)).all())
    assert bool(torch.isnan(memory[67 * 72 :]).all())


def test_no_rows() -> None:
    codes, scales, base = (None if t is None else t[:0] for t in parts_of(FP4H(32), 1, 32))
    assert decode(codes, scales, base, "fp4h", 32, 32).shape == (0, 32)


def test_bad_arguments_raise() -> None:
    codes, scales, base = parts_of(FP4H(32), 2, 64)
    assert codes is not None
    for args, message in [
        (
            (codes, scales, base, "nf4", 32, 64),
            "kind='nf4', allowed are integer, nvfp4, mxfp4, fp4h",
        ),
        ((codes, scales, base, "fp4h", 20, 64), "width=64, group=20; allowed are multiples of 8"),
        ((codes, scales, base, "fp4h", 32, 68), "width=68, group=32"),
        ((codes, scales, base, "fp4h", 32, 56), r"codes are torch.uint8 \(2, 32\), allowed"),
        ((codes, scales, base, "fp4h", 16, 64), r"scales are torch.uint8 \(2, 2\), allowed .*4\)"),
        ((codes, scales, base, "integer", 32, 64), "scales are torch.uint8 .* torch.bfloat16"),
        ((codes, scales, None, "fp4h", 32, 64), r"base has the shape None, allowed is \(2, 1\)"),
        ((codes, scales, base, "mxfp4", 32, 64), r"base has the shape \(2, 1\), allowed is None"),
    ]:
        with pytest.raises(ValueError, match="decode: " + message):
            decode(*args)


@pytest.mark.parametrize("fmt", [FP4H(32), Integer(16)], ids=repr)
def test_operator_compiles_as_a_whole_and_keeps_its_promises(fmt: Format) -> None:
    args = (*parts_of(fmt, 3, 64), fmt.kind, fmt.group, 64)
    torch.library.opcheck(decode, args)
    compiled = torch.compile(lambda *a: decode(*a) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*args), decode(*args) + 1)
