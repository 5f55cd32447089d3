"""Grids of images: prompts x runs, the 16-bit ones on top, and under each row its difference amplified."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dirotq.lab.pictures import above, grid
from dirotq.prompts import load_prompts
from dirotq.report.rows import groups, label, origin
from dirotq.report.runs import NoDataError, Run

AMPLIFIED = 8


def image_grid(runs: Sequence[Run], *, prompts: int = 8, factor: int = AMPLIFIED) -> Image.Image:
    """The 16-bit images, then each run's and ``factor`` times its difference, of the first prompts that all runs have.

    The 16-bit images are those of a run of `method=fp16`, or else are taken from a run's grid.png.

    Raises:
        NoDataError: no run has images, they share no prompt, or their 16-bit images differ or cannot be had.
    """
    having = [run for run in runs if run.result is not None and run.file("images")]
    quantized = [run for run in having if run.result and run.result["method"] != "fp16"]
    if not quantized:
        raise NoDataError("no quantized run has an images folder")
    if len({_reference(run) for run in having}) > 1:
        raise NoDataError("the runs differ in model or device, and so in their 16-bit images")
    ids = _shared_prompts(having)[:prompts]
    if not ids:
        raise NoDataError("the runs have no prompt in common")
    exact = next((run for run in having if run not in quantized), None)
    reference = _from_grid(quantized[0], ids) if exact is None else _images(exact, ids)
    ids = [key for key in ids if key in reference]
    rows = [("16-bit", [reference[key] for key in ids])]
    for group in groups(quantized, each_seed=True):
        images = [_image(group.runs[0], key) for key in ids]
        pairs = zip(images, rows[0][1], strict=True)
        rows.append((label(group), images))
        rows.append((f"{factor} x difference", [_difference(a, b, factor) for a, b in pairs]))
    texts = _texts(quantized[0])
    titles = [texts.get(key, key) for key in ids]
    return grid(rows, titles, scale=_scale(rows[0][1][0]), max_columns=len(ids))


def _scale(image: Tensor) -> int:
    """Magnification of an image [H, W, 3] that the grids of runs have: small images are shown 128 pixels high."""
    return max(1, 128 // image.shape[0])


def _reference(run: Run) -> tuple[str | None, ...]:
    """What the 16-bit images of a run's prompts depend on."""
    assert run.result is not None  # only finished runs have images
    settings = run.settings
    facts = [origin(run.result)[name] for name in ("model", "weights", "device", "torch")]
    return (*facts, *(settings.get(f"model.{name}") for name in ("size", "steps", "guidance")))


def _difference(image: Tensor, reference: Tensor, factor: int) -> Tensor:
    """uint8 [H, W, 3]: absolute difference times ``factor``, cut at white."""
    return ((image.int() - reference.int()).abs() * factor).clamp(max=255).to(torch.uint8)


def _shared_prompts(runs: Sequence[Run]) -> list[str]:
    """Prompts that every run has an image of, in the order of the first run's grid where that is known."""
    sets = [{path.stem for path in (run.path / "images").glob("*.png")} for run in runs]
    table = runs[0].file("prompts.csv")
    if table is None:
        order = sorted(sets[0])
    else:
        with table.open(newline="", encoding="utf-8") as file:
            order = [row["prompt"] for row in csv.DictReader(file)]
    return [key for key in order if all(key in found for found in sets)]


def _from_grid(run: Run, ids: Sequence[str]) -> dict[str, Tensor]:
    """The 16-bit images above the run's own in its grid.png, which holds the first prompts only."""
    path = run.file("grid.png")
    if path is None:
        raise NoDataError("the 16-bit images cannot be had: add a run of method=fp16")
    picture = _pixels(path)
    found = {}
    for key in ids:
        image = _image(run, key)
        over = above(picture, image, _scale(image))
        if over is not None:
            found[key] = over
    if not found:
        raise NoDataError(f"{path.name} shows none of the images; add a run of method=fp16")
    return found


def _texts(run: Run) -> dict[str, str]:
    """Prompts by id; a set that is a file elsewhere may be gone, and then ids must do."""
    prompts = run.result.get("prompts") if run.result else None
    if prompts is None:
        return {}
    try:
        return {prompt.id: prompt.text for prompt in load_prompts(prompts["set"])}
    except (OSError, ValueError):
        return {}


def _images(run: Run, ids: Sequence[str]) -> dict[str, Tensor]:
    return {key: _image(run, key) for key in ids}


def _image(run: Run, key: str) -> Tensor:
    return _pixels(run.path / "images" / f"{key}.png")


def _pixels(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))
