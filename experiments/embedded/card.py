"""The model card of the embedded model, made from the training logs and the sample sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.embedded.config import CALL, LIMIT_BYTES
from experiments.embedded.sources import SOURCES

_HEAD = """# emoji: a small PixArt-Sigma

A genuine diffusers `PixArtSigmaPipeline`, trained from scratch on openly licensed emoji artwork, so that
quantization can be measured on real, trained weights with no download. It draws 64 x 64 pictures of
captions such as "a fluent 3d butterfly on a black background" or "a noto cat above a noto car".

```python
import dirotq  # first: it lets diffusers be imported beside a CPU build of PyTorch
import torch
from diffusers import PixArtSigmaPipeline

# A dtype must be given: without one the text encoder comes in bfloat16 and the rest in float32.
pipeline = PixArtSigmaPipeline.from_pretrained("dirotq/assets/emoji", torch_dtype=torch.float32)
noise = torch.Generator().manual_seed(0)
image = pipeline(
    "a noto carrot",
    generator=noise,
{call}
).images[0]
```
"""

_DATA = """## Data

{sprites} pictures of {concepts} emoji in four styles. Scenes are composed while training: one to three
pictures, moved, scaled, mirrored and recoloured, on a plain background, with a caption that says so.
One (emoji, style) pair in 16 and one emoji in 50 are held out, as is one in 20 of all combinations of
two emoji, of emoji and colour, and of emoji and background. The text encoder knows the words of these
captions; other words are spelled letter by letter and mean nothing to it.

| package | licence | credit |
|---|---|---|
"""

_TRAINING = """## Training

| stage | device | seconds | steps | batch | loss, first to last | seed |
|---|---|---|---|---|---|---|
"""

_COMMANDS = """
Legs of the transformer follow one another; each starts from the averaged weights of the one before.
The same commands give the same scenes, but not the same bits: how many steps fit into the seconds
depends on the machine. Captions name categories since leg 3; before, the tokenizer had five words less.
`export --pipeline` takes the pipeline folder of the last leg.

```sh
{commands}
```

PSNR of the autoencoder on {validation} new scenes of the training pictures: {psnr} dB. The feature network names
an emoji of a scene {accuracy:.0%} of the time; its distances are not FID and not LPIPS.
"""

_LIMITS = """## Limits

Small things in scenes of two are often blurred.
It knows emoji and the words of their names, no other things and no sentences. It is a test bed, not a
product. The artwork keeps its licences, above; so do pictures that resemble it.
"""

BAR = 32
"""Prompts of 40 that must be recognizable."""

COMMANDS = (
    "python -m experiments.embedded.sprites",
    "python -m experiments.embedded.prompts",
    "python -m experiments.embedded.tokenizer",
)
LAST_COMMANDS = ("python -m experiments.embedded.export", "python -m experiments.embedded.sheet")
STAGES = {"vae": "autoencoder", "decoder": "its decoder, further", "features": "feature network"}


def read_logs(folder: Path) -> dict[str, dict[str, Any]]:
    """The logs of all stages by file name, in the order of training."""
    order = list(STAGES)

    def place(path: Path) -> tuple[int, str]:
        known = path.stem in STAGES
        return (order.index(path.stem) if known else len(order), path.stem)

    paths = sorted(folder.glob("*.json"), key=place)
    return {path.stem: json.loads(path.read_text()) for path in paths}


def _training_row(name: str, log: Mapping[str, Any]) -> str:
    stage = STAGES.get(name, f"text encoder and transformer, leg {name.split('_')[-1]}")
    rows = log["rows"]
    cells = (
        stage,
        log["device"],
        f"{log['seconds']:.0f}",
        f"{log['steps']:,}",
        str(log.get("batch", log["images"] // log["steps"])),
        f"{rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f}",
        str(log["seed"]),
    )
    return "| " + " | ".join(cells) + " |\n"


def _parts_table(parts: Mapping[str, tuple[int, int]]) -> str:
    lines = ["## Parts\n\n| part | parameters | bytes |\n|---|---|---|\n"]
    lines += [f"| {name} | {count:,} | {size:,} |\n" for name, (count, size) in parts.items()]
    total = sum(size for _, size in parts.values())
    lines.append(f"| all files, this card and the prompts not counted | | {total:,} |\n")
    return "".join(lines) + f"\nThe folder is kept under {LIMIT_BYTES // 10**6} MB.\n"


_KINDS = {
    "blind": "named by a reader who had not seen the caption",
    "with_caption": "recognizable with the caption at hand",
    "with_order": 'the same, and "above" the right way round',
}


def _quality(sheet: Mapping[str, Any]) -> str:
    """What was seen on the two sheets of 40 prompts, as a table."""
    seen = sheet["recognized"]
    splits = [split for split in seen["blind"] if split != "all"]
    lines = [
        "## Quality\n\n40 prompts, 10 of each kind, drawn from two seeds at guidance "
        f"{sheet['guidance']}; as many were recognized with the one seed / the other "
        "(`experiments/embedded/sheet.json`, with the pictures beside it):\n\n",
        f"| | all 40 | {' | '.join(splits)} |\n|---{'|---' * (1 + len(splits))}|\n",
    ]
    for kind, meaning in _KINDS.items():
        cells = [" / ".join(map(str, seen[kind][split])) for split in ("all", *splits)]
        lines.append(f"| {meaning} | {' | '.join(cells)} |\n")
    median = sheet["median_seed_psnr_db"]
    worst = {kind: min(seen[kind]["all"]) for kind in _KINDS}
    missed = [f"{_KINDS[kind]} ({number})" for kind, number in worst.items() if number < BAR]
    verdict = (
        f"missed on one seed by: {'; '.join(missed)}" if missed else "met in every row by both"
    )
    lines.append(f"\n{sheet['readers']} The bar of {BAR} of 40 is {verdict}.\n")
    lines.append(f"\nMedian PSNR between the two seeds of one caption: {median} dB.\n")
    return "".join(lines)


def model_card(
    logs: Mapping[str, Mapping[str, Any]],
    parts: Mapping[str, tuple[int, int]],
    counts: tuple[int, int],
    commands: tuple[str, ...],
    sheet: Mapping[str, Any],
) -> str:
    """The card as Markdown.

    Args:
        logs: of the stages, as :func:`read_logs` gives them.
        parts: parameters and bytes of each part.
        counts: sprites and emoji in the data.
        commands: what trains the stages, in order.
        sheet: the content of `sheet.json`.
    """
    credits = "".join(
        f"| {source.package} {source.version} | {source.licence} | {source.credit} |\n"
        for source in SOURCES
    )
    call = "\n".join(f"    {key}={value!r}," for key, value in CALL.items())
    vae = logs.get("decoder", logs["vae"])
    training = _COMMANDS.format(
        commands="\n".join(commands),
        validation=f"{vae['validation_images']:,}",
        psnr=vae["validation_psnr_db"],
        accuracy=logs["features"]["accuracy"],
    )
    sections = (
        _HEAD.format(call=call),
        _quality(sheet),
        _parts_table(parts),
        _DATA.format(sprites=f"{counts[0]:,}", concepts=f"{counts[1]:,}") + credits,
        _TRAINING + "".join(_training_row(name, log) for name, log in logs.items()) + training,
        _LIMITS,
    )
    return "\n".join(sections)
