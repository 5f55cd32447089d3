"""The stages of the main job, each cached by what its result depends on.

reference images   16-bit images of the evaluation prompts
records            calls of the transformer over calibration trajectories
statistics         of every distinct layer input, from the records
quantized          the quantized transformer, as a checkpoint, and its layer table
images             images by the checkpoint, loaded as anyone would load it
latents            of the first prompts after every step, kept while the images of either model are drawn
noise floor        16-bit images once more, in batches of another size
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
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
from dirotq.lab.cache import shared_cache
from dirotq.lab.devices import resolve_device, resolve_dtype
from dirotq.lab.drawing import Drawer, Trajectory
from dirotq.lab.entries import load_report, load_statistics, save_report, save_statistics
from dirotq.lab.progress import bar, track
from dirotq.lab.sources import kernels_hash, source_hash
from dirotq.models import layout_of, rewrite
from dirotq.pipeline import Pipeline, fingerprint
from dirotq.prompts import load_prompts
from dirotq.quantize import Report, quantize, with_weight_only
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
        self.cache = shared_cache(Path(job.runtime.cache).absolute())
        self.seconds: dict[str, float] = {}
        self._inside = 0.0  # seconds spent in stages that other stages asked for
        self._trajectory = (
            min(job.eval.trajectory, len(self.prompts)) if self.pipeline.reports_latents else 0
        )
        self._reference = Drawer(
            stage="reference",
            label="16-bit images",
            pipeline=self.pipeline,
            transformer=lambda: self.pipeline.transformer,
            depends=lambda: self._model_fields,
        )
        self._quantized = Drawer(
            stage="images",
            label=f"{job.recipe.method.name} images",
            pipeline=self.pipeline,
            transformer=lambda: self.pipeline.load_transformer(self.quantized()[0]),
            depends=self._quantized_fields,
        )
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
        return self._images(self._reference)

    def redrawn_images(self) -> Tensor:
        """uint8 [B, H, W, 3]: the 16-bit model's images once more, in batches of half the size (of 2 instead of 1).

        Other kernels add the same numbers in another order: all that differs from `reference_images` is noise. A single
        prompt is drawn as it was.
        """
        size = min(self.job.eval.batch, len(self.prompts))
        batch = size // 2 if size > 1 else 2

        def build(folder: Path) -> None:
            images = replace(self._reference, label="noise floor").draw(self.prompts, batch)
            save_file({"images": images}, folder / "images.safetensors")

        folder = self._stage("noise-floor", self._reference.fields(self.prompts, batch), build)
        return load_file(folder / "images.safetensors")["images"]

    def of_reference(
        self, stage: str, fields: dict[str, Any], compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """What `compute` makes of the 16-bit images, once for all methods; `fields`: what else it depends on."""

        def build(folder: Path) -> None:
            save_file({stage: compute(self.reference_images())}, folder / f"{stage}.safetensors")

        images = self._reference.fields(self.prompts, self.job.eval.batch)
        folder = self._stage(stage, {"images": images, **fields}, build)
        return load_file(folder / f"{stage}.safetensors")[stage]

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
            save_statistics(found, folder)

        return load_statistics(self._stage("statistics", self._statistics_fields(), build))

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
            save_report(report, folder / "report.json")

        folder = self._stage("quantized", self._quantized_fields(), build)
        return folder / "checkpoint", load_report(folder / "report.json")

    def images(self) -> Tensor:
        """uint8 [B, H, W, 3]: the quantized model's images; raises ValueError when one is broken."""
        if not self.job.recipe.method.quantizes:
            return self.reference_images()
        return self._images(self._quantized)

    def latents(self) -> tuple[Tensor, Tensor] | None:
        """Latents of the quantized and of the 16-bit model after every step, each [prompts, steps, ...].

        Of the first `eval.trajectory` prompts; None where there are none to compare.
        """
        if not (self._trajectory and self.job.recipe.method.quantizes):
            return None
        return self._latents(self._quantized), self._latents(self._reference)

    def _stage(self, name: str, fields: dict[str, Any], build: Callable[[Path], None]) -> Path:
        """The stage's folder; its seconds, without those of the stages it asked for, are what it cost."""
        outside, entered = self._inside, time.perf_counter()

        def timed(folder: Path) -> None:
            before, start = self._inside, time.perf_counter()
            build(folder)
            own = time.perf_counter() - start - (self._inside - before)
            atomic_write_json(folder / _SECONDS, {"seconds": own})

        folder = self.cache.get_or_build(name, fields, timed, self._what(name))
        self.seconds[name] = json.loads((folder / _SECONDS).read_text())["seconds"]
        self._inside = outside + time.perf_counter() - entered
        return folder

    def _what(self, stage: str) -> str:
        """A stage's result in a few words."""
        job = self.job
        words = [job.model.name, f"{len(self.prompts)} prompts of {Path(job.eval.prompt_set).stem}"]
        if stage in ("records", "statistics", "quantized"):
            words[1] = f"{job.calib.records} records of {len(self.calibration)} prompts"
        if stage in ("quantized", "images", "images-latents"):
            words.insert(1, job.recipe.describe())
        return ", ".join(words)

    def _calls(self, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
        for path in track(paths, "layer statistics"):
            yield load_call(path, self.device)

    def _images(self, drawer: Drawer) -> Tensor:
        batch = self.job.eval.batch

        def build(folder: Path) -> None:
            keep = Trajectory(self._trajectory)
            reference = None if drawer is self._reference else self.reference_images()
            images = drawer.draw(self.prompts, batch, keep=keep, reference=reference)
            save_file({"images": images}, folder / "images.safetensors")
            if keep.count:
                self._latents(drawer, keep)

        folder = self._stage(drawer.stage, drawer.fields(self.prompts, batch), build)
        return load_file(folder / "images.safetensors")["images"]

    def _latents(self, drawer: Drawer, kept: Trajectory | None = None) -> Tensor:
        """An entry of their own: images do not depend on how many prompts' latents are kept."""
        count, batch = self._trajectory, self.job.eval.batch
        prompts = self.prompts[: -(-count // batch) * batch]  # whole batches: bitwise as among all

        def build(folder: Path) -> None:
            keep = kept or Trajectory(count)
            if kept is None:
                drawer.draw(prompts, batch, keep=keep)
            save_file({"latents": keep.latents()}, folder / "latents.safetensors")

        fields = {**drawer.fields(prompts, batch), "count": count}
        folder = self._stage(f"{drawer.stage}-latents", fields, build)
        return load_file(folder / "latents.safetensors")["latents"]

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


def _spread(total: int, count: int) -> set[int]:
    """`count` of the numbers 0 .. total - 1, evenly spread over all batches and steps."""
    count = min(count, total)
    return {(2 * i + 1) * total // (2 * count) for i in range(count)}
