"""Write the prompt sets of the embedded model.

`python -m experiments.embedded.prompts` writes `dirotq/assets/emoji/prompts/*.json`. Each set
has equal parts of four splits: what was trained on, a style that a concept was never trained
in, a colour or background that a concept never had, and two things that were never together.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from experiments.embedded.captions import (
    BACKGROUNDS,
    COLOURS,
    RELATIONS,
    Thing,
    can_pair,
    can_recolour,
    caption,
    category_word,
    colourless,
    text_key,
)
from experiments.embedded.scenes import reserved
from experiments.embedded.sources import STYLES
from experiments.embedded.sprites import OUTPUT, Sprite, read_sprites

FOLDER = Path("dirotq/assets/emoji/prompts")
# In the order in which they take their pick; the first two are of iconic things only.
SETS = {"sheet": 40, "quick": 16, "standard": 256, "calibration": 128, "full": 1000}
ICONIC_SETS = ("sheet", "quick")
SPLITS = ("training", "held-out pair", "variation", "composition")
SEED = 2026


def _names(text: str) -> frozenset[str]:
    """The names of a list with commas, whatever its line breaks."""
    return frozenset(" ".join(name.split()) for name in text.split(","))


# Things that anyone knows at a glance.
ICONIC = _names(
    """airplane, alien, ambulance, anchor, avocado, baby chick, balloon, banana,
    basketball, bat, bear, bell, bicycle, bird, birthday cake, books, broccoli, broken heart,
    butterfly, cactus, camera, candle, candy, carrot, cat, cat face, cheese wedge, cherries,
    cherry blossom, chicken, christmas tree, cloud, clown face, cookie, cow face, crab,
    croissant, crown, deciduous tree, dog, dog face, dolphin, door, doughnut, dragon, dress,
    duck, ear of corn, eggplant, elephant, evergreen tree, eye, fire, fire engine, fish,
    flamingo, four leaf clover, fox, frog, ghost, giraffe, glasses, grapes, green apple,
    grinning face, guitar, hamburger, hammer, hedgehog, helicopter, high heeled shoe, honeybee,
    horse, hot dog, house, ice cream, key, koala, lady beetle, lemon, light bulb, lion,
    locomotive, maple leaf, money bag, monkey face, mouse face, mushroom, octopus, owl, palm
    tree, panda, parrot, peach, pear, pencil, penguin, pig face, pineapple, pizza, police car,
    rabbit face, racing car, rainbow, red apple, red heart, ring, robot, rocket, rose, sailboat,
    sandwich, scissors, shark, skull, smiling face with sunglasses, snail, snake, snowflake,
    snowman, soccer ball, spider, star, strawberry, sun, sun with face, sunflower, sunglasses, t
    shirt, tangerine, taxi, teddy bear, telephone, tent, tiger face, top hat, tornado,
    tractor, trophy, tulip, turtle, umbrella, unicorn, violin, volcano, watermelon, wolf,
    wrapped gift"""
)
# The best known of these come first in the small sets.
FAMOUS = _names(
    """airplane, balloon, banana, basketball, bell, bicycle, birthday cake,
    butterfly, cactus, camera, carrot, cat, cat face, cherries, christmas tree, dog, dog face,
    doughnut, eye, elephant, evergreen tree, fish, flamingo, fox, frog, ghost, grapes, grinning
    face, hamburger, house, ice cream, key, lemon, lion, mushroom, panda, peach, penguin, pig
    face, pineapple, pizza, rabbit face, rainbow, red apple, red heart, robot, rocket, rose,
    scissors, shark, skull, snowman, soccer ball, star, strawberry, sun, sunflower, taxi,
    trophy, tulip, turtle, umbrella, watermelon"""
)
_CATEGORIES = {
    "Smileys & Emotion": "faces",
    "Animals & Nature": "nature",
    "Food & Drink": "food",
    "Activities": "activities",
    "Travel & Places": "travel",
    "Objects": "objects",
}
_OBSCURE = {"time", "office", "writing", "book-paper", "mail", "computer", "place-religious"}


@dataclass(frozen=True)
class Prompt:
    """A prompt, with the names of what it is about."""

    text: str
    category: str
    split: str
    names: tuple[str, ...]
    rank: float = 1.0

    @property
    def key(self) -> str:
        """The prompt's id: its words without the articles."""
        return "-".join(word for word in self.text.split() if word not in ("a", "an"))

    @property
    def iconic(self) -> bool:
        """Whether all that is named is known at a glance."""
        return all(name in ICONIC for name in self.names)

    @property
    def famous(self) -> bool:
        """Whether all that is named is among the best known."""
        return all(name in FAMOUS for name in self.names)


def _common(sprite: Sprite) -> bool:
    short = sprite.skin is None and len(sprite.name.split()) <= 3
    return short and sprite.category in _CATEGORIES and sprite.subcategory not in _OBSCURE


def _is_reserved(first: str, second: str) -> bool:
    keys = np.array([text_key(first)]), np.array([text_key(second)])
    return bool(reserved(*keys)[0])


def _visible(rgb: tuple[int, int, int], background: str) -> bool:
    return float(np.linalg.norm(np.subtract(rgb, BACKGROUNDS[background]))) > 90


def _prompt(sprite: Sprite, split: str, text: str, other: str | None = None) -> Prompt:
    names = (sprite.name,) if other is None else (sprite.name, other)
    return Prompt(text, _CATEGORIES[sprite.category], split, names)


def _plain(sprite: Sprite, split: str, rng: random.Random) -> Iterator[Prompt]:
    """Prompts for one thing, as training has them; a background only where it is not reserved."""
    thing = Thing(sprite.name, sprite.style)
    category = category_word(sprite) if text_key(sprite.name) % 2 else None
    yield _prompt(sprite, split, caption(replace(thing, category=category), emoji_of=True))
    yield _prompt(sprite, split, caption(thing))
    for name in rng.sample(list(BACKGROUNDS), len(BACKGROUNDS)):
        free = not _is_reserved(colourless(sprite.name), f"background {name}")
        if free and _visible(sprite.rgb, name):
            yield _prompt(sprite, split, caption(thing, background=name))
            return


def _variations(sprite: Sprite, taken: set[str]) -> Iterator[Prompt]:
    """Prompts with a reserved colour or background; `taken` are names that exist already."""
    noun, thing = colourless(sprite.name), Thing(sprite.name, sprite.style)
    for name in BACKGROUNDS:
        if _is_reserved(noun, f"background {name}") and _visible(sprite.rgb, name):
            yield _prompt(sprite, "variation", caption(thing, background=name))
    if sprite.hue is None or not can_recolour(sprite) or len(sprite.name.split()) > 2:
        return
    for name, (hue, _, _) in COLOURS.items():
        far = abs((sprite.hue - hue + 180) % 360 - 180) >= 40
        if far and _is_reserved(noun, f"colour {name}") and f"{name} {noun}" not in taken:
            coloured = replace(thing, colour=name)
            yield replace(_prompt(sprite, "variation", caption(coloured)), rank=0.25)


def _compositions(sprites: Sequence[Sprite], rng: random.Random, count: int) -> Iterator[Prompt]:
    """Prompts with two things of a reserved pair, in one style."""
    by_style = {
        style: [sprite for sprite in sprites if sprite.style == style and can_pair(sprite)]
        for style in STYLES
    }
    while count:
        first, second = rng.sample(by_style[rng.choice(STYLES)], 2)
        nouns = colourless(first.name), colourless(second.name)
        if nouns[0] == nouns[1] or not _is_reserved(*nouns):
            continue
        things = Thing(first.name, first.style), Thing(second.name, second.style)
        text = caption(*things, relation=rng.choice(RELATIONS))
        yield _prompt(first, "composition", text, second.name)
        count -= 1


def candidates(sprites: Sequence[Sprite], seed: int = SEED) -> dict[str, list[Prompt]]:
    """Every prompt that may be used, by split, shuffled, without repeated texts."""
    rng = random.Random(seed)
    taken = {sprite.name for sprite in sprites}
    common = [sprite for sprite in sprites if _common(sprite)]
    known = [sprite for sprite in common if sprite.split == "train"]
    unseen = [sprite for sprite in common if sprite.split == "held_out_pair"]
    iconic = [sprite for sprite in known if sprite.name in ICONIC]
    found = {
        "training": [prompt for sprite in known for prompt in _plain(sprite, SPLITS[0], rng)],
        "held-out pair": [prompt for sprite in unseen for prompt in _plain(sprite, SPLITS[1], rng)],
        "variation": [prompt for sprite in known for prompt in _variations(sprite, taken)],
        "composition": [*_compositions(iconic, rng, 300), *_compositions(known, rng, 400)],
    }
    for prompts in found.values():
        # Well-known things and colours tend to come early, but everything has its chance.
        prompts.sort(key=lambda p: rng.random() * (0.2 if p.iconic else 1.0) * p.rank)
    return {split: list({p.text: p for p in prompts}.values()) for split, prompts in found.items()}


def choose(sprites: Sequence[Sprite], seed: int = SEED) -> dict[str, list[Prompt]]:
    """The prompts of every set; no text is in two sets."""
    pool = candidates(sprites, seed)
    chosen: dict[str, list[Prompt]] = {name: [] for name in SETS}
    for name, size in SETS.items():
        shown: set[str] = set()
        for split in SPLITS:
            wanted = size // len(SPLITS)
            order = sorted(pool[split], key=lambda p: not p.famous and name in ICONIC_SETS)
            for prompt in order:
                fresh = prompt.iconic and not shown & set(prompt.names)
                if wanted and (fresh or name not in ICONIC_SETS):
                    shown |= set(prompt.names)
                    chosen[name].append(prompt)
                    pool[split].remove(prompt)
                    wanted -= 1
            if wanted:
                raise ValueError(f"{wanted} prompts short: set {name!r}, split {split!r}")
    return chosen


def main() -> None:
    """Write the sets from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sprites", type=Path, default=OUTPUT)
    parser.add_argument("--output", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, prompts in choose(read_sprites(arguments.sprites)).items():
        rows = {
            prompt.key: {"prompt": prompt.text, "category": prompt.category, "split": prompt.split}
            for prompt in prompts
        }
        (arguments.output / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(f"{name}: {len(rows)} prompts")


if __name__ == "__main__":
    main()
