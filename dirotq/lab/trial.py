"""A short trial of a model before long work: what a step, a calibration record and a quantized input cost."""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dirotq.atomic import atomic_write_json
from dirotq.calibrate import InputStatistics
from dirotq.lab.collecting import collecting
from dirotq.lab.entries import load_statistics, save_statistics
from dirotq.models import layout_of, rewrite
from dirotq.pipeline import Pipeline
from dirotq.prompts import Prompt
from dirotq.quantize import quantize
from dirotq.recipes import Recipe

_STEPS = 2  # the first warms up
_FORWARDS = 3


@dataclass(frozen=True)
class Input:
    """A distinct input of width `width`, read by linears `members` of `outputs` rows together; rows: of one prompt."""

    members: tuple[str, ...]
    width: int
    outputs: int
    rows: float

    @property
    def work(self) -> float:
        """What quantizing it costs, up to a factor: numbers of its second moment and of its weights."""
        return float(self.width * (self.width + self.outputs))


@dataclass(frozen=True)
class Trial:
    """What was measured of `prompts` prompts; seconds and bytes are of one, and in proportion to their number.

    step, rest: of a denoising step, and of an image's text and decoding. record: of a calibration record.
    record_bytes: of a recorded call. base_bytes, image_bytes: memory before, and of a prompt more in a batch;
    statistics_bytes: of statistics while they are collected, in one pass. inputs: all distinct ones of the layout.
    """

    step: float
    rest: float
    record: float
    record_bytes: float
    base_bytes: int
    image_bytes: float
    statistics_bytes: int
    inputs: tuple[Input, ...]


def conduct(pipeline: Pipeline, prompts: Sequence[Prompt], folder: Path) -> None:
    """Try the 16-bit model on a few prompts, one batch, and write what `load` reads into `folder`."""
    count, base, times = len(prompts), peak_bytes(pipeline.pipe.device), [_now(pipeline)]
    settings, pipeline.settings = pipeline.settings, replace(pipeline.settings, steps=_STEPS)
    try:
        calls = pipeline.record(
            prompts, batch=count, wanted={_STEPS - 1}, tick=lambda: times.append(_now(pipeline))
        )
        ((_, call),) = calls
    finally:
        pipeline.settings = settings
    whole = _now(pipeline) - times[0]
    step = times[-1] - times[-2] if len(times) > _STEPS else whole / _STEPS
    drawn = peak_bytes(pipeline.pipe.device)
    start = _now(pipeline)
    inputs = _collect(pipeline.transformer, call, count, folder)
    # Collecting runs the model once more than there are batches.
    record = max(0.0, _now(pipeline) - start - step)
    trial = Trial(
        step / count,
        max(0.0, whole - _STEPS * step) / count,
        record / count,
        sum(tensor.nbytes for tensor in _tensors(call)) / count,
        base,
        (drawn - base) / count,
        peak_bytes(pipeline.pipe.device) - drawn,
        inputs,
    )
    atomic_write_json(folder / "trial.json", asdict(trial))


def _collect(
    model: nn.Module, call: Mapping[str, Any], count: int, folder: Path
) -> tuple[Input, ...]:
    """All distinct inputs of a call of `count` prompts; the typical one's statistics go into `folder`."""
    inputs = {}
    with collecting(model, [call]) as (groups, statistics):
        for members in groups:
            shapes = [model.get_submodule(name).get_parameter("weight").shape for name in members]
            outputs = sum(shape[0] for shape in shapes)
            inputs[members] = Input(members, shapes[0][1], outputs, rows=0)
        kept = typical(list(inputs.values())).members
        for entry in statistics:
            inputs[entry.members] = replace(inputs[entry.members], rows=entry.rows / count)
            if entry.members == kept:
                save_statistics([entry], folder)
            del entry
    return tuple(inputs.values())


def load(folder: Path) -> tuple[Trial, InputStatistics]:
    """The trial, and the statistics of its typical input."""
    fields = json.loads((folder / "trial.json").read_text())
    inputs = tuple(Input(tuple(one.pop("members")), **one) for one in fields.pop("inputs"))
    return Trial(**fields, inputs=inputs), load_statistics(folder)[0]


def typical(inputs: Sequence[Input]) -> Input:
    """The first of those whose shape most inputs have."""
    shapes = Counter((one.width, one.outputs) for one in inputs)
    shape = shapes.most_common(1)[0][0]
    return next(one for one in inputs if (one.width, one.outputs) == shape)


def quantizing(
    pipeline: Pipeline, recipe: Recipe, statistics: InputStatistics, rows: int
) -> tuple[float, float]:
    """Quantize copies of one input's linears: seconds of that, and seconds a row that they take longer in a forward.

    rows: of the forward, as many as a batch has.
    """
    model = pipeline.transformer
    names = [str(number) for number in range(len(statistics.members))]
    with rewrite.applied(model, layout_of(model)):
        linears = [model.get_submodule(name) for name in statistics.members]
        copies = nn.ModuleDict(dict(zip(names, map(_copy, linears), strict=True)))
    sample = statistics.sample[torch.arange(rows) % statistics.sample.shape[0]]
    sample = sample.to(pipeline.pipe.device, pipeline.dtype)

    def forward() -> None:
        for name in names:
            copies[name](sample)

    before = _timed(forward, pipeline)
    start = _now(pipeline)
    alone = replace(recipe, weight_only=())
    quantize(copies, alone, statistics=[replace(statistics, members=tuple(names))])
    seconds = _now(pipeline) - start
    slower = max(0.0, _timed(forward, pipeline) - before)
    return seconds, slower / rows


def peak_bytes(device: torch.device) -> int:
    """Most memory that this process has held: of the GPU, or of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _timed(function: Callable[[], None], pipeline: Pipeline) -> float:
    """Seconds of the fastest of a few calls, after one that warms up."""
    times = []
    with torch.no_grad():
        for _ in range(1 + _FORWARDS):
            start = _now(pipeline)
            function()
            times.append(_now(pipeline) - start)
    return min(times[1:])


def _now(pipeline: Pipeline) -> float:
    if pipeline.pipe.device.type == "cuda":
        torch.cuda.synchronize(pipeline.pipe.device)
    return time.perf_counter()


def _copy(linear: nn.Module) -> nn.Linear:
    weight = linear.get_parameter("weight")
    copied = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    copied.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    return copied


def _tensors(values: Mapping[str, Any]) -> list[Tensor]:
    found = []
    for value in values.values():
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Mapping):
            found += _tensors(value)
    return found
