"""A run that was killed goes on: what is finished is not made again, and the result is bitwise the same."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

import dirotq
from dirotq.models import Layout, layout_of
from dirotq.resume import Finished, Shelf, run_of
from tests.support import architectures
from tests.support.plain import Stack, bytes_of, outlier_rows

BATCHES = [(outlier_rows(40, 48, seed=seed),) for seed in range(3)]
RECIPE = dirotq.recipe("method=dirotq", "rank=8", "rounding=rtn", "scale_search=false")
NAMES = [name for index in range(3) for name in (f"blocks.{index}.gate", f"blocks.{index}.down")]
OPTIONS: list[dict[str, Any]] = [
    {}, {"memory": 8 * (48**2 + 96**2)}, {"stream": "cpu"}, {"stream": "cpu", "memory": 1},
]  # fmt: skip
IDS = ["one-pass", "passes", "stream", "stream-and-passes"]


@pytest.fixture(scope="module")
def expected() -> tuple[dict[str, bytes], Any, Any]:
    return quantized()


def quantized(
    *, model: nn.Module | None = None, **options: Any
) -> tuple[dict[str, bytes], Any, Any]:
    """Tensors, rows of the report and configuration of a quantized Stack."""
    model = model or Stack()
    options = {"batches": BATCHES, **options}
    report = dirotq.quantize(model, RECIPE, **options)
    return bytes_of(model.state_dict()), report.layers, model.dirotq_config


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the inputs that are quantized."""
    names: list[str] = []
    original = Shelf.put

    def put(self: Shelf, members: tuple[str, ...], finished: Finished) -> Finished:
        names.append(members[0])
        return original(self, members, finished)

    monkeypatch.setattr(Shelf, "put", put)
    return names


def stopping(after: int, end: Callable[[], Any]) -> Callable[[Sequence[str]], Iterable[str]]:
    def progress(names: Sequence[str]) -> Iterator[str]:
        yield from names[:after]
        end()

    return progress


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("after", [0, 3])
def test_it_goes_on_where_it_stopped(
    after: int, options: dict[str, Any], tmp_path: Path, made: list[str], expected: Any
) -> None:
    model = Stack()
    before = bytes_of(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        quantized(model=model, workdir=tmp_path, progress=stopping(after, interrupt), **options)
    assert bytes_of(model.state_dict()) == before
    assert made == NAMES[:after]
    assert quantized(model=model, workdir=tmp_path, **options) == expected
    assert made == NAMES
    assert quantized(workdir=tmp_path, **options) == expected
    assert made == NAMES


def test_a_killed_process_goes_on(tmp_path: Path, made: list[str], expected: Any) -> None:
    options: dict[str, Any] = {"stream": "cpu"}
    code = (
        "import os, signal, torch\n"
        "torch.set_num_threads(1)\n"
        "from tests.test_resume import quantized, stopping\n"
        "progress = stopping(3, lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
        f"quantized(workdir={str(tmp_path)!r}, progress=progress, **{options!r})\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL
    assert quantized(workdir=tmp_path, **options) == expected
    assert made == NAMES[3:]


def test_a_streamed_run_goes_on_at_its_block(tmp_path: Path, expected: Any) -> None:
    ran: list[int] = []

    def watched() -> Stack:
        model = Stack()
        for index, block in enumerate(model.blocks):
            block.norm.register_forward_hook(lambda *_, index=index: ran.append(index))
        return model

    options: dict[str, Any] = {"workdir": tmp_path, "stream": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        quantized(model=watched(), progress=stopping(5, interrupt), **options)
    traced = [0, 1, 2, 0, 1, 2]  # the whole forward, and the same block by block
    assert ran == [*traced, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    ran.clear()
    assert quantized(model=watched(), **options) == expected
    assert ran == [*traced, 2, 2, 2]


def test_runs_of_any_kind_share_what_is_finished(
    tmp_path: Path, made: list[str], expected: Any
) -> None:
    for after, options in enumerate(OPTIONS, 1):
        with pytest.raises(KeyboardInterrupt):
            quantized(workdir=tmp_path, progress=stopping(after, interrupt), **options)
    assert made == NAMES[: len(OPTIONS)]
    assert quantized(workdir=tmp_path) == expected
    assert made == NAMES


def test_given_statistics_are_gone_on_with(tmp_path: Path, made: list[str], expected: Any) -> None:
    statistics = dirotq.calibrate.collect(Stack(), [*NAMES, "blocks.0.up"], BATCHES)[:2]
    layout = Layout("mine", (), (r"blocks\.0\.(gate|up|down)",))
    options: dict[str, Any] = {
        "workdir": tmp_path, "statistics": statistics, "layout": layout,
    }  # fmt: skip
    first = quantized(**options)
    assert first == quantized(**options)
    assert made == NAMES[:2]
    # The same diagonals: what was worked on is another calibration.
    shrunk = [replace(its, moment=its.moment.diagonal().diag()) for its in statistics]
    assert quantized(**{**options, "statistics": shrunk}) != first
    assert made == NAMES[:2] * 2


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, -1),
        lambda path: flip(path, path.read_bytes().index(b"blocks.1.down")),
        lambda path: flip(path, path.read_bytes().index(b"weight_snr_db")),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
    ],
    ids=["tensor", "name", "json", "cut", "empty"],
)
def test_a_damaged_entry_is_made_again(
    damage: Callable[[Path], None],
    tmp_path: Path,
    made: list[str],
    expected: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    quantized(workdir=tmp_path)
    made.clear()
    (path,) = (
        p for p in tmp_path.rglob("*.safetensors") if b"blocks.1.down.codes" in p.read_bytes()
    )
    damage(path)
    assert quantized(workdir=tmp_path) == expected
    assert made == ["blocks.1.down"]
    assert f"blocks.1.down: {path} is damaged" in caplog.text
    made.clear()
    assert quantized(workdir=tmp_path) == expected
    assert made == []


def other_weight() -> Stack:
    model = Stack()
    model.embed.weight.data[0, 0] += 1e-6
    return model


def other_structure() -> Stack:
    model = Stack()
    model.blocks[0].norm.eps = 1e-4
    return model


@pytest.mark.parametrize(
    "changed",
    [
        {"model": other_weight},
        {"model": other_structure},
        {"batches": [*BATCHES[:2], (BATCHES[2][0] + 1e-6,)]},
        {"batches": BATCHES[:2]},
        {"layout": Layout("mine", (), (r"blocks\.\d\.down",), (r"blocks\.\d\.(gate|up)",))},
        {"calibration": "other"},
    ],
    ids=["weight", "structure", "batch", "batches", "layout", "identity"],
)
def test_what_changes_the_result_is_another_run(
    changed: dict[str, Any], tmp_path: Path, made: list[str]
) -> None:
    quantized(workdir=tmp_path)
    made.clear()
    options = {key: value() if callable(value) else value for key, value in changed.items()}
    quantized(workdir=tmp_path, **options)
    assert made == NAMES


def test_notes_of_diffusers_in_a_configuration_do_not_count() -> None:
    """Which of its values are defaults stands in it as a list, in another order for every process."""
    model = architectures.build("FluxTransformer2DModel")
    runs = []
    for defaults in (["num_layers", "patch_size"], ["patch_size", "num_layers"]):
        model._internal_dict = FrozenDict({**model.config, "_use_default_values": defaults})
        runs.append(run_of(model, RECIPE, layout_of(model), "", torch.device("cpu")))
    model._internal_dict = FrozenDict({**model.config, "patch_size": 2})
    runs.append(run_of(model, RECIPE, layout_of(model), "", torch.device("cpu")))
    assert runs[0] == runs[1] != runs[2]


def test_an_identity_saves_reading_the_batches(tmp_path: Path, expected: Any) -> None:
    read = []

    def batches() -> Iterator[tuple[Tensor]]:
        yield from BATCHES
        read.append(1)

    assert quantized(batches=batches, workdir=tmp_path) == expected
    assert len(read) == 2
    assert quantized(batches=batches, workdir=tmp_path, calibration="mine") == expected
    assert len(read) == 3
    with pytest.raises(ValueError, match="goes by a hash of their content; calibration= would do"):
        quantized(batches=iter(BATCHES), workdir=tmp_path)
    assert quantized(batches=iter(BATCHES), workdir=tmp_path, calibration="mine") == expected


@pytest.mark.parametrize("bits", ["w8a8_int8", "w16a16", "w4a4_nvfp4", "w4a16_int4"])
@pytest.mark.parametrize("method", ["dirotq", "svdquant"])
def test_layers_of_every_form_come_back(bits: str, method: str, tmp_path: Path) -> None:
    recipe = dirotq.recipe(f"method={method}", f"bits={bits}", "rank=8")
    results = []
    for _ in range(2):
        model = Stack(blocks=1).to(torch.bfloat16)
        batches = [(x.bfloat16(),) for (x,) in BATCHES]
        report = dirotq.quantize(model, recipe, batches, workdir=tmp_path)
        results.append((bytes_of(model.state_dict()), report.layers, model(batches[0][0]).tolist()))
        assert model.blocks[0].gate.input is model.blocks[0].up.input
    assert results[0] == results[1]
