"""What a run will cost, estimated before it starts from a short trial and from what the cache has already."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from dirotq.lab.results import Preflight
from dirotq.lab.stages import Stages
from dirotq.lab.trial import peak_bytes, quantizing

_WORTH_SAYING = 60.0  # seconds
_log = logging.getLogger(__name__)


def preflight(stages: Stages) -> Preflight:
    """Seconds, peak memory and disk that the stages still to be computed will take; says so when they are long.

    An estimate: from two prompts, two steps and one quantized input, and as if all else were in proportion. What is not
    a stage (metrics, pictures) is left out.
    Raises ValueError when the disk of the cache cannot hold it.
    """
    seconds, disk = _cost(stages)
    found = Preflight(
        seconds=round(seconds, 1), memory_bytes=_memory(stages), disk_bytes=round(disk)
    )
    place = Path(stages.job.runtime.cache)
    free = shutil.disk_usage(next(p for p in (place, *place.absolute().parents) if p.exists())).free
    if disk > free:
        raise ValueError(
            f"runtime.cache={place}: the run needs about {disk / 1e9:.1f} GB, {free / 1e9:.1f} are free "
            "there; choose another place, or runtime.preflight=false if you know better"
        )
    if seconds > _WORTH_SAYING:
        _log.info(
            "this will take about %.0f minutes, %.1f GB of memory and %.1f GB of disk, by a short trial",
            seconds / 60, found["memory_bytes"] / 1e9, disk / 1e9,
        )  # fmt: skip
    return found


def _cost(stages: Stages) -> tuple[float, float]:
    """Seconds, and bytes on the disk."""
    job, missing = stages.job, stages.missing()
    pixels = 3 * job.model.size**2  # bytes of an image, as PNG at most
    disk = float(len(stages.prompts) * pixels)
    if not missing:
        return 0.0, disk
    trial, statistics = stages.trial()
    image = trial.rest + job.model.steps * trial.step
    drawn = len(stages.prompts) / stages.team.count
    kept = min(job.eval.trajectory, len(stages.prompts)) * job.model.steps * trial.record_bytes
    records = min(job.calib.records, len(stages.calibration) * job.model.steps)
    seconds = 0.0
    if "reference" in missing:
        seconds, disk = seconds + drawn * image, disk + len(stages.prompts) * pixels + kept
    if "records" in missing:
        seconds += len(stages.calibration) * image
        disk += records * trial.record_bytes
    if "statistics" in missing:
        seconds += records * trial.record
        disk += sum(8 * one.width**2 for one in trial.inputs)
    if missing & {"quantized", "images"}:
        tried = next(one for one in trial.inputs if one.members == statistics.members)
        rows = max(1, round(tried.rows * min(job.eval.batch, len(stages.prompts))))
        one_input, slower = quantizing(stages.pipeline, job.recipe, statistics, rows)
        if "quantized" in missing:
            seconds += one_input * sum(one.work for one in trial.inputs) / tried.work
            disk += (1 + job.save) * _model_bytes(stages)
        if "images" in missing:
            size = sum(one.rows * one.width * one.outputs for one in trial.inputs)
            slower *= size / (tried.width * tried.outputs)
            seconds += drawn * (image + job.model.steps * slower)
            disk += len(stages.prompts) * pixels + kept
    return seconds, disk


def _memory(stages: Stages) -> int:
    """Peak in bytes: the largest batch, the statistics, and a copy of the transformer to quantize."""
    if not stages.missing():
        return peak_bytes(stages.device)
    trial, _ = stages.trial()
    batch = max(min(stages.job.eval.batch, len(stages.prompts)), stages.job.calib.batch)
    drawing = trial.base_bytes + batch * trial.image_bytes
    return round(drawing + trial.statistics_bytes + _model_bytes(stages))


def _model_bytes(stages: Stages) -> int:
    return sum(parameter.nbytes for parameter in stages.pipeline.transformer.parameters())
