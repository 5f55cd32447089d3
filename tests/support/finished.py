"""Finished runs without running anything: results, run directories and sweeps as the main job leaves them."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

RESULT: dict[str, Any] = {
    "schema": 1,
    "model": "emoji",
    "method": "dirotq",
    "bits": "w4a4_int4",
    "rank": 32,
    "budget": None,
    "basis": "pca",
    "protect": "bf16",
    "rotation": "compact",
    "rounding": "gptq",
    "seed": 0,
    "effective_bits": {"weight": 6.25, "activation": 4.5},
    "metrics": {
        "psnr": {"value": 30.123456, "ci_low": 29.5, "ci_high": 30.75, "n": 256},
        "ssim": {"value": 0.9412345, "ci_low": 0.93, "ci_high": 0.95, "n": 256},
    },
    "paper": None,
    "seconds": {"images": 7.5, "total": 22.25},
    "bytes": {"checkpoint": 14_000_000, "peak": 400_000_000},
    "env": {
        "device": "a GPU",
        "versions": {
            "python": "3.11.7",
            "torch": "2.11.0",
            "diffusers": "0.42.1",
            "transformers": "5.17.0",
            "dirotq": "0.1.0",
        },
        "git": "0123456789ab",
    },
    "weights": "trained",
    "numerics": "simulated",
    "command": "dirotq eval=standard",
    "prompts": {"set": "standard", "n": 256},
}
RTN = {"method": "rtn", "rank": None, "basis": None, "rotation": None, "protect": None}


def result(psnr: float | None = None, **changes: Any) -> dict[str, Any]:
    """A valid result; ``psnr`` has an interval half a decibel to both sides."""
    made = copy.deepcopy(RESULT) | changes
    if psnr is not None:
        made["metrics"]["psnr"].update(value=psnr, ci_low=psnr - 0.5, ci_high=psnr + 0.5)
    return made


def write_result(path: Path, psnr: float | None = None, **changes: Any) -> Path:
    """A result file, as they are committed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result(psnr, **changes)))
    return path


def write_run(
    folder: Path,
    psnr: float | None = None,
    *,
    files: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    images: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run directory with further files by name, and images uint8 [H, W, 3] by prompt id."""
    write_result(folder / "result.json", psnr, **changes)
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    if config is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for name, pixels in (images or {}).items():
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(np.asarray(pixels)).save(folder / "images" / f"{name}.png")
    return folder


def write_job(sweep: Path, number: int, status: str, *overrides: str, **more: Any) -> Path:
    """What a job of a sweep left in the sweep's folder."""
    record = {
        "schema": 1,
        "sweep": sweep.name,
        "number": number,
        "overrides": list(overrides),
        "status": status,
        "run": None,
        "error": None,
        "started": "2026-11-22T18:00:00+00:00",
        "ended": None,
    }
    path = sweep / str(number) / "job.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record | more))
    return path
