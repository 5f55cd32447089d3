"""Measure a run: every metric of `eval.metrics`, the noise floor, and latents along the trajectory.

A metric has one place here: a function of `_EACH`, if every image has a value, or of `_WHOLE`, if only the set has one.
A metric whose package or weights are not here is left out, and the result says why.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dirotq.atomic import atomic_write_text
from dirotq.lab import results
from dirotq.lab.progress import bar, track
from dirotq.lab.results import Floor, Metric
from dirotq.lab.sources import source_hash
from dirotq.lab.stages import Stages
from dirotq.metrics import embedded, fidelity, frechet, inception, perceptual, text
from dirotq.metrics.feature_network import FILE_NAME, load_feature_network
from dirotq.metrics.statistics import Estimate, bootstrap_mean, distinguishable, paired_difference
from dirotq.metrics.trajectory import latent_errors
from dirotq.metrics.unavailable import UnavailableError
from dirotq.pipeline import model_folder
from dirotq.prompts import ASSETS, Prompt

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """What a run measured.

    values: [B] by metric, of those that each image has. left_out: reason by metric. noise_floor: empty if it was not
    asked for. trajectory: relative errors of the latents [prompts, steps], or None.
    """

    seed: int
    metrics: dict[str, Metric]
    values: dict[str, Tensor]
    left_out: dict[str, str]
    noise_floor: dict[str, Floor]
    trajectory: Tensor | None

    def write_tables(self, folder: Path, prompts: Sequence[Prompt]) -> None:
        """Write `prompts.csv`, one row a prompt, for paired comparisons, and `trajectory.csv`, one row a step."""
        rows = [
            [prompt.id, prompt.category, prompt.split, *numbers]
            for prompt, *numbers in zip(prompts, *map(_texts, self.values.values()), strict=True)
        ]
        _write_csv(folder / "prompts.csv", ["prompt", "category", "split", *self.values], rows)
        if self.trajectory is not None:
            steps = [bootstrap_mean(errors, seed=self.seed) for errors in self.trajectory.T]
            rows = [
                [str(number), *_texts([step.value, step.ci_low, step.ci_high])]
                for number, step in enumerate(steps, start=1)
            ]
            _write_csv(
                folder / "trajectory.csv", ["step", "latent_error", "ci_low", "ci_high"], rows
            )


def measure(stages: Stages, reference: Tensor, images: Tensor) -> Measured:
    """Everything that `eval` asks for, of uint8 [B, H, W, 3] images beside the 16-bit ones."""
    settings, seed = stages.job.eval, stages.job.seed
    pair = _Pair(stages, _Networks(stages), reference, images)
    metrics, values, left_out = _take(pair, settings.metrics)
    floor: dict[str, Floor] = {}
    if settings.noise_floor and len(images) > 1:
        floor = _noise_floor(pair, metrics, values)
    elif settings.noise_floor:
        left_out["noise_floor"] = "one prompt makes no batches of another size"
    if settings.trajectory and not stages.pipeline.reports_latents:
        left_out["latent_error"] = "the pipeline does not report its latents"
    for name, reason in left_out.items():
        _log.warning("metric %s is left out: %s", name, reason)
    latents = stages.latents()
    trajectory = latent_errors(*latents) if latents else None
    return Measured(seed, metrics, values, left_out, floor, trajectory)


@dataclass(frozen=True)
class _Pair:
    """Images, uint8 [B, H, W, 3], and the 16-bit ones of the same prompts."""

    stages: Stages
    networks: _Networks
    reference: Tensor
    images: Tensor

    @property
    def texts(self) -> list[str]:
        return [prompt.text for prompt in self.stages.prompts]

    def batched(self, label: str, function: Callable[..., Tensor], *columns: Any) -> Tensor:
        """`function` of `eval.batch` rows of the columns at once."""
        size = self.stages.job.eval.batch
        starts = track(range(0, len(columns[0]), size), label)
        return torch.cat([function(*(column[i : i + size] for column in columns)) for i in starts])


class _Networks:
    """What metrics look through, each loaded when the first one asks; raises UnavailableError."""

    def __init__(self, stages: Stages) -> None:
        self.job, self.device = stages.job, stages.device

    @cached_property
    def embedded(self) -> nn.Module:
        folder = model_folder(self.job.model.path) or ASSETS
        if not (folder / FILE_NAME).is_file():
            raise UnavailableError("the model has no feature network")
        return load_feature_network(folder)

    @cached_property
    def lpips(self) -> nn.Module:
        return perceptual.lpips_network(self.job.eval.lpips_net).to(self.device)

    @cached_property
    def inception(self) -> inception.Extractor:
        return inception.inception(self.device)

    @cached_property
    def clip(self) -> text.Clip:
        return text.load_clip(self.job.eval.clip_model, self.device)

    @cached_property
    def image_reward(self) -> Any:
        return text.load_image_reward(self.device)


def _take(
    pair: _Pair, names: Iterable[str]
) -> tuple[dict[str, Metric], dict[str, Tensor], dict[str, str]]:
    """Metrics, the values [B] of those that each image has, and the reasons for those left out."""
    metrics: dict[str, Metric] = {}
    values: dict[str, Tensor] = {}
    left_out: dict[str, str] = {}
    for name in names:
        try:
            if name in _EACH:
                values[name] = _EACH[name](pair)
                estimate = bootstrap_mean(values[name], seed=pair.stages.job.seed)
            elif len(pair.images) > 1:
                estimate = _WHOLE[name](pair)
            else:
                raise UnavailableError("a Fréchet distance needs at least 2 images")
            metrics[name] = results.metric(estimate)
        except UnavailableError as error:
            left_out[name] = str(error)
    return metrics, values, left_out


def _noise_floor(pair: _Pair, names: Iterable[str], values: dict[str, Tensor]) -> dict[str, Floor]:
    """What the metrics say of the 16-bit images drawn once more, and whether `values` can be told from it."""
    seed = pair.stages.job.seed
    metrics, floor, _ = _take(replace(pair, images=pair.stages.redrawn_images()), names)
    told = {
        name: distinguishable(paired_difference(values[name], floor[name], seed=seed))
        for name in floor
    }
    return {name: Floor(**value, distinguishable=told.get(name)) for name, value in metrics.items()}


def _psnr(pair: _Pair) -> Tensor:
    return fidelity.capped(fidelity.psnr(pair.reference, pair.images))


def _ssim(pair: _Pair) -> Tensor:
    return fidelity.ssim(pair.reference, pair.images)


def _sharpness(pair: _Pair) -> Tensor:
    return fidelity.sharpness(pair.images, pair.reference)


def _lpips(pair: _Pair) -> Tensor:
    network = pair.networks.lpips
    return pair.batched(
        "LPIPS",
        lambda a, b: perceptual.lpips_distance(network, a, b),
        pair.reference,
        pair.images,
    )


def _emoji_perceptual(pair: _Pair) -> Tensor:
    return embedded.perceptual_distance(pair.networks.embedded, pair.reference, pair.images)


def _clip_score(pair: _Pair) -> Tensor:
    clip = pair.networks.clip
    return pair.batched(
        "CLIP score", lambda a, b: text.clip_score(clip, a, b), pair.images, pair.texts
    )


def _image_reward(pair: _Pair) -> Tensor:
    model = pair.networks.image_reward
    return pair.batched(
        "ImageReward", lambda a, b: text.image_reward(model, a, b), pair.images, pair.texts
    )


def _emoji_frechet(pair: _Pair) -> Estimate:
    network = pair.networks.embedded
    ours, theirs = (embedded.pooled_features(network, x) for x in (pair.images, pair.reference))
    return frechet.frechet_estimate(ours, theirs, seed=pair.stages.job.seed)


def _fid(pair: _Pair) -> Estimate:
    job, device, extract = pair.stages.job, pair.stages.device, pair.networks.inception

    def features(images: Tensor) -> Tensor:
        return pair.batched(
            "Inception", lambda part: inception.inception_features(extract, part, device), images
        )

    reference: Tensor | frechet.Gaussian
    if job.eval.fid_reference is None:
        fields = {
            "clean-fid": importlib.metadata.version("clean-fid"),
            "source": source_hash("metrics/inception.py"),
        }
        reference = pair.stages.of_reference("inception", fields, features)
    else:
        place = Path(job.eval.fid_reference)
        reference = inception.reference_statistics(extract, place, job.eval.batch, device)
    ours = features(pair.images)
    with bar("FID", frechet.RESAMPLES + 1) as tick:
        return frechet.frechet_estimate(ours, reference, seed=job.seed, tick=tick)


_EACH: dict[str, Callable[[_Pair], Tensor]] = {
    "psnr": _psnr,
    "ssim": _ssim,
    "sharpness": _sharpness,
    "lpips": _lpips,
    "emoji_perceptual": _emoji_perceptual,
    "clip_score": _clip_score,
    "image_reward": _image_reward,
}
_WHOLE: dict[str, Callable[[_Pair], Estimate]] = {"emoji_frechet": _emoji_frechet, "fid": _fid}


def _texts(values: Iterable[Any]) -> list[str]:
    """Numbers with six digits; nothing for None."""
    return ["" if value is None else f"{float(value):.6g}" for value in values]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([header, *rows])
    atomic_write_text(path, out.getvalue())
