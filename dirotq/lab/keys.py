"""What the result of each stage depends on: the fields of its cache key, and the same in a few words for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch

from dirotq.config import Job
from dirotq.lab.sources import kernels_hash, source_hash
from dirotq.models import layout_of
from dirotq.pipeline import Pipeline, fingerprint
from dirotq.prompts import Prompt

_COLLECTS = (
    "calibrate.py",
    "passes.py",
    "models",
    "lab/collecting.py",
    "lab/entries.py",
)  # statistics, and how they are kept
_QUANTIZES = (
    "formats",
    "transforms",
    "rounding",
    "methods",
    "budget.py",
    "quantize.py",
    "statistics_source.py",
    "quantization_report.py",
    "digests.py",
    "linear.py",
    "sharing.py",
    "storage.py",
    "checkpoint.py",
    "placement.py",
    "diffusers_quantizer.py",
    "_diffusers_classes.py",
)  # source files and packages that decide a checkpoint, or what its simulated layers compute


class Keys:
    """Fields of one job's stages. calibration: the prompts that records are taken of."""

    def __init__(self, job: Job, pipeline: Pipeline, calibration: Sequence[Prompt]) -> None:
        self._job, self._calibration = job, calibration
        self._layout = asdict(layout_of(pipeline.transformer))
        self.model: dict[str, Any] = {
            "weights": fingerprint(pipeline.folder, job.model.path),
            "size": job.model.size,
            "steps": job.model.steps,
            "guidance": job.model.guidance,
            "call": job.model.call,
            "dtype": str(pipeline.dtype),
            "device": pipeline.pipe.device.type,
            "versions": [torch.__version__, diffusers.__version__],
            "deterministic": job.runtime.deterministic,
            "source": source_hash("pipeline.py", "records.py"),
        }

    def trial(self, prompts: Sequence[Prompt], machine: str) -> dict[str, Any]:
        """Of a trial on a machine: its device, by name."""
        return {
            "model": self.model,
            "prompts": [[p.id, p.text] for p in prompts],
            "machine": machine,
            "layout": self._layout,
            "source": source_hash(*_COLLECTS, "lab/trial.py"),
        }

    def records(self) -> dict[str, Any]:
        """Of the recorded calls."""
        calib = self._job.calib
        return {
            "model": self.model,
            "prompts": [[p.id, p.text] for p in self._calibration],
            "records": calib.records,
            "batch": calib.batch,
        }

    def statistics(self) -> dict[str, Any]:
        """Of the inputs' statistics."""
        fields = {"source": source_hash(*_COLLECTS), "kernel": kernels_hash("second_moment.py")}
        return {"records": self.records(), "layout": self._layout, **fields}

    def quantized(self) -> dict[str, Any]:
        """Of the checkpoint."""
        recipe, source = self._job.recipe.to_dict(), source_hash(*_QUANTIZES)
        fields = {"recipe": recipe, "source": source, "kernels": kernels_hash()}
        return {"statistics": self.statistics(), **fields}

    def drawn(self) -> dict[str, Any]:
        """Of the quantized model's images, but for prompts and batch."""
        quantized, backend = self.quantized(), self._job.runtime.backend
        if backend == "reference":
            return quantized
        return {
            **quantized,
            "backend": {"name": backend, "source": source_hash("backend.py", "dequantized.py")},
        }

    def what(self, stage: str, num_prompts: int) -> str:
        """A stage's result in a few words."""
        job, calib = self._job, self._job.calib
        words = [job.model.name]
        if stage == "quantized" or stage.startswith("images"):
            words.append(job.recipe.describe())
        if stage in ("records", "statistics", "quantized"):
            words.append(f"{calib.records} records of {len(self._calibration)} prompts")
        else:
            words.append(f"{num_prompts} prompts of {Path(job.eval.prompt_set).stem}")
        return ", ".join(words)
