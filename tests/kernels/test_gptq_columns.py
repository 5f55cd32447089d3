"""The kernel is bitwise GPTQ's loop in PyTorch: on a GPU where there is one, else in Triton's interpreter."""

import importlib

import pytest
import torch
from dirotq_kernels import gptq_columns as module
from dirotq_kernels.gptq_columns import gptq_columns, gptq_columns_ref
from torch import Tensor

from dirotq.formats import FP4H, FP8, MXFP4, NVFP4, Format, Integer
from dirotq.rounding import GPTQOptions, gptq, search_grid
from tests.support.draws import draw64
from tests.support.rounding import problem

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The package's name for it is the function's.
rounding = importlib.import_module("dirotq.rounding.gptq")
FORMATS: list[Format] = [
    Integer(group=8),
    Integer(group=8, bits=8),
    Integer(group=8, unsigned=True),
    Integer(group=8, symmetric=False),
    Integer(group=8, bits=8, symmetric=False),
    NVFP4(group=16),
    NVFP4(group=16, scope="tensor"),
    MXFP4(group=32),
    FP4H(group=32),
]
every_format = pytest.mark.parametrize("fmt", FORMATS, ids=repr)
SHAPES = [(1, 1), (5, 37), (17, 3)]
if DEVICE == "cuda":
    SHAPES += [(128, 3072), (128, 21504), (64, 1153)]


def block(columns: int, rows: int, fmt: Format, seed: int = 0) -> tuple[Tensor | None, ...]:
    """Weights, targets that earlier blocks moved, feedback with junk below its diagonal, steps and zero points."""
    weight = draw64(columns, rows, seed=seed) * draw64(1, rows, seed=1).exp()
    targets = weight + 0.1 * draw64(columns, rows, seed=2)
    grid = fmt.grid(weight.T.float())
    parts = (None if x is None else x.T.contiguous() for x in fmt.expand(grid, columns))
    return weight, targets, 0.3 * draw64(columns, columns, seed=3), *parts


def check(fmt: Format, *arguments: Tensor | None) -> None:
    """Bits of the kernel and the reference against the loop with the format, on the CPU and the device."""
    kernel = rounding._kernel_arguments(fmt)
    on_device = tuple(None if x is None else x.to(DEVICE) for x in arguments)
    before = [None if x is None else x.clone() for x in on_device]
    found = [gptq_columns(*on_device, *kernel), gptq_columns_ref(*on_device, *kernel)]
    for x, y in zip(on_device, before, strict=True):
        assert x is None or torch.equal(x, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounding, "_takes_kernel", lambda x: False)
        for inputs in (on_device, arguments):
            weight, targets, feedback, *steps = inputs
            found.append(rounding._round_block(weight, targets.clone(), feedback, fmt, *steps))
    codes, errors = found.pop()
    assert codes.dtype == fmt.code_dtype
    for got in found:
        assert got[0].dtype == codes.dtype
        assert torch.equal(got[0].cpu(), codes)
        assert torch.equal(got[1].cpu().view(torch.int64), errors.view(torch.int64))


@every_format
@pytest.mark.parametrize(("columns", "rows"), SHAPES)
def test_kernel_is_bitwise_the_loop(columns: int, rows: int, fmt: Format) -> None:
    check(fmt, *block(columns, rows, fmt, seed=columns))


@every_format
def test_ties_zeros_and_targets_out_of_range(fmt: Format) -> None:
    """Quarters of a step, around the ends of all ranges too; 0 and -0, tiny and huge ones, some next to a tie."""
    quarters = torch.cat([torch.arange(-48, 65), torch.arange(502, 518), torch.arange(1014, 1030)])
    quarters = torch.cat([quarters, -quarters[113:]]).double() / 4
    special = torch.tensor([0.0, -0.0, 1e-300, -1e-45, 1e30, -1e30, 2.5 + 1e-12, 2.5 - 1e-12])
    targets = torch.cat([quarters, special.double(), -special.double()])[None]
    step = torch.full(targets.shape, 0.75)
    zero = None
    if isinstance(fmt, Integer) and not fmt.symmetric:
        # Not integers (`Integer`): the sums are rounded, and ties among them lie elsewhere.
        zero = (torch.arange(targets.shape[1])[None] % 16 + 0.375).bfloat16()
    weight = torch.where(targets.abs() < 1e9, targets, -0.0)
    check(fmt, weight, targets * 0.75, torch.zeros(1, 1).double(), step, zero)


def test_products_are_not_fused_into_sums() -> None:
    """1 + 2^-30 squared has a bit that float64 rounds away, unless it is added to minus one before."""
    error = 1 + 2.0**-30
    weight = torch.tensor([[error], [0.0]], dtype=torch.float64)
    targets = torch.tensor([[0.0], [-1.0 - 2.0**-29]], dtype=torch.float64)
    feedback = torch.tensor([[0.0, error], [0.0, 0.0]], dtype=torch.float64)
    step = torch.full((2, 1), 2.0**-70)
    fmt = Integer(group=None, bits=8)
    check(fmt, weight, targets, feedback, step, None)
    codes, errors = gptq_columns(*(x.to(DEVICE) for x in (weight, targets, feedback, step)), bits=8)
    assert codes.tolist() == [[0], [0]]
    assert errors.tolist() == [[error], [0.0]]


@pytest.mark.parametrize("fmt", [FP4H(group=32), Integer(group=8, symmetric=False)], ids=repr)
@pytest.mark.parametrize(("rows", "warps"), [(1, 1), (2, 1), (16, 1), (8, 2)], ids=str)
def test_programs_of_every_size(rows: int, warps: int, fmt: Format) -> None:
    columns, targets, feedback, step, zero = (
        None if x is None else x.to(DEVICE) for x in block(9, 5, fmt)
    )
    kind, bits, signed = rounding._kernel_arguments(fmt)
    codes = torch.zeros(9, 5, dtype=fmt.code_dtype, device=DEVICE)
    errors = torch.zeros(9, 5, dtype=torch.float64, device=DEVICE)
    code_range = module._range(bits, signed)
    module._launch(
        columns, targets, feedback, step, zero, codes, errors, kind == "e2m1", code_range, rows, warps
    )  # fmt: skip
    expected = gptq_columns_ref(columns, targets, feedback, step, zero, kind, bits, signed)
    assert torch.equal(codes, expected[0])
    assert torch.equal(errors, expected[1])


@every_format
@pytest.mark.parametrize("size", [16, 40])
def test_gptq_finds_the_same_codes_with_it(
    fmt: Format, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer programs: the interpreter runs one after the other.
    monkeypatch.setattr(module, "_TARGETS_PER_PROGRAM", 1 << 14)
    case = problem(3, rows=24, width=37, samples=30)
    moment = case.moment.clone()
    moment[7], moment[:, 7] = 0.0, 0.0
    weight, moment = case.weight.to(DEVICE), moment.to(DEVICE)
    grid = search_grid(weight, fmt, moment.diagonal())
    found = []
    for used in (False, True):
        monkeypatch.setattr(rounding, "_takes_kernel", lambda x, used=used: used)
        options = GPTQOptions(block=size)
        encoded = gptq(weight, moment, fmt, grid=grid, options=options)
        assert encoded is not None
        found.append(encoded.codes)
    assert found[0].dtype == found[1].dtype == fmt.code_dtype
    assert torch.equal(found[0], found[1])


def test_formats_without_a_kernel_are_rounded_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "_takes_kernel", lambda x: True)
    case, fmt = problem(0), FP8(group=None)
    assert rounding._kernel_arguments(fmt) is None
    assert gptq(case.weight.to(DEVICE), case.moment.to(DEVICE), fmt) is not None


def test_tensors_whose_rows_are_not_adjacent_in_memory() -> None:
    fmt = Integer(group=8, symmetric=False)
    arguments = [None if x is None else x.T.contiguous().T for x in block(12, 5, fmt)]
    larger = torch.full((40, 30), float("nan"), dtype=torch.float64)
    larger[17:29, 9:21] = arguments[2].T
    arguments[2] = larger[17:29, 9:21].T
    check(fmt, *arguments)


def test_every_output_is_written_and_no_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [None if x is None else x.to(DEVICE) for x in block(9, 11, FP4H(group=32))]
    codes = torch.full((9 * 11 + 64,), 99, dtype=torch.int8, device=DEVICE)
    errors = torch.full((9 * 11 + 64,), float("nan"), dtype=torch.float64, device=DEVICE)
    outputs = codes[:99].view(9, 11), errors[:99].view(9, 11)
    monkeypatch.setattr(module, "_outputs", lambda *arguments: outputs)
    module.gptq_columns._init_fn(*arguments, "e2m1")
    assert int(outputs[0].abs().max()) <= 7
    assert bool(torch.isfinite(outputs[1]).all())
    assert bool((codes[99:] == 99).all())
    assert bool(torch.isnan(errors[99:]).all())


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)], ids=str)
def test_nothing_to_round(shape: tuple[int, int]) -> None:
    empty = torch.zeros(shape, dtype=torch.float64, device=DEVICE)
    square = torch.zeros(shape[0], shape[0], dtype=torch.float64, device=DEVICE)
    codes, errors = gptq_columns(empty, empty, square, empty.float())
    assert codes.shape == errors.shape == shape


def test_in_a_compiled_graph() -> None:
    fmt = Integer(group=8, symmetric=False)
    arguments = [None if x is None else x.to(DEVICE) for x in block(3, 5, fmt)]
    kernel = rounding._kernel_arguments(fmt)

    def run(*arguments: Tensor) -> Tensor:
        codes, errors = gptq_columns(*arguments, *kernel)
        return errors + codes

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), run(*arguments))
    torch.library.opcheck(torch.ops.dirotq.gptq_columns.default, (*arguments, *kernel))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "nf4"}, "kind='nf4', allowed are integer, e2m1"),
        ({"bits": 5}, r"bits=5, allowed for integer are \(4, 8\)"),
        ({"kind": "e2m1", "bits": 8}, r"bits=8, allowed for e2m1 are \(4,\)"),
        ({"targets": torch.zeros(3, 4).double()}, r"targets \(3, 4\), expected \(3, 5\)"),
        ({"columns": torch.zeros(3).double()}, r"columns \(3,\), expected"),
        ({"step": torch.zeros(3, 5).double()}, "step is torch.float64, allowed are"),
        ({"zero": torch.zeros(3, 5).half()}, "zero is torch.float16, allowed are"),
        ({"feedback": torch.zeros(3, 4).double()}, r"feedback \(3, 4\), expected \(3, 3\)"),
        ({"feedback": torch.zeros(3, 3)}, "feedback is torch.float32, allowed are torch.float64"),
    ],
    ids=str,
)
def test_bad_arguments_raise(changes: dict[str, object], message: str) -> None:
    arguments = dict(
        zip(("columns", "targets", "feedback", "step"), block(3, 5, Integer(8)), strict=False)
    )
    with pytest.raises(ValueError, match=message):
        gptq_columns(**{**arguments, **changes})
