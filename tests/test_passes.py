"""Statistics in several passes: the same model as in one, in no more memory than there is."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dirotq
from dirotq import calibrate, passes
from dirotq.models import layout_of
from dirotq.passes import Calls, Passes, fitting, free_bytes
from tests.support.architectures import batch, build
from tests.support.plain import Mlp, Stack, bytes_of, outlier_rows
from tests.support.tiny import build_transformer, transformer_batch

BATCHES = [(outlier_rows(40, 48, seed=seed),) for seed in range(3)]
RTN = dirotq.recipe("method=rtn")
DIROTQ = dirotq.recipe("method=dirotq", "rank=8")
GATE, DOWN = 8 * 48**2, 8 * 96**2  # bytes of the moments of a block of Stack
NAMES = [name for index in range(3) for name in (f"blocks.{index}.gate", f"blocks.{index}.down")]
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, Any]]]] = {
    "pixart": (build_transformer, transformer_batch),
    "flux": (
        lambda: build("FluxTransformer2DModel"),
        lambda seed: batch("FluxTransformer2DModel", seed),
    ),
    "sana": (
        lambda: build("SanaTransformer2DModel"),
        lambda seed: batch("SanaTransformer2DModel", seed),
    ),
}


class Counted:
    """Batches as a function; counts how often they were read to the end."""

    def __init__(self, sizes: tuple[int, ...] = ()) -> None:
        self.read = 0
        self.sizes = sizes

    def __call__(self) -> Iterator[tuple[Tensor]]:
        count = self.sizes[self.read] if self.read < len(self.sizes) else len(BATCHES)
        yield from BATCHES[:count]
        self.read += 1


@pytest.mark.parametrize("name", MODELS)
def test_it_is_bitwise_what_one_pass_gives(name: str) -> None:
    make, one = MODELS[name]
    recipe, batches = dirotq.recipe("method=dirotq", "rank=16"), [one(seed) for seed in range(2)]
    results = []
    for options in ({}, {"memory": 8 * 300**2}, {"stream": "cpu"}):
        model = make()
        report = dirotq.quantize(model, recipe, batches, **options)
        results.append((bytes_of(model.state_dict()), report.layers, model.dirotq_config))
    assert results[0] == results[1]
    assert results[0] == results[2]


@pytest.mark.parametrize(
    ("memory", "reads"),
    [
        (None, 1), (3 * (GATE + DOWN), 1), (3 * (GATE + DOWN) - 1, 2), (GATE + DOWN, 3),
        (DOWN, 6), (1, 6),
    ],
)  # fmt: skip
def test_passes_are_as_few_as_memory_allows(memory: int | None, reads: int) -> None:
    batches = Counted()
    dirotq.quantize(Stack(), RTN, batches, memory=memory)
    assert batches.read == reads


def test_inputs_come_in_forward_order_and_their_memory_goes() -> None:
    model = Stack()
    source = Passes(model, Calls(BATCHES), GATE + DOWN)
    groups = source.groups(layout_of(model).select(model), strict=True)
    moments: list[weakref.ref[Tensor]] = []
    names = []
    for entry in source.statistics(groups):
        assert [moment() for moment in moments] == [None] * len(moments)
        moments.append(weakref.ref(entry.moment))
        names.append(entry.name)
        del entry
    assert names == NAMES


def test_what_fits_is_counted_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    model, cpu = Stack(), torch.device("cpu")
    groups = [(name,) for name in NAMES]
    for memory, number in [
        (1, 1), (GATE, 1), (GATE + DOWN, 2), (2 * GATE + DOWN, 3), (3 * (GATE + DOWN), 6),
    ]:  # fmt: skip
        assert fitting(model, groups, cpu, memory) == number
    # Without a number: nine tenths of what is free beyond twelve moments of the widest input.
    for free, number in [(0, 1), (12 * DOWN + 2 * GATE, 1), (12 * DOWN + 1.2 * (GATE + DOWN), 2)]:
        monkeypatch.setattr(passes, "free_bytes", lambda device, free=free: free)
        assert fitting(model, groups, cpu, None) == number


def test_free_memory_is_within_what_the_machine_has() -> None:
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < free_bytes(torch.device("cpu")) < total


def test_an_iterator_can_be_read_once() -> None:
    one, other = Stack(), Stack()
    dirotq.quantize(one, RTN, iter(BATCHES))
    dirotq.quantize(other, RTN, BATCHES)
    assert bytes_of(one.state_dict()) == bytes_of(other.state_dict())
    message = "the moments of 6 inputs need more than one pass; allowed are a list, or a function"
    with pytest.raises(ValueError, match=message):
        dirotq.quantize(Stack(), RTN, iter(BATCHES), memory=DOWN)
    with pytest.raises(ValueError, match="but each block reads them; allowed are a list"):
        dirotq.quantize(Stack(), RTN, iter(BATCHES), stream="cpu")


@pytest.mark.parametrize("sizes", [(3, 2), (3, 0)], ids=["fewer", "none"])
def test_batches_must_be_as_many_every_time(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"calibration: {sizes[1]} batches, 3 when last read"):
        dirotq.quantize(Stack(), RTN, Counted(sizes), memory=DOWN)


class Shy(Mlp):
    """Calls `up` in every second forward only."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) if self.calls % 2 else self.down(self.gate(x))


def test_a_linear_that_is_never_reached_again_is_named() -> None:
    source = Passes(Shy(), Calls(BATCHES[:1]), None)
    groups = source.groups(["up"], strict=True)
    with pytest.raises(ValueError, match="layer up is not reached by the calibration batches"):
        list(source.statistics(groups))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": 0}, "memory=0, allowed are positive numbers of bytes"),
        ({"memory": 5, "statistics": []}, "memory=5 has no use beside statistics="),
        ({"stream": "cpu", "statistics": []}, "stream=cpu has no use beside statistics="),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dirotq.quantize(Mlp(), RTN, BATCHES, **options)


def test_the_report_has_the_seconds_of_every_stage() -> None:
    report = dirotq.quantize(Stack(), DIROTQ, BATCHES, memory=DOWN)
    assert set(report.stages) == {
        "resume", "trace", "statistics", "transform", "rounding", "report", "store",
    }  # fmt: skip
    assert all(seconds > 0 for seconds in report.stages.values())
    assert 0.9 * report.seconds < sum(report.stages.values()) <= report.seconds
    assert report.peak_bytes == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rotation", ["compact", "dense", "none"])
@pytest.mark.parametrize("basis", ["pca", "joint", "random", "identity"])
def test_moments_that_stay_on_the_gpu(basis: str, rotation: str) -> None:
    recipe = dirotq.recipe("method=dirotq", "rank=8", f"basis={basis}", f"rotation={rotation}")
    reference = dirotq.quantize(Stack(), recipe, BATCHES)
    batches = [(x.cuda(),) for (x,) in BATCHES]
    for model, options in [
        (Stack().cuda(), {}), (Stack().cuda(), {"memory": 1}), (Stack(), {"stream": "cuda"}),
    ]:  # fmt: skip
        home = model.head.weight.device
        report = dirotq.quantize(model, recipe, batches, **options)
        assert report.peak_bytes > 0
        assert {tensor.device for tensor in model.state_dict().values()} == {home}
        for row, expected in zip(report.layers, reference.layers, strict=True):
            # Products in another order turn codes near ties: the same quality, not the same bits.
            assert row.output_snr_db == pytest.approx(expected.output_snr_db, abs=1.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_moments_on_the_gpu_are_those_of_float64(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(48, 2)).to("cuda", dtype)
    batches = [(x.to("cuda", dtype),) for (x,) in BATCHES]
    (entry,) = calibrate.collect(model, ["0"], batches)
    x = torch.cat([x for (x,) in batches]).double().cpu()
    expected = x.T @ x / len(x)
    # Sums of 40 products in float32: 40 units of 2^-24 of the largest entry.
    assert float((entry.moment - expected).abs().max()) <= 3e-6 * float(expected.abs().max())
    assert torch.equal(entry.moment, entry.moment.T)
