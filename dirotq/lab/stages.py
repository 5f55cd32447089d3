"""The stages of the main job, each cached by what its result depends on.

reference images   16-bit images of the evaluation prompts
records            calls of the transformer over calibration trajectories
statistics         of every distinct layer input, from the records
quantized          the quantized transformer, as a checkpoint, and its layer table
images             images by the checkpoint, loaded as anyone would load it
"""

from __future__ import annotations

import copy
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dirotq import calibrate
from dirotq.atomic import atomic_write_json
from dirotq.calibrate import InputStatistics
from dirotq.config import Job
from dirotq.lab.cache import Cache
from dirotq.lab.progress import bar, track
from dirotq.lab.sources import kernels_hash, source_hash
from dirotq.metrics.sentinels import degenerate
from dirotq.models import layout_of, rewrite
from dirotq.pipeline import Pipeline, fingerprint, to_uint8
from dirotq.prompts import Prompt, load_prompts
from dirotq.quantize import LayerReport, Report, quantize, with_weight_only
from dirotq.records import load_call, save_call

_SECONDS = "seconds.json"


class Stages:
    """All stages of one job; a stage asks for the ones it needs."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = resolve_device(job.runtime.device)
        self.dtype = resolve_dtype(job.runtime.dtype, self.device)
        self.prompts = load_prompts(job.eval.prompt_set, job.eval.prompts)
        self.calibration = load_prompts(job.calib.prompt_set, job.calib.prompts)
        self.pipeline = Pipeline(job.model, self.device, self.dtype)
        self._check_fit()
        self.cache = Cache(Path(job.runtime.cache))
        self.seconds: dict[str, float] = {}
        self._inside = 0.0  # seconds spent in stages that other stages asked for
        self._model_fields = {
            "weights": fingerprint(self.pipeline.folder, job.model.path),
            "size": job.model.size,
            "steps": job.model.steps,
            "guidance": job.model.guidance,
            "call": job.model.call,
            "dtype": str(self.dtype),
            "device": self.device.type,
            "versions": [torch.__version__, diffusers.__version__],
            "deterministic": job.runtime.deterministic,
            "source": source_hash("pipeline.py", "records.py"),
        }

    def _check_fit(self) -> None:
        """Ask the method about every width now: after the calibration is late to learn of a bad rank."""
        model, recipe = self.pipeline.transformer, self.job.recipe
        if not recipe.method.quantizes:
            return
        layout = with_weight_only(layout_of(model), recipe)
        with rewrite.applied(model, layout):
            for name, transformed in layout.select(model).items():
                if transformed and recipe.budget is None:
                    weight = model.get_submodule(name).get_parameter("weight")
                    recipe.method.check_width(weight.shape[1], recipe.bits.act)

    def reference_images(self) -> Tensor:
        """uint8 [B, H, W, 3]: the 16-bit model's images of the evaluation prompts."""
        fields = {"model": self._model_fields, **self._prompt_fields(self.prompts)}

        def build(folder: Path) -> None:
            self._write_images(folder, "16-bit images")

        return self._images(self._stage("reference", fields, build))

    def records(self) -> Path:
        """Folder of recorded calls."""

        def build(folder: Path) -> None:
            calib = self.job.calib
            total = self.pipeline.num_steps(len(self.calibration), calib.batch)
            wanted = _spread(total, -(-calib.records // calib.batch))
            with bar("calibration records", total) as tick:
                calls = self.pipeline.record(
                    self.calibration, batch=calib.batch, wanted=wanted, tick=tick
                )
                for number, kwargs in calls:
                    save_call(kwargs, folder / f"{number:06d}.safetensors")

        return self._stage("records", self._records_fields(), build)

    def statistics(self) -> list[InputStatistics]:
        """Statistics of every distinct input of the layout's linears."""

        def build(folder: Path) -> None:
            calls = self._calls(sorted(self.records().glob("*.safetensors")))
            model = self.pipeline.transformer
            layout = layout_of(model)
            with rewrite.applied(model, layout):
                found = calibrate.collect(model, layout.select(model), calls, strict=layout.strict)
            _save_statistics(found, folder)

        return _load_statistics(self._stage("statistics", self._statistics_fields(), build))

    def quantized(self) -> tuple[Path, Report]:
        """Checkpoint of the quantized transformer, and its report."""

        def build(folder: Path) -> None:
            model = copy.deepcopy(self.pipeline.transformer)
            report = quantize(
                model,
                self.job.recipe,
                statistics=self.statistics(),
                progress=lambda items: track(items, "quantize layers"),
            )
            model.save_pretrained(folder / "checkpoint")  # type: ignore[operator]
            atomic_write_json(folder / "report.json", _finite(asdict(report)))

        folder = self._stage("quantized", self._quantized_fields(), build)
        return folder / "checkpoint", _load_report(folder / "report.json")

    def images(self) -> Tensor:
        """uint8 [B, H, W, 3]: the quantized model's images; raises ValueError when one is broken."""
        if not self.job.recipe.method.quantizes:
            return self.reference_images()
        fields = {"model": self._quantized_fields(), **self._prompt_fields(self.prompts)}

        def build(folder: Path) -> None:
            original = self.pipeline.transformer
            self.pipeline.transformer = self.pipeline.load_transformer(self.quantized()[0])
            try:
                self._write_images(folder, f"{self.job.recipe.method.name} images")
            finally:
                self.pipeline.transformer = original

        return self._images(self._stage("images", fields, build))

    def _stage(self, name: str, fields: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """The stage's folder; its seconds, without those of the stages it asked for, are what it cost."""
        outside, entered = self._inside, time.perf_counter()

        def timed(folder: Path) -> None:
            before, start = self._inside, time.perf_counter()
            build(folder)
            own = time.perf_counter() - start - (self._inside - before)
            atomic_write_json(folder / _SECONDS, {"seconds": own})

        folder = self.cache.get_or_build(name, fields, timed)
        self.seconds[name] = json.loads((folder / _SECONDS).read_text())["seconds"]
        self._inside = outside + time.perf_counter() - entered
        return folder

    def _calls(self, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
        for path in track(paths, "layer statistics"):
            yield load_call(path, self.device)

    def _write_images(self, folder: Path, label: str) -> None:
        batch = self.job.eval.batch
        with bar(label, self.pipeline.num_steps(len(self.prompts), batch)) as tick:
            images = self.pipeline.generate(self.prompts, batch=batch, tick=tick)
        broken = degenerate(images, [prompt.id for prompt in self.prompts])
        if broken:
            name, reason = next(iter(broken.items()))
            raise ValueError(
                f"{label}: {len(broken)} of {len(images)} are broken; {name} is {reason}"
            )
        save_file({"images": to_uint8(images)}, folder / "images.safetensors")

    def _images(self, folder: Path) -> Tensor:
        return load_file(folder / "images.safetensors")["images"]

    def _prompt_fields(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        return {"prompts": [[p.id, p.text] for p in prompts], "batch": self.job.eval.batch}

    def _records_fields(self) -> dict[str, Any]:
        calib = self.job.calib
        return {
            "model": self._model_fields,
            "prompts": [[p.id, p.text] for p in self.calibration],
            "records": calib.records,
            "batch": calib.batch,
        }

    def _statistics_fields(self) -> dict[str, Any]:
        layout = layout_of(self.pipeline.transformer)
        source = source_hash("calibrate.py", "models")
        return {"records": self._records_fields(), "layout": asdict(layout), "source": source}

    def _quantized_fields(self) -> dict[str, Any]:
        source = source_hash(
            "formats",
            "transforms",
            "rounding",
            "methods",
            "budget.py",
            "quantize.py",
            "linear.py",
            "checkpoint.py",
            "diffusers_quantizer.py",
            "_diffusers_classes.py",
        )
        fields = {"recipe": self.job.recipe.to_dict(), "source": source, "kernels": kernels_hash()}
        return {"statistics": self._statistics_fields(), **fields}


def resolve_device(name: str) -> torch.device:
    """The device that `runtime.device` names; raises ValueError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"runtime.device={name}, allowed are auto, cpu, cuda and cuda:<n>")
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ValueError(f"runtime.device={name}: PyTorch sees {count} GPUs here; use cpu or auto")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that `runtime.dtype` names on that device."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _spread(total: int, count: int) -> set[int]:
    """`count` of the numbers 0 .. total - 1, evenly spread over all batches and steps."""
    count = min(count, total)
    return {(2 * i + 1) * total // (2 * count) for i in range(count)}


def _save_statistics(statistics: Sequence[InputStatistics], folder: Path) -> None:
    tensors, entries = {}, []
    for index, entry in enumerate(statistics):
        entries.append({"members": entry.members, "width": entry.width, "rows": entry.rows})
        for name in ("moment", "absmax", "sample"):
            tensors[f"{index:05d}/{name}"] = getattr(entry, name)
    save_file(tensors, folder / "statistics.safetensors")
    atomic_write_json(folder / "inputs.json", entries)


def _load_statistics(folder: Path) -> list[InputStatistics]:
    tensors = load_file(folder / "statistics.safetensors")
    entries = json.loads((folder / "inputs.json").read_text())
    found = []
    for index, entry in enumerate(entries):
        moment, absmax, sample = (
            tensors[f"{index:05d}/{name}"] for name in ("moment", "absmax", "sample")
        )
        members, width, rows = tuple(entry["members"]), entry["width"], entry["rows"]
        found.append(InputStatistics(members, width, rows, moment, absmax, sample))
    return found


def _finite(value: Any) -> Any:
    """JSON has no infinities: the SNR of an exact layer is stored as text."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _load_report(path: Path) -> Report:
    fields = json.loads(path.read_text())
    rows: list[dict[str, Any]] = fields.pop("layers")
    layers: list[dict[str, Any]] = [
        {key: float(value) if value in ("inf", "-inf") else value for key, value in row.items()}
        for row in rows
    ]
    return Report(layers=tuple(LayerReport(**layer) for layer in layers), **fields)
