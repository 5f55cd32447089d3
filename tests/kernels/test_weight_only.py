"""The kernel against products in float64: on a GPU where there is one, else in Triton's interpreter."""

import dirotq_kernels.weight_only as module
import pytest
import torch
from dirotq_kernels.weight_only import weight_only_linear, weight_only_linear_ref
from torch import Tensor
from torch.nn import functional as F

from dirotq.formats import FP4H, MXFP4, NVFP4, Encoded, Format, Integer, pack_nibbles
from tests.support.draws import draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [Integer(64), NVFP4(16), NVFP4(16, scope="tensor"), MXFP4(32), FP4H(32)]
# M, N, K: rows, words and inputs that do not fill a program, several of each, and a short last group.
SHAPES = [(1, 17, 1152), (2, 8, 512), (3, 5, 64), (4, 13, 320), (5, 3, 48), (16, 2, 32), (1, 1, 8)]
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=repr)


def encoded_weight(fmt: Format, rows: int, width: int) -> Encoded:
    return fmt.encode(draw(rows, width, seed=width) * 2.0**-5 * draw(rows, 1, seed=1).exp2())


def run(x: Tensor, fmt: Format, weight: Encoded, bias: Tensor | None = None) -> Tensor:
    """The kernel's output on the CPU."""
    grid = weight.grid
    parts = (pack_nibbles(weight.codes), grid.scales, grid.base, bias)
    args = [None if t is None else t.to(DEVICE) for t in (x, *parts)]
    tail = (fmt.kind, fmt.group or x.shape[1])
    got = weight_only_linear(*args, *tail)
    assert got.dtype == x.dtype
    return got.cpu()


def check(x: Tensor, fmt: Format, weight: Encoded, bias: Tensor | None) -> None:
    """Error at most twice that of PyTorch with weights in the dtype of x, each against float64."""
    decoded = fmt.decode(weight)
    exact = x.double() @ decoded.double().T
    if bias is not None:
        exact = exact + bias.double()
    error = (run(x, fmt, weight, bias).double() - exact).norm()
    theirs = (F.linear(x, decoded.to(x.dtype), bias).double() - exact).norm()
    assert float(error) <= 2 * float(theirs) + 1e-6 * float(exact.norm())


@every_format
def test_error_is_that_of_a_product_of_16_bits(fmt: Format) -> None:
    x, bias = draw(2, 192, seed=2).bfloat16(), draw(9, seed=3).bfloat16()
    check(x, fmt, encoded_weight(fmt, 9, 192), bias)


@pytest.mark.parametrize("fmt", [Integer(64), FP4H(32)], ids=repr)
@pytest.mark.parametrize(("inputs", "rows", "width"), SHAPES)
def test_every_shape(inputs: int, rows: int, width: int, fmt: Format) -> None:
    x = draw(inputs, width, seed=2).bfloat16()
    check(x, fmt, encoded_weight(fmt, rows, width), None)


@pytest.mark.parametrize("inputs", [3, 16, 17])
@pytest.mark.parametrize("width", [320, 1152])
@pytest.mark.parametrize("fmt", [*FORMATS, Integer(None), Integer(32)], ids=repr)
def test_more_rows_than_a_dot_product_is_for(fmt: Format, width: int, inputs: int) -> None:
    x, bias = draw(inputs, width, seed=2).bfloat16(), draw(67, seed=3).bfloat16()
    check(x, fmt, encoded_weight(fmt, 67, width), bias)


@every_format
def test_tensor_cores_decode_every_weight_exactly(fmt: Format) -> None:
    weight = encoded_weight(fmt, 8, 64)
    got = run(torch.eye(64).bfloat16(), fmt, weight)
    assert torch.equal(got, fmt.decode(weight).T.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_inputs(dtype: torch.dtype) -> None:
    x, bias = draw(2, 96, seed=2).to(dtype), draw(4, seed=3).to(dtype)
    for fmt in (Integer(None), NVFP4(16)):
        check(x, fmt, encoded_weight(fmt, 4, 96), bias)


@every_format
def test_every_weight_is_decoded_exactly(fmt: Format) -> None:
    """Rows of the identity pick one weight each, at every place of a word; nvfp4's base is multiplied in last."""
    weight = encoded_weight(fmt, 8, 64)
    got = run(torch.eye(64)[::9], fmt, weight)
    ulps = 2.0**-22 if fmt.kind == "nvfp4" else 0.0
    torch.testing.assert_close(got, fmt.decode(weight).T[::9], rtol=ulps, atol=0.0)


@pytest.mark.parametrize("fmt", [Integer(64), MXFP4(32)], ids=repr)
@pytest.mark.parametrize("size", [2.0**-40, 2.0**29])
def test_inputs_of_any_size(size: float, fmt: Format) -> None:
    check(draw(1, 64, seed=2).clamp(-2, 2) * size, fmt, encoded_weight(fmt, 8, 64), None)


@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_sums_that_are_split_and_not(multiprocessors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MULTIPROCESSORS", multiprocessors)
    fmt = NVFP4(16)
    x, bias = draw(2, 1088, seed=2).bfloat16(), draw(7, seed=3).bfloat16()
    weight = encoded_weight(fmt, 7, 1088)
    check(x, fmt, weight, bias)


def parts_of(fmt: Format, rows: int, width: int) -> list[Tensor | None]:
    weight = encoded_weight(fmt, rows, width)
    parts = [pack_nibbles(weight.codes), weight.grid.scales, weight.grid.base]
    return [None if t is None else t.to(DEVICE) for t in parts]


@pytest.mark.parametrize("width", [32, 1088])
def test_every_output_is_written_and_no_other_memory(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = draw(3, width).to(DEVICE)
    parts = parts_of(MXFP4(32), 11, width)
    expected = weight_only_linear_ref(x, *parts, None, "mxfp4", 32)
    memory = torch.full((4096,), float("nan"), device=DEVICE)
    used = [0]

    def fake(shape: tuple[int, ...], **_: object) -> Tensor:
        size = torch.Size(shape).numel()
        used.append(used[-1] + size + 64)
        return memory[used[-2] : used[-2] + size].view(shape)

    monkeypatch.setattr(torch, "empty", fake)
    got = weight_only_linear(x, *parts, None, "mxfp4", 32)
    torch.testing.assert_close(got, expected)
    assert len(used) == (2 if width == 32 else 3)  # split sums have memory of their own
    for end in used[1:]:
        assert bool(torch.isnan(memory[end - 64 : end]).all())


def test_no_rows() -> None:
    x = torch.zeros(0, 32, device=DEVICE)
    assert weight_only_linear(x, *parts_of(FP4H(32), 4, 32), None, "fp4h", 32).shape == (0, 4)


def test_bad_arguments_raise() -> None:
    parts = parts_of(FP4H(32), 4, 64)
    x = torch.zeros(2, 64, device=DEVICE)
    with pytest.raises(ValueError, match=r"weight_only_linear: x is torch.float64 \(2, 64\)"):
        weight_only_linear(x.double(), *parts, None, "fp4h", 32)
    with pytest.raises(ValueError, match=r"x is torch.float32 \(64,\), allowed"):
        weight_only_linear(x[0], *parts, None, "fp4h", 32)
    with pytest.raises(ValueError, match="weight_only_linear: codes are"):
        weight_only_linear(x[:, :32], *parts, None, "fp4h", 32)
    with pytest.raises(ValueError, match=r"bias has the shape \(3,\), allowed is \(4,\)"):
        weight_only_linear(x, *parts, torch.zeros(3, device=DEVICE), "fp4h", 32)


def test_operator_compiles_as_a_whole_and_keeps_its_promises() -> None:
    x, bias = draw(2, 32).bfloat16().to(DEVICE), draw(3).bfloat16().to(DEVICE)
    args = (x, *parts_of(FP4H(32), 3, 32), bias, "fp4h", 32)
    torch.library.opcheck(weight_only_linear, args)
    compiled = torch.compile(
        lambda *a: weight_only_linear(*a) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(*args), weight_only_linear(*args) + 1)
