"""Images by kernels beside those of the simulated model: python -m experiments.kernel_images OUT.json [--set ...]

One checkpoint, the same prompts and seeds, drawn by the simulated layers, by them with their transforms in float64, and
by kernels in CUDA graphs. The second is the noise floor: what rounding in float32 sums, which their order decides, does
to images through the few codes that it moves, in every layer. Batches of another size are no floor: whether another
order comes with them is the matrix library's choice. GPU only.
"""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dirotq.atomic import atomic_write_json
from dirotq.backend import set_backend
from dirotq.config import build_job, compose_config
from dirotq.graphs import capture
from dirotq.lab.drawing import Drawer
from dirotq.lab.results import environment
from dirotq.lab.stages import Stages
from dirotq.linear import QuantInput
from dirotq.metrics.fidelity import capped, psnr
from dirotq.metrics.statistics import bootstrap_mean, distinguishable, paired_difference
from dirotq.prompts import Prompt
from dirotq.transforms import Transform

_SETTINGS = ("bits=w4a4_fp4h", "protect=fp8x2", "eval=standard")


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--set", nargs="*", default=[], dest="settings", help="overrides")
    parser.add_argument("--commit", help="of the source, on a machine without its checkout")
    parser.add_argument("--draws", type=_positive, default=1, help="images a prompt, averaged")
    arguments = parser.parse_args()
    known = {"git": arguments.commit} if arguments.commit else {}
    stages = Stages(build_job(compose_config([*_SETTINGS, *arguments.settings])))
    prompts, stages.prompts = stages.prompts, repeated(stages.prompts, arguments.draws)
    checkpoint, report = stages.quantized()
    reference = stages.reference_images()
    simulated, _ = _draw(stages, checkpoint, "reference", reference)
    floor, _ = _draw(stages, checkpoint, "reference", reference, exact=True)
    kernels, chosen = _draw(stages, checkpoint, "auto", reference)
    content = {
        "what": "images of one checkpoint by kernels and by the simulated layers; trained weights",
        "command": _command(arguments),
        "env": environment(stages.device) | known,
        "recipe": stages.job.recipe.to_dict(),
        "effective_bits": {"weight": report.weight_bits, "activation": report.act_bits},
        "prompts": {
            "set": stages.job.eval.prompt_set,
            "n": len(prompts),
            "draws": arguments.draws,
        },
        "backend": dict(Counter(text.partition(":")[0] for text in chosen.values())),
        **compared(reference, simulated, floor, kernels, len(prompts)),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(arguments.out, content)


def _positive(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text}, allowed are whole numbers from 1 on")
    return int(text)


def _command(arguments: argparse.Namespace) -> str:
    kept = [setting for setting in arguments.settings if not setting.startswith("runtime.cache=")]
    words = ["python", "-m", "experiments.kernel_images", "OUT.json"]
    words += ["--draws", str(arguments.draws)] if arguments.draws > 1 else []
    return shlex.join([*words, *(["--set", *kept] if kept else [])])


def repeated(prompts: Sequence[Prompt], draws: int) -> list[Prompt]:
    """All prompts, then all of them again under ids, and so noises, of their own: `draws` times in all."""
    others = [replace(p, id=f"{p.id}/{draw}") for draw in range(1, draws) for p in prompts]
    return [*prompts, *others]


class _Exact(Transform):
    """A transform that sums in float64 and rounds once, to float32."""

    def __init__(self, transform: Transform) -> None:
        super().__init__(transform.width, transform.high)
        self.transform = transform

    def online(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        low, high = self.transform.online(x.double())
        return low.float(), None if high is None else high.float()

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.transform.fold(weight)


def use_exact_transforms(model: nn.Module) -> None:
    """Let simulated layers transform their inputs in float64. In place."""
    for module in list(model.modules()):
        if isinstance(module, QuantInput):
            module.transform = _Exact(module.transform)


def _draw(
    stages: Stages, checkpoint: Path, backend: str, reference: Tensor, *, exact: bool = False
) -> tuple[Tensor, dict[str, str]]:
    """Images uint8 [B, H, W, 3], and what computed each layer. Raises ValueError when an image is broken."""
    model = stages.pipeline.load_transformer(checkpoint)
    chosen = set_backend(model, backend)
    if exact:
        use_exact_transforms(model)
    if backend != "reference":
        capture(model)
    drawer = Drawer(
        stage="images",
        label=f"images by {backend}",
        pipeline=stages.pipeline,
        transformer=lambda: model,
        depends=dict,  # of a key, and none is asked for
    )
    images = drawer.draw(stages.prompts, stages.job.eval.batch, reference=reference)
    return images, chosen


def compared(
    reference: Tensor, simulated: Tensor, floor: Tensor, kernels: Tensor, prompts: int
) -> dict[str, Any]:
    """PSNR in dB to the 16-bit and to the simulated images, averaged over a prompt's draws, and paired differences.

    All images are uint8 [draws * prompts, H, W, 3], ordered as by `repeated`.
    """

    def values(a: Tensor, b: Tensor) -> Any:
        return capped(psnr(a, b)).reshape(-1, prompts).mean(0).numpy()

    def mean(found: Any) -> dict[str, Any]:
        return asdict(bootstrap_mean(found, seed=0))

    def minus(a: Any, b: Any) -> dict[str, Any]:
        difference = paired_difference(a, b, seed=0)
        return asdict(difference) | {"distinguishable": distinguishable(difference)}

    ours, theirs, noise = (values(images, reference) for images in (kernels, simulated, floor))
    return {
        "psnr_to_16_bit": {
            "simulated": mean(theirs),
            "floor": mean(noise),
            "kernels": mean(ours),
            "floor_minus_simulated": minus(noise, theirs),
            "kernels_minus_simulated": minus(ours, theirs),
            "kernels_minus_floor": minus(ours, noise),
        },
        "psnr_to_simulated": {
            "floor": mean(values(floor, simulated)),
            "kernels": mean(values(kernels, simulated)),
        },
        "bitwise_equal_to_simulated": {
            "floor": int((floor == simulated).flatten(1).all(1).sum()),
            "kernels": int((kernels == simulated).flatten(1).all(1).sum()),
        },
    }


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
