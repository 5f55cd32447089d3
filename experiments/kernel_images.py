"""Images by kernels beside those of the simulated model: python -m experiments.kernel_images OUT.json [--set ...]

One checkpoint, the same prompts and seeds, drawn by the simulated layers, by them in batches of another size, and by
kernels in CUDA graphs. The second is the noise floor: what a different order of summation alone does to the images. GPU
only.
"""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dirotq.atomic import atomic_write_json
from dirotq.backend import set_backend
from dirotq.config import build_job, compose_config
from dirotq.graphs import capture
from dirotq.lab.drawing import Drawer
from dirotq.lab.results import environment
from dirotq.lab.stages import Stages
from dirotq.metrics.fidelity import capped, psnr
from dirotq.metrics.statistics import Estimate, bootstrap_mean, distinguishable, paired_difference

_SETTINGS = ("bits=w4a4_fp4h", "protect=fp8x2", "eval=standard")
_OTHER_BATCH = 24


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="overrides")
    parser.add_argument("--commit", help="of the source, on a machine without its checkout")
    arguments = parser.parse_args()
    known = {"git": arguments.commit} if arguments.commit else {}
    stages = Stages(build_job(compose_config([*_SETTINGS, *arguments.settings])))
    checkpoint, report = stages.quantized()
    reference = stages.reference_images()
    batch = stages.job.eval.batch
    simulated, _ = _draw(stages, checkpoint, "reference", batch)
    again, _ = _draw(stages, checkpoint, "reference", _OTHER_BATCH)
    kernels, chosen = _draw(stages, checkpoint, "auto", batch)
    content = {
        "what": "images of one checkpoint by kernels and by the simulated layers; trained weights",
        "command": _command(arguments.settings),
        "env": environment(stages.device) | known,
        "recipe": stages.job.recipe.to_dict(),
        "effective_bits": {"weight": report.weight_bits, "activation": report.act_bits},
        "prompts": {"set": stages.job.eval.prompt_set, "n": len(stages.prompts)},
        "backend": dict(Counter(text.partition(":")[0] for text in chosen.values())),
        **_compared(reference, simulated, again, kernels),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(arguments.out, content)


def _command(settings: Sequence[str]) -> str:
    kept = [setting for setting in settings if not setting.startswith("runtime.cache=")]
    words = ["python", "-m", "experiments.kernel_images", "OUT.json"]
    return shlex.join([*words, *(["--set", *kept] if kept else [])])


def _draw(
    stages: Stages, checkpoint: Path, backend: str, batch: int
) -> tuple[Tensor, dict[str, str]]:
    """Images uint8 [B, H, W, 3], and what computed each layer. Raises ValueError when an image is broken."""
    model = stages.pipeline.load_transformer(checkpoint)
    chosen = set_backend(model, backend)
    if backend != "reference":
        capture(model)
    drawer = Drawer(
        stage="images",
        label=f"images by {backend}",
        pipeline=stages.pipeline,
        transformer=lambda: model,
        depends=dict,  # of a key, and none is asked for
    )
    images = drawer.draw(stages.prompts, batch, reference=stages.reference_images())
    return images, chosen


def _compared(
    reference: Tensor, simulated: Tensor, again: Tensor, kernels: Tensor
) -> dict[str, Any]:
    """PSNR in dB: of both to the 16-bit images and their paired difference; to each other, beside the floor's."""
    ours, theirs = _psnr(kernels, reference), _psnr(simulated, reference)
    floor = _psnr(again, reference)
    difference, noise = (paired_difference(one, theirs, seed=0) for one in (ours, floor))
    beyond = paired_difference(ours, floor, seed=0)
    return {
        "psnr_to_16_bit": {
            "simulated": _shown(bootstrap_mean(theirs, seed=0)),
            "kernels": _shown(bootstrap_mean(ours, seed=0)),
            "kernels_minus_simulated": _shown(difference) | _told(difference),
            "floor_minus_simulated": _shown(noise) | _told(noise),
            "kernels_minus_floor": _shown(beyond) | _told(beyond),
        },
        "psnr_to_simulated": {
            "kernels": _shown(bootstrap_mean(_psnr(kernels, simulated), seed=0)),
            "floor": _shown(bootstrap_mean(_psnr(again, simulated), seed=0)),
        },
        "bitwise_equal_to_simulated": {
            "kernels": int((kernels == simulated).flatten(1).all(1).sum()),
            "floor": int((again == simulated).flatten(1).all(1).sum()),
        },
    }


def _psnr(a: Tensor, b: Tensor) -> Any:
    return capped(psnr(a, b)).numpy()


def _shown(estimate: Estimate) -> dict[str, Any]:
    return asdict(estimate)


def _told(estimate: Estimate) -> dict[str, bool]:
    return {"distinguishable": distinguishable(estimate)}


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
