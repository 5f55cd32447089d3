"""Output error of quantized layers on inputs that calibration did not see: ablations without generating an image.

python -m experiments.layer_error OUT.json "rotation=dense" "basis=joint protect=int8" ... --seeds 3

Each of the last arguments is a recipe: overrides, as for `dirotq`. For every recipe and seed the embedded model is
quantized and each layer fed with rows of its 16-bit inputs on the prompts of the `quick` set; the error is
||y_quantized - y|| / ||y||, averaged over the layers.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import dirotq
from dirotq.atomic import atomic_write_json
from dirotq.calibrate import InputStatistics
from dirotq.config import build_job, compose_config
from dirotq.lab.results import environment
from dirotq.lab.stages import Stages
from dirotq.linear import QuantLinear


def main() -> None:
    """Measure from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], dest="settings")
    arguments = parser.parse_args()
    calibration = Stages(build_job(compose_config(arguments.settings)))
    unseen = Stages(build_job(compose_config([*arguments.settings, "calib.prompt_set=quick"])))
    seen, held = calibration.statistics(), unseen.statistics()
    rows = []
    for recipe in arguments.recipes:
        for seed in range(arguments.seeds):
            print(f"{recipe}, seed {seed}", flush=True)
            found = measure(calibration, recipe, seed, seen, held)
            rows.append({"recipe": recipe, "seed": seed, **found})
    content = {
        "what": "mean over layers of ||y_quantized - y|| / ||y|| on unseen inputs; simulated, trained weights",
        "command": shlex.join(["python", "-m", "experiments.layer_error", *sys.argv[1:]]),
        "env": environment(calibration.device),
        "calibration": {"prompts": len(calibration.calibration), "tokens": seen[0].rows},
        "unseen": {"prompts": len(unseen.calibration), "rows": len(held[0].sample)},
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_json(arguments.out, content)


def measure(
    stages: Stages,
    recipe: str,
    seed: int,
    seen: list[InputStatistics],
    held: list[InputStatistics],
) -> dict[str, Any]:
    """Error, bits and seconds of one recipe; `held` are the statistics whose samples are the unseen inputs."""
    original = stages.pipeline.transformer
    model = copy.deepcopy(original)
    start = time.perf_counter()
    chosen = dirotq.recipe(*recipe.split(), f"seed={seed}")
    report = dirotq.quantize(model, chosen, statistics=seen)
    seconds = time.perf_counter() - start
    errors = []
    for inputs in held:
        x = inputs.sample.to(stages.device)
        for name in inputs.members:
            layer, linear = model.get_submodule(name), original.get_submodule(name)
            assert isinstance(layer, QuantLinear)
            assert isinstance(linear, torch.nn.Linear)
            bias = None if linear.bias is None else linear.bias.float()
            wanted = F.linear(x, linear.weight.float(), bias)
            with torch.no_grad():
                errors.append(float((layer(x).float() - wanted).norm() / wanted.norm()))
    return {
        "error": statistics.mean(errors),
        "weight_bits": report.weight_bits,
        "activation_bits": report.act_bits,
        "layers": len(errors),
        "fallbacks": sum(row.fallback for row in report.layers),
        "seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    main()
