"""The kernels against `Compact.online` and the formats: on a GPU where there is one, else in Triton's interpreter."""

import math

import pytest
import torch
from dirotq_kernels.rotate_plan import Plan, choose
from dirotq_kernels.rotate_quantize import launch, rotate_quantize, rotate_quantize_ref
from dirotq_kernels.transform_slack import transform_slack
from torch import Tensor

from dirotq.formats import FP4H, FP8
from dirotq.transforms import Compact
from tests.support.draws import draw64

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = {"fp4h": FP4H(group=32), "fp8": FP8(group=None, power=True)}
# M, low, r, Hadamard block, bits of the transform: tails of one and of two blocks, ranks in parts and in one.
SHAPES = [(1, 64, 32, 64, 8), (67, 160, 16, 64, 8), (17, 224, 48, 128, 16), (5, 96, 144, 64, 8)]
# NumPy says so in the interpreter, of rows that are not finite.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
every_kind = pytest.mark.parametrize("kind", FORMATS)


def build(low: int, rank: int, block: int = 64, bits: int = 8) -> Compact:
    """A transform whose subspace has some columns that stand out, and the signs of a random draw."""
    width = low + rank
    spread = draw64(width, 1, seed=1).exp()
    subspace = torch.linalg.qr(draw64(width, rank, seed=2) * spread)[0]
    signs = draw64(low, seed=3).sign()
    return Compact(width, rank, block, subspace, signs, bits)


def arguments(compact: Compact) -> list[Tensor | None]:
    scaled = compact.bits == 8
    tensors = [
        compact.subspace,
        compact.subspace_scales if scaled else None,
        compact.correction,
        compact.correction_scales if scaled else None,
        compact.signs,
    ]
    return [None if tensor is None else tensor.to(DEVICE) for tensor in tensors]


def run(compact: Compact, x: Tensor, kind: str, plan: Plan | None = None) -> tuple[Tensor, Tensor]:
    """a (float32) and scale on the CPU, the layout checked."""
    plan = plan or choose(compact.block, compact.high)
    tail = (transform_slack(compact), compact.block, kind)
    a, scale = launch(plan, x.to(DEVICE), *arguments(compact), *tail)
    assert (a.dtype, scale.dtype, scale.shape) == (
        torch.float8_e4m3fn,
        torch.float32,
        (len(x), 1),
    )
    a, low = a.float().cpu(), compact.low_width
    assert a.shape == (len(x), low + 3 * compact.high)
    assert torch.equal(a[:, low : low + compact.high], a[:, low + 2 * compact.high :])
    return a, scale.cpu()


def groups_error(values: Tensor, exact: Tensor) -> Tensor:
    return (values.double() - exact).square().unflatten(-1, (-1, 32)).sum(-1)


def check(
    compact: Compact, x: Tensor, kind: str, plan: Plan | None = None, noise: float = 2.0**-10
) -> float:
    """Compare with the definition; returns the share of differing low values.

    Where the transform's rounding decides between two codes or two scales, either may be taken: the group's error must
    not be worse for it.
    """
    a, scale = run(compact, x, kind, plan)
    exact_low, exact_high = compact.online(x.double())
    assert bool((torch.frexp(scale).mantissa == 0.5).all())
    assert bool(
        (exact_low.abs().amax(1, keepdim=True) <= scale * (256 if kind == "fp4h" else 448)).all()
    )
    low = a[:, : compact.low_width] * scale
    expected = FORMATS[kind].quantize(compact.online(x.float())[0])
    best = groups_error(expected, exact_low)
    # What lies below the smallest scale of a group or code, relative to the bound of the row, may be lost.
    lost = 32 * (scale.double() * 2.0**-9).square()
    assert bool((groups_error(low, exact_low) <= best * (1 + noise) + lost).all())
    first, second = a[:, compact.low_width :].split(compact.high, dim=1)[:2]
    assert float(first.abs().max()) <= 448
    high = (first + second / 16) * scale * 8
    size = exact_high.abs().amax(1, keepdim=True)
    assert bool(((high - exact_high).abs() <= 2.0**-8 * size + scale * 2.0**-8).all())
    return float((low != expected).double().mean())


@every_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_codes_are_the_formats(shape: tuple[int, int, int, int, int], kind: str) -> None:
    rows, low, rank, block, bits = shape
    x = draw64(rows, low + rank, seed=rows) * draw64(rows, 1, seed=5).exp()
    # A tensor core's sums of thousands are not rounded at every step, so that ties are missed by more than in float32.
    most = 1e-3 if kind == "fp4h" else 5e-3
    assert check(build(low, rank, block, bits), x.bfloat16(), kind) < most


@pytest.mark.parametrize(
    "plan",
    [
        Plan(rows=64, columns=64, across=False),
        Plan(
            rows=128, warps=8, columns=64, across=True, stages=2, project_rows=64, project_warps=4
        ),
        Plan(columns=128, across=True, registers=255, project_depth=128, project_stages=2),
    ],
    ids=["down", "across", "wide"],
)
def test_every_plan_computes_the_same(plan: Plan) -> None:
    x = draw64(70, 176, seed=7)
    assert check(build(160, 16), x.bfloat16(), "fp4h", plan) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_inputs_lose_nothing(dtype: torch.dtype) -> None:
    assert check(build(96, 16, 32), draw64(9, 112, seed=8).to(dtype), "fp4h") < 1e-3


def adversaries(compact: Compact) -> Tensor:
    """Rows for which the bound is tight, or the low or the protected part is nearly all or nothing."""
    width, low = compact.width, compact.low_width
    matrix = torch.cat(compact.online(torch.eye(width, dtype=torch.float64)), dim=1)
    longest = torch.linalg.eigh(matrix @ matrix.T)[1][:, -1]
    subspace = torch.linalg.qr(compact._tensors(torch.float64)[0])[0]
    outside = draw64(width, seed=9)
    outside -= subspace @ (subspace.T @ outside)
    outlier = draw64(width, seed=10)
    outlier[3] = 1e6
    small = 2.0**-40 * draw64(width, seed=11)
    rows = [
        subspace @ draw64(compact.high, seed=12),
        subspace[:, 0],
        outside,
        longest,
        outlier,
        small,
    ]
    # One low coordinate alone; one input coordinate alone, in either part.
    rows += [
        matrix[:, 5],
        *torch.eye(width, dtype=torch.float64)[[2, low + 1]],
        subspace[:, 1] * 3e4 + outside,
    ]
    return torch.stack(rows)


@every_kind
def test_no_code_saturates(kind: str) -> None:
    compact = build(96, 32)
    check(compact, adversaries(compact).float(), kind, noise=2.0**-4)


def test_rows_without_extent_and_rows_that_are_not_finite() -> None:
    compact = build(64, 16)
    x = draw64(7, 80).float()
    x[0] = 0.0
    x[1], x[2] = x[1] * 1e-42, x[2] * 2.0**-60  # denormal; below what is kept
    x[3, 4], x[4, 70], x[5, 2] = math.inf, math.nan, 1e30
    a, scale = run(compact, x, "fp4h")
    assert torch.equal(scale[:3], torch.ones(3, 1))
    assert not bool(a[:3].any())
    assert bool(scale[3:6].isnan().all())
    assert torch.equal(a[6:], run(compact, x[6:], "fp4h")[0])


def test_every_output_is_written_and_no_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    compact, made = build(96, 16, 32), {}
    empty = torch.empty

    def poisoned(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        count = math.prod(shape)
        memory = empty(count + 64, dtype=torch.float32, device=device).fill_(math.nan).to(dtype)
        made[shape] = memory
        return memory[:count].view(shape)

    monkeypatch.setattr(torch, "empty", poisoned)
    run(compact, draw64(67, 112).bfloat16(), "fp4h")
    assert len(made) == 7
    for shape, memory in made.items():
        assert bool(memory[: math.prod(shape)].float().isfinite().all())
        assert bool(memory[math.prod(shape) :].float().isnan().all())


def test_the_reference_computes_the_same() -> None:
    compact = build(96, 16, 32)
    x, tail = draw64(2, 9, 112, seed=13).bfloat16(), (0.1, 32, "fp4h")
    got = rotate_quantize(x.to(DEVICE), *arguments(compact), *tail)
    expected = rotate_quantize_ref(x.to(DEVICE), *arguments(compact), *tail)
    assert torch.equal(got[1], expected[1])
    assert float((got[0].float() != expected[0].float()).double().mean()) < 1e-3


def test_it_compiles_as_one_operator() -> None:
    compact = build(64, 16)
    x, tail = draw64(3, 80).bfloat16().to(DEVICE), (0.1, 64, "fp8")

    def scaled(x: Tensor) -> Tensor:
        a, scale = rotate_quantize(x, *arguments(compact), *tail)
        return a.float() * scale

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), scaled(x))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(rotate_quantize, (x, *arguments(compact), *tail), test_utils=checks)


@pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA graphs")
def test_it_runs_in_a_cuda_graph() -> None:
    compact = build(160, 16)
    x, tail = draw64(67, 176).bfloat16().to(DEVICE), (0.1, 64, "fp4h")
    tensors = arguments(compact)
    expected = rotate_quantize(x, *tensors, *tail)
    graph, source = torch.cuda.CUDAGraph(), torch.zeros_like(x)
    with torch.cuda.graph(graph):
        a, scale = rotate_quantize(source, *tensors, *tail)
    source.copy_(x)
    graph.replay()
    assert torch.equal(a.float(), expected[0].float())
    assert torch.equal(scale, expected[1])


def test_no_rows() -> None:
    a, scale = run(build(64, 16), torch.zeros(0, 80), "fp4h")
    assert (a.shape, scale.shape) == ((0, 112), (0, 1))


def test_bad_arguments_raise() -> None:
    compact = build(64, 16)
    good = [torch.zeros(2, 80), *arguments(compact), 0.1, 64, "fp4h"]
    bad = {
        "kind='int4', allowed are fp4h, fp8": (8, "int4"),
        "block=48, allowed are powers of two up to 128": (7, 48),
        "block=256, allowed": (7, 256),
        "slack=nan, allowed are numbers from 0": (6, math.nan),
        "x of torch.float64, allowed are": (0, torch.zeros(2, 80).double()),
        "16 protected of 70 columns": (0, torch.zeros(2, 70)),
        "scales of subspace or of correction, allowed are both and none": (4, None),
        r"signs \[64\] of torch.float32, allowed is \[64\] of torch.int8": (5, torch.ones(64)),
    }
    for message, (place, value) in bad.items():
        with pytest.raises(ValueError, match=message):
            rotate_quantize(*good[:place], value, *good[place + 1 :])


@pytest.mark.parametrize(("low", "rank", "bits"), [(96, 32, 8), (32, 48, 8), (160, 16, 16)])
def test_slack_is_the_most_that_a_vector_grows(low: int, rank: int, bits: int) -> None:
    compact = build(low, rank, bits=bits)
    matrix = torch.cat(compact.online(torch.eye(low + rank, dtype=torch.float64)), dim=1)
    growth = float(torch.linalg.matrix_norm(matrix, 2)) ** 2 - 1
    assert growth <= transform_slack(compact) <= growth + 2.0**-29


@pytest.mark.skipif(DEVICE == "cpu", reason="slow in the interpreter")
@every_kind
@pytest.mark.parametrize(
    "shape", [(4608, 3008, 64, 64, 8), (1009, 12224, 64, 64, 8), (997, 1024, 128, 128, 8)], ids=str
)
def test_large_shapes(shape: tuple[int, int, int, int, int], kind: str) -> None:
    rows, low, rank, block, bits = shape
    x = draw64(rows, low + rank, seed=14) * draw64(1, low + rank, seed=15).exp()
    # A tensor core's sums of thousands are not rounded at every step, so that ties are missed by more than in float32.
    most = 1e-3 if kind == "fp4h" else 5e-3
    assert check(build(low, rank, block, bits), x.bfloat16(), kind) < most


def test_rows_that_lie_apart() -> None:
    """A part of a wider tensor's columns is read where it is."""
    compact = build(64, 16)
    wide = draw64(17, 200).bfloat16().to(DEVICE)
    tail = (transform_slack(compact), 64, "fp4h")
    a, scale = rotate_quantize(wide[:, 40:120], *arguments(compact), *tail)
    same, same_scale = rotate_quantize(wide[:, 40:120].contiguous(), *arguments(compact), *tail)
    assert torch.equal(a.view(torch.uint8), same.view(torch.uint8))
    assert torch.equal(scale, same_scale)


@pytest.mark.skipif(DEVICE == "cpu", reason="7 GB")
def test_more_values_than_32_bits_count() -> None:
    compact = build(4064, 32)
    x = torch.zeros((1 << 31) // 4096 + 3, 4096, dtype=torch.bfloat16, device=DEVICE)
    x[-2:] = draw64(2, 4096).to(x)
    tail = (transform_slack(compact), 64, "fp4h")
    a, scale = rotate_quantize(x, *arguments(compact), *tail)
    last, last_scale = rotate_quantize(x[-2:], *arguments(compact), *tail)
    assert torch.equal(a[-2:].float(), last.float())
    assert torch.equal(scale[-2:], last_scale)
    assert not bool(a[:-2].view(torch.uint8).bitwise_and(0x7F).any())
