"""Images by kernels beside those of the simulated model, as a table of the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dirotq.report.cells import Number, shown_number


def kernel_images(source: Path) -> str:
    """PSNR of both and of the noise floor, from what experiments/kernel_images.py wrote."""
    content = json.loads(source.read_text(encoding="utf-8"))
    to_16_bit, to_simulated = content["psnr_to_16_bit"], content["psnr_to_simulated"]
    lines = [
        "| images | PSNR to 16-bit, dB ↑ | minus simulated | PSNR to simulated, dB ↑ |",
        "|---|---:|---:|---:|",
        f"| simulated | {_shown(to_16_bit['simulated'])} | - | - |",
    ]
    floor = _difference(to_16_bit["floor_minus_simulated"])
    lines.append(f"| simulated, in other batches | - | {floor} | {_shown(to_simulated['floor'])} |")
    ours, minus = to_16_bit["kernels"], _difference(to_16_bit["kernels_minus_simulated"])
    lines.append(f"| kernels | {_shown(ours)} | {minus} | {_shown(to_simulated['kernels'])} |")
    env, prompts, recipe = content["env"], content["prompts"], content["recipe"]
    layers = f"{sum(content['backend'].values())} layers ({', '.join(content['backend'])})"
    lines += [
        "",
        "Other batches are the noise floor: the order of sums alone. Kernels minus the floor: "
        f"{_difference(to_16_bit['kernels_minus_floor'])}. 95 % bootstrap intervals, differences paired by prompt.",
        "",
        f"{recipe['method']['name']}, {recipe['bits']}, {layers}, emoji, trained weights, N = {prompts['n']} prompts, "
        f"prompt set {prompts['set']}, {env['device']}, torch {env['versions']['torch']}, commit {env['git']} "
        f"(`experiments/results/kernels/{source.name}`: `{content['command']}`).",
    ]
    return "\n".join(lines) + "\n"


def _shown(found: dict[str, Any]) -> str:
    return shown_number(Number(found["value"], 2, found["ci_low"], found["ci_high"]))


def _difference(found: dict[str, Any]) -> str:
    verdict = "" if found["distinguishable"] else "(not distinguishable)"
    interval = (found["ci_low"], found["ci_high"])
    return shown_number(Number(found["value"], 2, *interval, verdict=verdict, signed=True))
