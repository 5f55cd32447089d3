"""Draw the sample sheet: 40 prompts, with what was recognized and how far seeds differ.

`python -m experiments.embedded.sheet` writes `sheet.png`, `sheet_second_seed.png` and `sheet.json`
beside this file. The verdicts in the JSON, one for each of the two seeds, are filled in by looking:
`blind` (somebody who had not seen the caption named the things, colours and background),
`with_caption` (they are recognizable to somebody who has) and `order` ("above" is the right way
round). Drawing again keeps them only while the pictures stay the same. `--count` adds them up.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from experiments.embedded.config import ASSETS, CALL, pick_device
from experiments.embedded.pipelines import generate, read_pipeline
from experiments.embedded.training import write_atomically

VERDICTS = ("blind", "with_caption", "order")
COLUMNS = 8
SCALE = 2
LABEL_LINES = 4
_LINE = 11
HERE = Path(__file__).parent


def pair_psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """PSNR in dB of each pair of pictures uint8 [n, H, W, 3]: float64 [n]."""
    error = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    mean: NDArray[np.float64] = error.mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(mean, 1e-9))


def _wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + 1 + len(word) > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def draw_sheet(
    pictures: NDArray[np.uint8], labels: Sequence[str], columns: int = COLUMNS
) -> Image.Image:
    """Pictures uint8 [n, H, W, 3], upscaled, in rows, each over its label."""
    side = pictures.shape[1] * SCALE
    height = side + LABEL_LINES * _LINE + 6
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + 8), rows * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = index % columns * (side + 8) + 4, index // columns * height
        sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), (x, y))
        draw.rectangle((x - 1, y - 1, x + side, y + side), outline="#cccccc")
        for number, line in enumerate(_wrap(label, 25)[:LABEL_LINES]):
            draw.text((x, y + side + 2 + number * _LINE), line, fill="black", font=font)
    return sheet


def report(
    prompts: Mapping[str, Mapping[str, str]],
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    facts: Mapping[str, Any],
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `sheet.json`; verdicts of an earlier one hold if its pictures were these."""
    digest = hashlib.sha256(first.tobytes()).hexdigest()
    verdicts = earlier.get("prompts", {}) if earlier.get("pictures_sha256") == digest else {}
    values = pair_psnr(first, second)
    rows = {}
    for (name, entry), value in zip(prompts.items(), values, strict=True):
        verdict = verdicts.get(name, {})
        rows[name] = {
            **entry,
            "seed_psnr_db": round(float(value), 2),
            **{key: verdict.get(key, [None, None]) for key in VERDICTS},
            "remark": verdict.get("remark", ""),
        }
    median = round(float(np.median(values)), 2)
    return {**facts, "pictures_sha256": digest, "median_seed_psnr_db": median, "prompts": rows}


def count(content: Mapping[str, Any]) -> dict[str, dict[str, list[int]]]:
    """Prompts recognized with each of the two seeds, by kind of verdict and split.

    `with_order` counts those recognizable with the caption and the right way round.
    """
    totals: dict[str, dict[str, list[int]]] = {}
    for row in content["prompts"].values():
        seen = {
            "blind": row["blind"],
            "with_caption": row["with_caption"],
            "with_order": [a and b for a, b in zip(row["with_caption"], row["order"], strict=True)],
        }
        for kind, verdicts in seen.items():
            for split in ("all", row["split"]):
                sums = totals.setdefault(kind, {}).setdefault(split, [0, 0])
                sums[:] = [total + bool(v) for total, v in zip(sums, verdicts, strict=True)]
    return totals


def main() -> None:
    """Draw, or count, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ASSETS)
    parser.add_argument("--prompts", type=Path, default=ASSETS / "prompts" / "sheet.json")
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--guidance", type=float, default=CALL["guidance_scale"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", action="store_true", help="only add up the verdicts")
    arguments = parser.parse_args()
    path = arguments.output / "sheet.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    if not arguments.count:
        prompts = json.loads(arguments.prompts.read_text())
        texts = [entry["prompt"] for entry in prompts.values()]
        pipeline = read_pipeline(arguments.model, pick_device())
        seeds = [arguments.seed * 10_000 + index for index in range(len(texts))]
        first = generate(pipeline, texts, seeds, arguments.guidance)
        second = generate(pipeline, texts, [seed + 5_000 for seed in seeds], arguments.guidance)
        arguments.output.mkdir(parents=True, exist_ok=True)
        draw_sheet(first, texts).save(arguments.output / "sheet.png")
        draw_sheet(second, texts).save(arguments.output / "sheet_second_seed.png")
        facts = {"guidance": arguments.guidance, "seed": arguments.seed}
        facts |= {key: content[key] for key in ("readers", "protocol") if key in content}
        content = report(prompts, first, second, facts, content)
        print(f"median PSNR between two seeds: {content['median_seed_psnr_db']} dB")
    content["recognized"] = count(content)
    write_atomically(path, json.dumps(content, indent=1) + "\n")
    print(content["recognized"])


if __name__ == "__main__":
    main()
