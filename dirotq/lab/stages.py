"""The stages of the main job, each cached by what its result depends on.

reference images   16-bit images of the evaluation prompts
records            calls of the transformer over calibration trajectories
statistics         of every distinct layer input, from the records, in as few passes as memory allows
quantized          the quantized transformer, as a checkpoint, and its layer table
images             images by the checkpoint, loaded as anyone would load it
latents            of the first prompts after every step, kept while the images of either model are drawn
noise floor        16-bit images once more, in batches of another size
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dirotq.atomic import atomic_write_json
from dirotq.backend import set_backend
from dirotq.calibrate import Batch, InputStatistics
from dirotq.config import Job
from dirotq.graphs import capture
from dirotq.lab import trial as trials
from dirotq.lab.cache import shared_cache
from dirotq.lab.collecting import collecting
from dirotq.lab.devices import resolve
from dirotq.lab.drawing import Drawer, Trajectory
from dirotq.lab.entries import load_report, load_statistics, save_report, save_statistics
from dirotq.lab.fit import check_budget, check_widths
from dirotq.lab.keys import Keys
from dirotq.lab.progress import bar, track
from dirotq.lab.results import environment
from dirotq.lab.team import Team
from dirotq.pipeline import Pipeline
from dirotq.prompts import load_prompts
from dirotq.quantize import Report, quantize
from dirotq.records import load_call, save_call, spread

_SECONDS = "seconds.json"
_TRIAL_PROMPTS = 2


class Stages:
    """All stages of one job; a stage asks for the ones it needs."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.team = Team()
        self.device, self.dtype = resolve(job.runtime)
        self.prompts = load_prompts(job.eval.prompt_set, job.eval.prompts)
        self.calibration = load_prompts(job.calib.prompt_set, job.calib.prompts)
        self.pipeline = Pipeline(job.model, self.device, self.dtype)
        self.cache = shared_cache(Path(job.runtime.cache).absolute())
        self.keys = Keys(job, self.pipeline, self.calibration)
        self.seconds: dict[str, float] = {}
        self._chosen: dict[str, str] | None = None
        self._inside = 0.0  # seconds spent in stages that other stages asked for
        self._trajectory = (
            min(job.eval.trajectory, len(self.prompts)) if self.pipeline.reports_latents else 0
        )
        self._reference = Drawer(
            stage="reference",
            label="16-bit images",
            pipeline=self.pipeline,
            transformer=lambda: self.pipeline.transformer,
            depends=lambda: self.keys.model,
        )
        self._quantized = Drawer(
            stage="images",
            label=f"{job.recipe.method.name} images",
            pipeline=self.pipeline,
            transformer=self._load_quantized,
            depends=self.keys.drawn,
        )
        check_widths(self.pipeline.transformer, job.recipe)
        if job.recipe.budget is not None:
            check_budget(self.pipeline.transformer, job.recipe, self.trial()[0].inputs)

    def missing(self) -> set[str]:
        """Stages that the cache does not hold and this job needs."""
        drawers, found = [self._reference], set()
        if self.job.recipe.method.quantizes:
            drawers.append(self._quantized)
            for stage in ("quantized", "statistics", "records"):
                if self.cache.holds(stage, getattr(self.keys, stage)()):
                    break  # what it was made of is not needed
                found.add(stage)
        for drawer in drawers:
            fields = drawer.fields(self.prompts, self.job.eval.batch)
            if not self.cache.holds(drawer.stage, fields):
                found.add(drawer.stage)
        return found

    def trial(self) -> tuple[trials.Trial, InputStatistics]:
        """What a short trial of the 16-bit model measured on this machine, and the statistics of one input."""
        prompts, machine = self.prompts[:_TRIAL_PROMPTS], environment(self.device)["device"]

        def build(folder: Path) -> None:
            trials.conduct(self.pipeline, prompts, folder)

        return trials.load(self._stage("trial", self.keys.trial(prompts, machine), build))

    def reference_images(self) -> Tensor:
        """uint8 [B, H, W, 3]: the 16-bit model's images of the evaluation prompts."""
        return self._images(self._reference)

    def redrawn_images(self) -> Tensor:
        """uint8 [B, H, W, 3]: the 16-bit model's images once more, in batches of half the size (of 2 instead of 1).

        Other kernels add the same numbers in another order: all that differs from `reference_images` is noise, at least
        so much of it, as many sizes may take the same kernels. A single prompt is drawn as it was.
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
            wanted = spread(total, -(-calib.records // calib.batch))
            with bar("calibration records", total) as tick:
                calls = self.pipeline.record(
                    self.calibration, batch=calib.batch, wanted=wanted, tick=tick
                )
                for number, kwargs in calls:
                    save_call(kwargs, folder / f"{number:06d}.safetensors")

        return self._stage("records", self.keys.records(), build)

    def statistics(self) -> list[InputStatistics]:
        """Statistics of every distinct input of the layout's linears."""

        def build(folder: Path) -> None:
            paths = sorted(self.records().glob("*.safetensors"))

            def calls() -> Iterator[Batch]:
                return (load_call(path, self.device) for path in track(paths, "layer statistics"))

            with collecting(self.pipeline.transformer, calls) as (_, statistics):
                save_statistics(statistics, folder)

        return load_statistics(self._stage("statistics", self.keys.statistics(), build))

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

        folder = self._stage("quantized", self.keys.quantized(), build)
        return folder / "checkpoint", load_report(folder / "report.json")

    @property
    def backend(self) -> dict[str, int]:
        """How many quantized linears each backend computes when images are drawn."""
        if not self.job.recipe.method.quantizes:
            return {}
        if self.job.runtime.backend == "reference":
            return {"reference": len(self.quantized()[1].layers)}
        if self._chosen is None:
            self._load_quantized()
        return dict(Counter(text.partition(":")[0] for text in (self._chosen or {}).values()))

    def _load_quantized(self) -> nn.Module:
        model = self.pipeline.load_transformer(self.quantized()[0])
        self._chosen = set_backend(model, self.job.runtime.backend)
        if self.job.runtime.capture:
            capture(model)
        return model

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

    def _stage(
        self,
        name: str,
        fields: dict[str, Any],
        build: Callable[[Path], None],
        *,
        spent: float = 0.0,
    ) -> Path:
        """The stage's folder. Its seconds leave out the stages it asked for; this process `spent` some before."""
        outside, entered = self._inside, time.perf_counter()

        def timed(folder: Path) -> None:
            before, start = self._inside, time.perf_counter()
            build(folder)
            own = spent + time.perf_counter() - start - (self._inside - before)
            atomic_write_json(folder / _SECONDS, {"seconds": own})

        folder = self.cache.get_or_build(
            name, fields, timed, self.keys.what(name, len(self.prompts))
        )
        self.seconds[name] = json.loads((folder / _SECONDS).read_text())["seconds"]
        self._inside = outside + time.perf_counter() - entered
        return folder

    def _images(self, drawer: Drawer) -> Tensor:
        batch, start = self.job.eval.batch, time.perf_counter()
        fields = drawer.fields(self.prompts, batch)
        together = self.team.count > 1 and not self.cache.holds(drawer.stage, fields)
        parts = self.team.parts(len(self.prompts), batch)
        if together:
            for part in self.team.own(parts):
                self._part(drawer, part)
        spent = time.perf_counter() - start

        def build(folder: Path) -> None:
            if together:
                images = torch.cat([self._part(drawer, part) for part in parts])
                save_file({"images": images}, folder / "images.safetensors")
                return
            keep = Trajectory(self._trajectory)
            reference = None if drawer is self._reference else self.reference_images()
            images = drawer.draw(self.prompts, batch, keep=keep, reference=reference)
            save_file({"images": images}, folder / "images.safetensors")
            if keep.count:
                self._latents(drawer, keep)

        folder = self._stage(drawer.stage, fields, build, spent=spent)
        return load_file(folder / "images.safetensors")["images"]

    def _part(self, drawer: Drawer, part: slice) -> Tensor:
        """Images of some of the prompts, drawn by this process unless another one does or did."""
        batch, prompts = self.job.eval.batch, self.prompts[part]

        def build(folder: Path) -> None:
            reference = None if drawer is self._reference else self.reference_images()[part]
            images = drawer.draw(prompts, batch, reference=reference)
            save_file({"images": images}, folder / "images.safetensors")

        stage = f"{drawer.stage}-part"
        what = self.keys.what(stage, len(prompts))
        folder = self.cache.get_or_build(stage, drawer.fields(prompts, batch), build, what)
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
