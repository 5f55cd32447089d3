"""Images by kernels beside those of the simulated model, as a table of the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dirotq.report.cells import Number, shown_number


def kernel_images(folder: Path) -> str:
    """PSNR of both and of the noise floor, from each images*.json that experiments/kernel_images.py wrote."""
    sources = sorted(folder.glob("images*.json"))
    if not sources:
        raise ValueError(f"no images*.json in {folder.name}")
    lines = [
        "| N | images | PSNR to 16-bit, dB ↑ | minus simulated | minus float64 | PSNR to simulated, dB ↑ |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    origins = []
    for source in sources:
        content = json.loads(source.read_text(encoding="utf-8"))
        lines += _rows(content)
        origins += ["", _origin(content, source.name)]
    lines += [
        "",
        "Float64: the simulated layers, each sum of their transforms in float64 and rounded once. That is the noise "
        "floor: the few codes that float32's rounding moves, in every layer. 95 % bootstrap intervals over prompts, "
        "differences paired by prompt.",
        *origins,
    ]
    return "\n".join(lines) + "\n"


def _rows(content: dict[str, Any]) -> list[str]:
    to_16_bit, to_simulated = content["psnr_to_16_bit"], content["psnr_to_simulated"]
    n, draws = content["prompts"]["n"], content["prompts"]["draws"]
    count = f"{n:,} x {draws}" if draws > 1 else f"{n:,}"
    ours = {
        name: f"{_shown(to_16_bit[name])} | {_difference(to_16_bit[f'{name}_minus_simulated'])}"
        for name in ("floor", "kernels")
    }
    beyond = _difference(to_16_bit["kernels_minus_floor"])
    return [
        f"| {count} | simulated | {_shown(to_16_bit['simulated'])} | - | - | - |",
        f"| {count} | simulated, float64 | {ours['floor']} | - | {_shown(to_simulated['floor'])} |",
        f"| {count} | kernels | {ours['kernels']} | {beyond} | {_shown(to_simulated['kernels'])} |",
    ]


def _origin(content: dict[str, Any], name: str) -> str:
    env, prompts, recipe = content["env"], content["prompts"], content["recipe"]
    layers = f"{sum(content['backend'].values())} layers ({', '.join(content['backend'])})"
    draws = f" x {prompts['draws']} noises, averaged" if prompts["draws"] > 1 else ""
    return (
        f"{recipe['method']['name']}, {recipe['bits']}, {layers}, emoji, trained weights, N = {prompts['n']} prompts"
        f"{draws}, prompt set {prompts['set']}, {env['device']}, torch {env['versions']['torch']}, commit {env['git']} "
        f"(`experiments/results/kernels/{name}`: `{content['command']}`)."
    )


def _shown(found: dict[str, Any]) -> str:
    return shown_number(Number(found["value"], 2, found["ci_low"], found["ci_high"]))


def _difference(found: dict[str, Any]) -> str:
    verdict = "" if found["distinguishable"] else "(not distinguishable)"
    interval = (found["ci_low"], found["ci_high"])
    return shown_number(Number(found["value"], 2, *interval, verdict=verdict, signed=True))
