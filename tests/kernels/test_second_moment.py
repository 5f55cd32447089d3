"""Against sums in float64: on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from dirotq_kernels import second_moment as module
from dirotq_kernels.second_moment import mirror_, second_moment_, second_moment_ref
from torch import Tensor

from tests.support.draws import draw

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1), (1, 64), (17, 130), (131, 48), (300, 257)]
if DEVICE == "cuda":
    SHAPES += [(4608, 1152), (4608, 3072)]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_total = pytest.mark.parametrize("total_dtype", [torch.float32, torch.float64], ids=str)


def relative(got: Tensor, expected: Tensor, x: Tensor) -> Tensor:
    """Errors over sqrt(S_ii S_jj), which no sum of the products can exceed."""
    sizes = x.double().square().sum(0).sqrt()
    return (got.double() - expected).abs() / (sizes[:, None] * sizes)


@every_dtype
@every_total
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_error_is_that_of_float32_sums(
    rows: int, width: int, total_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    x = (draw(rows, width, seed=width) * draw(width, seed=1).exp()).to(DEVICE, dtype)
    # Twos above the diagonal: nothing is written there before it is mirrored.
    total = torch.full((width, width), 2.0, dtype=total_dtype, device=DEVICE).triu(1)
    second_moment_(total, x)
    assert torch.equal(total.triu(1), torch.full_like(total, 2.0).triu(1))
    expected = torch.zeros(width, width, dtype=torch.float64, device=DEVICE)
    second_moment_ref(expected, x)
    error = relative(total.tril(), expected, x)
    # One of the sum's last places for each addition, and, for float32 totals, half a one for the rounding of the sum.
    assert float(error.max()) <= (rows + 1) * 2.0**-23
    assert float(error.square().mean().sqrt()) <= 2.0**-20
    mirror_(total)
    assert torch.equal(total, total.tril() + total.tril(-1).T)


def test_float32_is_as_precise_as_pytorch() -> None:
    """Within twice the error of a float32 product; tensor cores cut sums off where others round, so eight times there.

    Two bfloat16 terms instead of three would have twelve times.
    """
    x = draw(300, 96).to(DEVICE)
    total = torch.zeros(96, 96, dtype=torch.float64, device=DEVICE)
    expected = total.clone()
    second_moment_(total, x)
    second_moment_ref(expected, x)
    ours, pytorch = (
        float(relative(got, expected, x).square().mean().sqrt())
        for got in (total, (x.T @ x).tril())
    )
    assert ours <= (2 if DEVICE == "cpu" else 8) * pytorch


@every_dtype
@every_total
def test_sums_of_integers_are_exact_and_accumulate(
    total_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    """Integers whose sums stay below 2^24; those of float32 have more bits than one bfloat16 holds."""
    largest = 700 if dtype == torch.float32 else 100
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(-largest, largest + 1, (40, 150), generator=generator).to(DEVICE, dtype)
    total = torch.zeros(150, 150, dtype=total_dtype, device=DEVICE)
    expected = total.double()
    for part in (x[:1], x[1:18], x[18:]):
        second_moment_(total, part)
        second_moment_ref(expected, part)
    mirror_(total)
    assert torch.equal(total.double(), expected.tril() + expected.tril(-1).T)


@every_dtype
@pytest.mark.parametrize(
    "tile",
    [(64, 64, 64, 4, 4), (128, 64, 64, 4, 3), (128, 128, 64, 8, 3), (256, 128, 64, 8, 3)],
    ids=str,
)
def test_tiles_of_every_shape(tile: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    """More rows of tiles than are grouped, and a last one that is not full."""
    width = 9 * tile[0] + 7 if tile[0] == 64 else 2 * tile[0] + 7
    x = draw(5, width).mul(8).round().to(DEVICE, dtype)
    total = torch.zeros(width, width, device=DEVICE)
    module._launch(total, x, *tile)
    expected = torch.zeros_like(total)
    second_moment_ref(expected, x)
    assert torch.equal(total, expected)


@every_dtype
def test_more_rows_than_are_summed_in_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LONGEST", 32)
    x = draw(70, 20).mul(8).round().to(DEVICE, dtype)
    x[0] = 0.0
    total = torch.full((20, 20), 2.0**40, dtype=torch.float64, device=DEVICE)
    expected = total.clone()
    second_moment_(total, x)
    second_moment_ref(expected, x)
    assert torch.equal(total, expected)


def test_rows_that_are_not_adjacent_in_memory() -> None:
    x = draw(30, 40).bfloat16().to(DEVICE)
    first, second = (torch.zeros(30, 30, device=DEVICE) for _ in range(2))
    second_moment_(first, x.T)
    second_moment_(second, x.T.contiguous())
    assert torch.equal(first, second)


def test_no_memory_but_the_total_is_written() -> None:
    memory = torch.full((100 + 37 * 37 + 100,), float("nan"), device=DEVICE)
    total = memory[100:-100].view(37, 37)
    total.zero_()
    second_moment_(total, draw(3, 37).to(DEVICE))
    mirror_(total)
    assert bool(torch.isfinite(total).all())
    assert bool(torch.isnan(memory[:100]).all())
    assert bool(torch.isnan(memory[-100:]).all())


def test_nothing_to_add() -> None:
    total = draw(5, 5).to(DEVICE)
    before = total.clone()
    second_moment_(total, torch.zeros(0, 5, device=DEVICE))
    assert torch.equal(total, before)
    empty = torch.zeros(0, 0, device=DEVICE)
    second_moment_(empty, torch.zeros(3, 0, device=DEVICE))
    mirror_(empty)


def test_in_a_compiled_graph() -> None:
    def run(total: Tensor, x: Tensor) -> Tensor:
        second_moment_(total, x)
        mirror_(total)
        return total + 1

    x = draw(9, 24).to(DEVICE)
    totals = [torch.zeros(24, 24, device=DEVICE) for _ in range(2)]
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(totals[0], x), run(totals[1], x))
    assert torch.equal(totals[0], totals[1])
    torch.library.opcheck(torch.ops.dirotq.second_moment_.default, (totals[0], x))
    torch.library.opcheck(torch.ops.dirotq.mirror_.default, (totals[0],))


@pytest.mark.parametrize(
    ("total", "x", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 4), r"total \(3, 4\), allowed are contiguous square"),
        (torch.zeros(4, 8)[:, ::2], torch.zeros(2, 4), r"total \(4, 4\), allowed are contiguous"),
        (torch.zeros(4, 4).half(), torch.zeros(2, 4), "total is torch.float16, allowed are"),
        (torch.zeros(4, 4), torch.zeros(2, 5), r"x \(2, 5\) and total \(4, 4\), expected \[n, K\]"),
        (torch.zeros(4, 4), torch.zeros(4), r"x \(4,\) and total \(4, 4\)"),
        (torch.zeros(4, 4), torch.zeros(2, 4).double(), "x is torch.float64, allowed are"),
    ],
    ids=str,
)
def test_bad_arguments_raise(total: Tensor, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        second_moment_(total, x)
    if total.shape != (4, 4) or not total.is_contiguous():
        with pytest.raises(ValueError, match="mirror_: total"):
            mirror_(total)


@pytest.mark.skipif(DEVICE == "cpu", reason="11 GB")
def test_more_numbers_than_32_bits_count() -> None:
    width = 46400
    x = torch.zeros(3, width, dtype=torch.bfloat16, device=DEVICE)
    x[:, -200:] = draw(3, 200).bfloat16().to(DEVICE)
    total = torch.zeros(width, width, device=DEVICE)
    second_moment_(total, x)
    mirror_(total)
    expected = torch.zeros(200, 200, device=DEVICE)
    second_moment_(expected, x[:, -200:])
    mirror_(expected)
    assert torch.equal(total[-200:, -200:], expected)
    assert not bool(total[:-200].any())
