"""Loading a packed checkpoint: seconds and memory, in a new process that does nothing else.

Memory of the host is what the process owns (RssAnon of Linux); the file, mapped into memory, is the system's, which can
do without it. It was written just before: the seconds are without a disk's.
"""

from __future__ import annotations

import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar, Self

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn

import dirotq
from dirotq import digests
from dirotq.checkpoint import describe
from dirotq.linear import QuantLinear
from dirotq.models import layout_of, rewrite
from dirotq.recipes import Recipe
from dirotq.settings import Settings
from experiments.bench.architectures import Architecture
from experiments.bench.building import Precision, Source, collect_garbage, model_of
from experiments.bench.record import Recorder, Row

WHAT = (
    "a packed transformer of random weights loaded from a file in the system's memory, in a new process; load_seconds: "
    "from nothing to the model on the device; peak_bytes: most memory allocated on the GPU; host_bytes: growth of the "
    "process's anonymous memory at its most; bf16_bytes: what the 16-bit model would have"
)
WAYS = ("load", "from_pretrained")
_EVERY = 0.002  # seconds between two looks at the host's memory
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class LoadBench(Settings):
    """architecture, config, text: of `Architecture`. precision: of packed linears, as `Precision` has it.

    ways: "load", `dirotq.load` into a model that accelerate made without weights; "from_pretrained", diffusers' own
    with a `device_map`.
    """

    LISTS: ClassVar[tuple[str, ...]] = ("ways",)

    architecture: str
    config: dict[str, Any]
    text: int
    precision: str
    ways: tuple[str, ...] = WAYS

    def __post_init__(self) -> None:
        if Precision.of(self.precision).kind != "quantized":
            raise ValueError(f"precision={self.precision}, allowed are files of conf/bits")
        for way in self.ways:
            if way not in WAYS:
                raise ValueError(f"ways={way}, allowed are {', '.join(WAYS)}")
        Architecture(self.architecture, self.config, self.text)

    def run(self, recorder: Recorder, device: torch.device, seed: int) -> None:
        """Write the checkpoints and load each; they are gone afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            for way in self.ways:
                name = f"{self.precision} {way}"
                recorder.measure(name, partial(self._row, way, Path(folder), device, seed))

    def _row(self, way: str, folder: Path, device: torch.device, seed: int) -> Row:
        architecture = Architecture(self.architecture, self.config, self.text)
        row: Row = {"precision": self.precision, "way": way, "bf16_bytes": bf16_bytes(architecture)}
        if not (folder / way).exists():
            start = time.monotonic()
            self._write(architecture, folder, Source(device, seed))
            row["write_seconds"] = round(time.monotonic() - start, 2)
            collect_garbage(device)
        files = [file for file in (folder / way).iterdir() if file.suffix == ".safetensors"]
        row["file_bytes"] = sum(file.stat().st_size for file in files)
        # No memory of the building, used or free, is in a new process.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured = pool.submit(loaded, way, architecture, folder / way, str(device))
            return {**row, **measured.result()}

    def _write(self, architecture: Architecture, folder: Path, source: Source) -> None:
        precision = Precision.of(self.precision)
        model, _ = model_of(architecture, precision, source)
        describe_as_quantized(model, architecture, precision)
        if "load" in self.ways:
            dirotq.save(model, folder / "load")
        if "from_pretrained" in self.ways:
            model.save_pretrained(folder / "from_pretrained")  # type: ignore[operator]


def describe_as_quantized(
    model: nn.Module, architecture: Architecture, precision: Precision
) -> None:
    """Give a model of `model_of` what `dirotq.quantize` would have: only the calibration is none."""
    layers = {n: its for n, its in model.named_modules() if isinstance(its, QuantLinear)}
    with torch.device("meta"):
        original = architecture.instance()
    describe(
        model,
        recipe_of(precision),
        layers,
        checksums=digests.of_each({name: its.state_dict() for name, its in layers.items()}),
        calibration="none, random codes",
        dtype=torch.bfloat16,
        rewrites=rewrite.apply(original, layout_of(original)),
    )


def recipe_of(precision: Precision) -> Recipe:
    """The recipe whose layers have the form that `precision` names."""
    bits = f"bits={precision.name.partition(':')[0]}"
    if not precision.rank:
        return dirotq.recipe("method=rtn", bits)
    return dirotq.recipe("method=dirotq", bits, f"rank={precision.rank:g}", "protect=fp8x2")


def bf16_bytes(architecture: Architecture) -> int:
    """Bytes of the model's parameters in bfloat16."""
    with torch.device("meta"):
        model = architecture.instance()
    return sum(2 * parameter.numel() for parameter in model.parameters())


def loaded(way: str, architecture: Architecture, folder: Path, device: str) -> Row:
    """Load the model once, in this process, and say what it took."""
    where = torch.device(device)
    model_type = getattr(diffusers, architecture.architecture)  # imports what it needs
    if where.type == "cuda":
        torch.ones(1 << 20).to(where)  # the driver's own memory is there before
        collect_garbage(where)
        torch.cuda.reset_peak_memory_stats(where)
    with HostPeak() as host:
        start = time.monotonic()
        if way == "load":
            with init_empty_weights():
                model = architecture.instance()
            dirotq.load(model.to(torch.bfloat16), folder, where)
        else:
            model = model_type.from_pretrained(folder, device_map={"": where})
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        seconds = time.monotonic() - start
    row: Row = {"load_seconds": round(seconds, 2), "host_bytes": host.growth}
    row["weight_bytes"] = sum(tensor.nbytes for tensor in model.state_dict().values())
    if where.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated(where)
    return row


class HostPeak:
    """By how many bytes the process's anonymous memory grew at its most, in a `with` block."""

    def __init__(self) -> None:
        self._before = self._most = 0
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._before = self._most = anonymous_bytes()
        self._watcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._watcher.join()

    @property
    def growth(self) -> int | None:
        """None where the system does not say."""
        return self._most - self._before if self._before else None

    def _watch(self) -> None:
        over = False
        while not over:  # one look after the end
            over = self._over.wait(_EVERY)
            self._most = max(self._most, anonymous_bytes())


def anonymous_bytes() -> int:
    """Of this process in memory, without what files back; 0 where the system does not say."""
    if not _STATUS.exists():
        return 0
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))
