"""Images of several runs over the same prompts, one row a run: the picture at the top of README.

python -m experiments.strip experiments/results/strip.png RUN [RUN ...] --prompts ID [ID ...]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dirotq.lab.pictures import grid, save_png
from dirotq.lab.results import Result, read_result
from dirotq.prompts import load_prompts


def main() -> None:
    """Read the runs, draw the strip."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("runs", type=Path, nargs="+", help="run directories, the 16-bit one first")
    parser.add_argument("--prompts", nargs="+", required=True, help="prompt ids")
    parser.add_argument("--scale", type=int, default=2)
    arguments = parser.parse_args()
    results = [read_result(run / "result.json") for run in arguments.runs]
    texts = {prompt.id: prompt.text for prompt in load_prompts(results[0]["prompts"]["set"])}
    rows = [
        (label(result), [_image(run / "images" / f"{key}.png") for key in arguments.prompts])
        for run, result in zip(arguments.runs, results, strict=True)
    ]
    picture = grid(rows, [texts[key] for key in arguments.prompts], scale=arguments.scale)
    save_png(picture, arguments.picture)


def label(result: Result) -> str:
    """What a row is called: the method and its bits."""
    if result["method"] == "fp16":
        return "16-bit"
    return f"{result['method']} {result['bits'].partition('_')[0].upper()}"


def _image(path: Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB")))


if __name__ == "__main__":
    main()
