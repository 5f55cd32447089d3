"""Build the sprites: openly licensed emoji artwork as 64 x 64 RGBA, in four styles.

`python -m experiments.embedded.sprites` fetches the packages of `sources.SOURCES` with
`npm pack`, and writes `sprites.zip` and `sprites.json` to `outputs/embedded/`. It needs npm
and, to draw the vector style, `pip install resvg-py==0.5.0`; nothing else of the
project needs either.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from experiments.embedded.names import clean_name, codepoint_key, is_wanted, split_skin
from experiments.embedded.sources import SOURCES, STYLES, fetch

SIZE = 64
OUTPUT = Path("outputs/embedded")
HELD_OUT_PAIRS = 0.06
HELD_OUT_CONCEPTS = 0.02


@dataclass(frozen=True)
class Sprite:
    """What is known of one sprite.

    `concept` is the emoji without its skin tone, as a code point sequence. `hue` is the one
    dominant hue in degrees, None where there is none. `rgb` is the mean colour, 0 to 255.
    `split` is "train", "held_out_pair" or "held_out_concept".
    """

    index: int
    style: str
    concept: str
    name: str
    category: str
    subcategory: str
    skin: str | None
    hue: float | None
    rgb: tuple[int, int, int]
    split: str


def _draw(path: Path) -> Image.Image:
    """Read artwork of any kind as a 64 x 64 RGBA picture."""
    if path.suffix == ".svg":
        import resvg_py

        drawn = bytes(resvg_py.svg_to_bytes(svg_path=str(path), width=SIZE, height=SIZE))
        picture = Image.open(io.BytesIO(drawn)).convert("RGBA")
    else:
        picture = Image.open(path).convert("RGBA")
    if picture.size != (SIZE, SIZE):
        picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    return picture


def dominant_hue(rgba: NDArray[np.uint8]) -> float | None:
    """The hue in degrees that most of a picture has, if it is vivid and there is one such hue.

    rgba: uint8 [H, W, 4].
    """
    picture = Image.fromarray(rgba[..., :3]).convert("HSV")
    hue, saturation, value = np.moveaxis(np.asarray(picture, dtype=np.float64), -1, 0)
    opaque = rgba[..., 3] > 128
    vivid = opaque & (saturation > 100) & (value > 90)
    if vivid.sum() < 0.5 * max(int(opaque.sum()), 1) or np.median(value[vivid]) < 180:
        return None
    angles = np.exp(2j * np.pi * hue[vivid] / 256)
    # The mode on a coarse wheel, refined by the mean of what lies near it.
    wheel = np.exp(2j * np.pi * np.arange(36) / 36)
    near = (angles[:, None] * wheel[None].conj()).real > np.cos(np.pi / 6)
    best = int(near.sum(0).argmax())
    if near[:, best].mean() < 0.75:
        return None
    return round(float(np.degrees(np.angle(angles[near[:, best]].mean()))) % 360, 1)


def _prepare(path: Path) -> tuple[bytes, float | None, tuple[int, int, int]]:
    """One sprite as a lossless WebP, with its dominant hue and mean colour."""
    picture = _draw(path)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=100, method=4)
    rgba = np.asarray(picture)
    weight = rgba[..., 3:].astype(np.float64)
    mean = (rgba[..., :3] * weight).sum((0, 1)) / max(float(weight.sum()), 1.0)
    red, green, blue = (round(float(channel)) for channel in mean)
    return buffer.getvalue(), dominant_hue(rgba), (red, green, blue)


def _concepts(data: Path, names: Path) -> dict[str, tuple[str, str, str]]:
    """Every wanted concept: key to (name, category, subcategory)."""
    cldr = {
        "-".join(f"{ord(letter):x}" for letter in text if letter != "\ufe0f"): str(entry["name"])
        for text, entry in json.loads((names / "data-by-emoji.json").read_text()).items()
    }
    table: list[dict[str, Any]] = json.loads((data / "emoji.json").read_text())
    concepts: dict[str, tuple[str, str, str]] = {}
    for row in sorted(table, key=lambda row: int(row["sort_order"])):
        key = codepoint_key(row["unified"])
        category, subcategory = row["category"], row["subcategory"]
        if key in cldr and is_wanted(key, cldr[key], category, subcategory):
            concepts[key] = (clean_name(cldr[key]), category, subcategory)
    return concepts


def _available(folder: Path, vendor: str) -> set[str]:
    """The keys that emoji-datasource really has a vendor's artwork for, not a fallback."""
    flag = f"has_img_{vendor}"
    keys: set[str] = set()
    for row in json.loads((folder / "emoji.json").read_text()):
        for variant in (row, *row.get("skin_variations", {}).values()):
            if variant.get(flag):
                keys.add(codepoint_key(variant["unified"]))
    return keys


def _keeps_skin(subcategory: str, skin: str) -> bool:
    """All tones of hands, three tones of people: more would only repeat the same drawing."""
    hand = subcategory.startswith("hand") or subcategory == "body-parts"
    return hand or skin in ("light", "medium", "dark")


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def assign_splits(sprites: Iterable[Sprite]) -> list[Sprite]:
    """Hold out whole concepts, and single styles of concepts that have all the other styles."""
    sprites = list(sprites)
    styles: defaultdict[str, set[str]] = defaultdict(set)
    for sprite in sprites:
        if sprite.skin is None:
            styles[sprite.concept].add(sprite.style)
    held: set[tuple[str, str]] = set()
    for concept, present in styles.items():
        drawn = min(present, key=lambda style: hash_fraction(f"pair {concept} {style}"))
        # One style at most for each concept, so its rate is that of all pairs times the styles.
        chosen = hash_fraction(f"held {concept}") < HELD_OUT_PAIRS * len(STYLES)
        if chosen and len(present) == len(STYLES):
            held.add((concept, drawn))

    def split(sprite: Sprite) -> str:
        if hash_fraction(f"concept {sprite.concept}") < HELD_OUT_CONCEPTS:
            return "held_out_concept"
        return "held_out_pair" if (sprite.concept, sprite.style) in held else "train"

    return [replace(sprite, split=split(sprite)) for sprite in sprites]


def _gather(cache: Path) -> list[tuple[Sprite, Path]]:
    """List the artwork of all styles, in a fixed order."""
    folders = {source.package: fetch(source, cache) for source in SOURCES}
    concepts = _concepts(folders["emoji-datasource-google"], folders["unicode-emoji-json"])
    found: list[tuple[Sprite, Path]] = []
    for source in SOURCES:
        if source.style is None:
            continue
        root = folders[source.package]
        vendor = source.package.removeprefix("emoji-datasource-")
        known = None if vendor == source.package else _available(root, vendor)
        for path in sorted((root / source.folder).iterdir()):
            key = codepoint_key(path.stem)
            parts = split_skin(key)
            drawn = known is None or key in known
            if parts is None or parts[0] not in concepts or not drawn:
                continue
            (concept, skin), (name, category, sub) = parts, concepts[parts[0]]
            if skin is None or _keeps_skin(sub, skin):
                sprite = Sprite(
                    0, source.style, concept, name, category, sub, skin, None, (0, 0, 0), "train"
                )
                found.append((sprite, path))
    return found


def build(output: Path, cache: Path, processes: int = 2) -> list[Sprite]:
    """Write `sprites.zip` and `sprites.json` to a folder; returns the sprites."""
    found = _gather(cache)
    with Pool(processes) as pool:
        prepared = pool.map(_prepare, [path for _, path in found], chunksize=32)
    sprites: list[Sprite] = []
    output.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(output / "sprites.zip", "w", zipfile.ZIP_STORED) as archive:
        for index, ((sprite, _), (data, hue, rgb)) in enumerate(zip(found, prepared, strict=True)):
            archive.writestr(zipfile.ZipInfo(f"{index:06d}.webp"), data)
            sprites.append(replace(sprite, index=index, hue=hue, rgb=rgb))
    sprites = assign_splits(sprites)
    rows = ",\n".join(json.dumps(asdict(sprite)) for sprite in sprites)
    text = f'{{"styles": {json.dumps(STYLES)},\n"sprites": [\n{rows}\n]}}\n'
    (output / "sprites.json").write_text(text)
    return sprites


def read_sprites(folder: Path) -> list[Sprite]:
    """Read `sprites.json`."""
    rows = json.loads((folder / "sprites.json").read_text())["sprites"]
    return [Sprite(**{**row, "rgb": tuple(row["rgb"])}) for row in rows]


def load_sprites(folder: Path) -> tuple[Tensor, list[Sprite]]:
    """Read the pictures, uint8 [N, 64, 64, 4] (RGBA, not premultiplied), and their sprites."""
    sprites = read_sprites(folder)
    pictures = np.empty((len(sprites), SIZE, SIZE, 4), dtype=np.uint8)
    with zipfile.ZipFile(folder / "sprites.zip") as archive:
        for sprite in sprites:
            data = archive.read(f"{sprite.index:06d}.webp")
            pictures[sprite.index] = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    return torch.from_numpy(pictures), sprites


def main() -> None:
    """Build from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--cache", type=Path, default=OUTPUT / "npm")
    arguments = parser.parse_args()
    sprites = build(arguments.output, arguments.cache)
    size = (arguments.output / "sprites.zip").stat().st_size
    print(f"{len(sprites)} sprites, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
