"""The main job: load, calibrate, quantize, generate, measure, write the run directory."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shlex
import shutil
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from dirotq.atomic import atomic_directory, atomic_write_text
from dirotq.config import Job, SweepJob
from dirotq.lab import results
from dirotq.lab.devices import claimed, resolve_device, resolve_dtype
from dirotq.lab.measure import Measured, measure
from dirotq.lab.pictures import grid, save_png
from dirotq.lab.preflight import preflight
from dirotq.lab.results import Result, read_result
from dirotq.lab.sources import SOURCE, is_source, kernels_hash, source_hash
from dirotq.lab.stages import Stages
from dirotq.lab.team import Team
from dirotq.lab.trial import peak_bytes
from dirotq.pipeline import fingerprint, model_folder
from dirotq.prompts import load_prompts
from dirotq.quantize import LayerReport, Report

_GRID_IMAGES = 16
_WRITTEN = {
    "result.json", "config.yaml", "layers.csv", "prompts.csv", "trajectory.csv", "grid.png", "images",
    "checkpoint",
}  # fmt: skip
_COUNTS = ("threads", "deterministic", "backend")  # of runtime; device and dtype are resolved first
_APART = (
    "out",
    "force",
    "save",
    "logger",
)  # settings that decide where a result goes, not what it is


def run_directory(job: Job) -> Path:
    """`out`, or a folder named after what decides the result."""
    if job.out is not None:
        return Path(job.out)
    method = job.recipe.method
    name = "-".join([job.model.name, method.name, *([_bits(job)] if method.quantizes else [])])
    return Path("outputs/runs") / f"{name}-{identity(job)}"


def identity(job: Job) -> str:
    """Hash (8 hex digits) of all that decides a result: settings, prompts, weights, device, versions and source."""
    settings = {k: v for k, v in job.composed.items() if k not in _APART}
    settings["runtime"] = {key: job.composed["runtime"][key] for key in _COUNTS}
    device = resolve_device(job.runtime.device)
    sets = (job.eval.prompt_set, job.eval.prompts), (job.calib.prompt_set, job.calib.prompts)
    content = {
        "settings": settings,
        "prompts": [[asdict(prompt) for prompt in load_prompts(*one)] for one in sets],
        "weights": fingerprint(model_folder(job.model.path), job.model.path),
        "device": [device.type, str(resolve_dtype(job.runtime.dtype, device))],
        "versions": results.environment(device)["versions"],
        "source": source_hash(*sorted(path.name for path in SOURCE.iterdir() if _decides(path))),
        "kernels": kernels_hash(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def _decides(path: Path) -> bool:
    """Whether a folder or file of the library has a part in a run's result: what only reads finished runs has none."""
    return is_source(path) and path.name not in ("judge", "report")


def finished(job: Job) -> bool:
    """Whether the job's directory holds its finished run, with the checkpoint if one is asked for.

    Raises ValueError when the directory holds something else, which a run would have to replace.
    """
    out = run_directory(job)
    if not out.exists() or not any(out.iterdir()):
        return False
    foreign = sorted({path.name for path in out.iterdir()} - _WRITTEN)
    if foreign or not (out / "result.json").is_file():
        what = f"other files ({foreign[0]})" if foreign else "no finished run"
        raise ValueError(f"out={out}: the folder exists and holds {what}; choose another")
    same = read_result(out / "result.json").get("config") == identity(job)
    if not same and not job.force:
        raise ValueError(
            f"out={out}: the folder holds another run (settings, prompts, weights, device or "
            "versions differ); choose another, or replace it by force=true"
        )
    complete = not (job.save and job.recipe.method.quantizes) or (out / "checkpoint").is_dir()
    return same and complete


def run(job: Job, place: SweepJob | None = None) -> Path:
    """Do the job and return its run directory; a finished one is returned as it is unless `force`.

    place: in the sweep that the job is one of. Of the processes of a `Team` the leading one measures and writes.
    Raises ValueError for settings that cannot work and OSError for a disk that cannot be written; no run directory is
    left then, and the finished stages are kept.
    """
    out = run_directory(job)
    if finished(job) and not job.force:
        return out
    name = Team().device(job.runtime.device)
    with claimed(name, Path(job.runtime.cache) / "devices") as device:
        _run(replace(job, runtime=replace(job.runtime, device=device)), out, place)
    return out


def _run(job: Job, out: Path, place: SweepJob | None) -> None:
    start = time.perf_counter()
    if job.runtime.threads is not None:
        torch.set_num_threads(job.runtime.threads)
    torch.use_deterministic_algorithms(job.runtime.deterministic)
    stages = Stages(job)
    if stages.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(stages.device)  # a sweep's jobs share a process
    estimate = preflight(stages) if job.runtime.preflight and stages.team.leads else None
    reference = stages.reference_images()
    checkpoint, report = stages.quantized() if job.recipe.method.quantizes else (None, None)
    images = stages.images()
    if not stages.team.leads:
        return
    measured = measure(stages, reference, images)
    seconds = {**stages.seconds, "total": time.perf_counter() - start}
    result = _result(stages, report, checkpoint, measured, seconds, place)
    result["preflight"] = estimate
    with stages.cache.writing(out), atomic_directory(out, replace=True) as folder:
        _write(folder, stages, result, report, reference, images)
        measured.write_tables(folder, stages.prompts)
        if job.save and checkpoint is not None:
            shutil.copytree(checkpoint, folder / "checkpoint")


def _bits(job: Job) -> str:
    return job.recipe.bits.name if job.recipe.method.quantizes else "w16a16"


def _result(
    stages: Stages,
    report: Report | None,
    checkpoint: Path | None,
    measured: Measured,
    seconds: dict[str, float],
    place: SweepJob | None,
) -> Result:
    job, method = stages.job, stages.job.recipe.method
    budget = job.recipe.budget
    rank = getattr(method, "rank", None) if budget is None else None
    return Result(
        schema=1,
        model=job.model.name,
        method=method.name,
        bits=_bits(job),
        rank=int(rank) if rank is not None and rank >= 1 else rank,
        budget=budget,
        basis=getattr(method, "basis", None),
        protect=getattr(method, "protect", None),
        rotation=getattr(method, "rotation", None),
        rounding=method.rounding if method.quantizes else None,
        seed=job.seed,
        effective_bits={
            "weight": report.weight_bits if report else 16.0,
            "activation": report.act_bits if report else 16.0,
        },
        metrics=measured.metrics,
        left_out=measured.left_out,
        noise_floor=measured.noise_floor,
        paper=job.paper,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        bytes={"checkpoint": _size(checkpoint), "peak": peak_bytes(stages.device)},
        env=results.environment(stages.device),
        weights="trained" if job.model.weights == "trained" else "random",
        numerics="kernel" if set(stages.backend) - {"reference"} else "simulated",
        backend=stages.backend,
        command=shlex.join(["dirotq", *(place.overrides if place else sys.argv[1:])]),
        config=identity(job),
        prompts={"set": job.eval.prompt_set, "n": len(stages.prompts)},
        sweep=place.folder.parent.name if place else None,
    )


def _size(folder: Path | None) -> int | None:
    if folder is None:
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write(
    folder: Path,
    stages: Stages,
    result: Result,
    report: Report | None,
    reference: Tensor,
    images: Tensor,
) -> None:
    results.write_result(folder / "result.json", result)
    atomic_write_text(folder / "config.yaml", yaml.safe_dump(stages.job.composed, sort_keys=False))
    if report is not None:
        atomic_write_text(folder / "layers.csv", _table(report))
    for prompt, image in zip(stages.prompts, images, strict=True):
        save_png(image, folder / "images" / f"{prompt.id}.png")
    count = min(_GRID_IMAGES, len(images))
    label = f"{result['method']} {result['bits']}"
    rows = [("16-bit", list(reference[:count])), (label, list(images[:count]))]
    scale = max(1, 128 // images.shape[1])
    picture = grid(rows, [prompt.text for prompt in stages.prompts[:count]], scale=scale)
    save_png(picture, folder / "grid.png")


def _table(report: Report) -> str:
    names = [field.name for field in fields(LayerReport)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for layer in report.layers:
        row = asdict(layer)
        writer.writerow({k: f"{v:.3f}" if isinstance(v, float) else v for k, v in row.items()})
    return text.getvalue()
