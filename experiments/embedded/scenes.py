"""Scenes: sprites composed on the fly, with captions that say what is to be seen.

A scene has up to three objects on a plain background. Composing makes the captions
combinatorial, so that a model must learn to read them and cannot learn the pictures by heart.
Some combinations are never drawn for training (`reserved`): the prompt sets are made of those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.embedded import captions as grammar
from experiments.embedded.captions import BACKGROUNDS, COLOURS, PLACES, RELATIONS, Thing
from experiments.embedded.render import render
from experiments.embedded.sprites import SIZE, Sprite

__all__ = ["Scenes", "render", "reserved", "sample_scenes"]

SLOTS = 3
PAIRS = 0.18
SMALL = (28.0, 33.0)
PLACED = (36.0, 44.0)
LARGE = (46.0, 63.0)
SHARED = (28.0, 31.0)
_RESERVED_ONE_IN = 20
_COLOUR_NAMES, _BACKGROUND_NAMES, _PLACE_NAMES = tuple(COLOURS), tuple(BACKGROUNDS), tuple(PLACES)
_BACKGROUND_RGB = np.array(list(BACKGROUNDS.values()), dtype=np.float64)
_COLOUR_RGB = np.array([BACKGROUNDS[name] for name in COLOURS], dtype=np.float64)
_COLOUR_HUES = np.array([hue for hue, _, _ in COLOURS.values()], dtype=np.float32)
_OFFSETS = np.array(list(PLACES.values()), dtype=np.float64)
_COLOUR_KEYS = np.array([grammar.text_key(f"colour {name}") for name in COLOURS])
_BACKGROUND_KEYS = np.array([grammar.text_key(f"background {name}") for name in BACKGROUNDS])

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Scenes:
    """Scenes as arrays, one row each; slots that hold nothing have sprite -1.

    sprite int64 [n, 3]; x, y (centre) and size float32 [n, 3] in pixels; flip bool [n, 3];
    colour int64 [n, 3], an index into `COLOURS` or -1; hue float32 [n, 3], the sprite's own
    hue in degrees; background uint8 [n, 3] (RGB). Later slots lie over earlier ones.
    """

    sprite: Ints
    x: Floats
    y: Floats
    size: Floats
    flip: Bools
    colour: Ints
    hue: Floats
    background: NDArray[np.uint8]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.captions)


def reserved(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> Bools:
    """Whether training must not see two `text_key`s together, in whichever order."""
    with np.errstate(over="ignore"):
        mixed = (first + second) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
    result: Bools = mixed % np.uint64(_RESERVED_ONE_IN) == 0
    return result


class _Table:
    """What sampling needs to know of the sprites of one split, as arrays."""

    def __init__(self, sprites: Sequence[Sprite], split: str) -> None:
        self.sprites = [sprite for sprite in sprites if sprite.split == split]
        if not self.sprites:
            raise ValueError(f"no sprites in split {split!r}")
        weight = np.array([grammar.sampling_weight(sprite) for sprite in self.sprites])
        self.index = np.array([sprite.index for sprite in self.sprites])
        self.hue = np.array([sprite.hue or 0.0 for sprite in self.sprites], dtype=np.float32)
        self.rgb = np.array([sprite.rgb for sprite in self.sprites], dtype=np.float64)
        self.flips = self._where(grammar.can_flip)
        self.recolours = self._where(grammar.can_recolour)
        self.keys = np.array(
            [grammar.text_key(grammar.colourless(sprite.name)) for sprite in self.sprites]
        )
        self.categories = [grammar.category_word(sprite) for sprite in self.sprites]
        self.short = self._where(lambda sprite: len(sprite.name.split()) <= 3)
        self._pairs = weight * self._where(grammar.can_pair)
        self._counts = weight * self._where(grammar.can_count)
        self._any = weight

    def _where(self, predicate: Callable[[Sprite], bool]) -> Bools:
        return np.array([predicate(sprite) for sprite in self.sprites], dtype=bool)

    def draw(self, kind: str, count: int, rng: np.random.Generator) -> Ints:
        """Draw rows of the table: for one object ("any"), for "pairs" or for "counts"."""
        weight = {"any": self._any, "pairs": self._pairs, "counts": self._counts}[kind]
        total = np.cumsum(weight if weight.any() else self._any)
        rows = np.searchsorted(total, rng.random(count) * total[-1], side="right")
        clipped: Ints = np.minimum(rows, len(total) - 1)
        return clipped


@dataclass(frozen=True)
class _Plan:
    """What the captions say, as arrays: -1 or False where nothing is said."""

    table: _Table
    row: Ints
    colour: Ints
    style: Bools
    count: Ints
    relation: Ints
    place: Ints
    small: Bools
    background: Ints
    emoji_of: Bools
    category: Bools


def _pick(rng: np.random.Generator, chosen: Bools, choices: int) -> Ints:
    """A random choice where chosen, -1 elsewhere."""
    return np.where(chosen, rng.integers(0, choices, chosen.shape), -1)


def _draw_rows(
    table: _Table, rng: np.random.Generator, kind: NDArray[np.float64], pairs: float
) -> Ints:
    """The table rows of both things, int64 [n, 2]; the second is -1 where there is one thing."""
    count = len(kind)
    row = np.full((count, 2), -1)
    row[:, 0] = table.draw("any", count, rng)
    two, many = np.flatnonzero(kind < pairs), np.flatnonzero(kind > 0.95)
    row[two, 0] = table.draw("pairs", len(two), rng)
    row[two, 1] = table.draw("pairs", len(two), rng)
    row[many, 0] = table.draw("counts", len(many), rng)
    keys = table.keys[row[two]]
    bad = (keys[:, 0] == keys[:, 1]) | reserved(keys[:, 0], keys[:, 1])
    row[two[bad], 1] = -1
    return row


def _plan(table: _Table, rng: np.random.Generator, count: int, pairs: float) -> _Plan:
    """Decide what each caption says, leaving out what is reserved or could not be seen."""
    kind = rng.random(count)
    row = _draw_rows(table, rng, kind, pairs)
    present = row >= 0
    single = ~present[:, 1] & (kind <= 0.95)
    keys = table.keys[row]

    chance = np.where(single, 0.4, 0.15)[:, None]
    paintable = present & table.recolours[row]
    colour = _pick(rng, paintable & (rng.random((count, 2)) < chance), len(COLOURS))
    turn = np.abs((table.hue[row] - _COLOUR_HUES[colour] + 180) % 360 - 180)
    colour[(turn < 25) | reserved(keys, _COLOUR_KEYS[colour])] = -1

    background = _pick(rng, rng.random(count) < 0.32, len(BACKGROUNDS))
    rgb = np.where(colour[..., None] >= 0, _COLOUR_RGB[colour], table.rgb[row])
    distance = np.linalg.norm(rgb - _BACKGROUND_RGB[background][:, None], axis=-1)
    hidden = (distance < 70) | reserved(keys, _BACKGROUND_KEYS[background][:, None])
    background[(hidden & present).any(1)] = -1

    style = rng.random((count, 2)) < 0.82
    style[:, 1] = style[:, 0]
    return _Plan(
        table=table,
        row=row,
        colour=colour,
        style=style,
        count=np.where(kind > 0.95, rng.integers(2, 4, count), 1),
        relation=rng.integers(0, 2, count),
        place=_pick(rng, single & table.short[row[:, 0]] & (rng.random(count) < 0.18), len(PLACES)),
        small=single & (rng.random(count) < 0.1),
        background=background,
        emoji_of=single & style[:, 0] & (rng.random(count) < 0.3),
        # From a child generator: scenes stay those of before captions knew categories.
        category=rng.spawn(1)[0].random(count) < 0.5,
    )


def _captions(plan: _Plan) -> list[str]:
    """Write the captions of a plan."""
    sprites = plan.table.sprites

    def thing(row: int, style: bool, colour: int, small: bool, category: bool = False) -> Thing:
        sprite = sprites[row]
        return Thing(
            sprite.name,
            sprite.style if style else None,
            plan.table.categories[row] if category else None,
            _COLOUR_NAMES[colour] if colour >= 0 else None,
            sprite.skin,
            small,
        )

    columns = (
        plan.row, plan.style, plan.colour, plan.small, plan.count, plan.relation, plan.place,
        plan.background, plan.emoji_of, plan.category,
    )  # fmt: skip
    texts = []
    for row, style, colour, small, count, relation, place, background, emoji_of, category in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        text = grammar.caption(
            thing(row[0], style[0], colour[0], small, category),
            thing(row[1], style[1], colour[1], False) if row[1] >= 0 else None,
            RELATIONS[relation],
            count,
            _PLACE_NAMES[place] if place >= 0 else None,
            _BACKGROUND_NAMES[background] if background >= 0 else None,
            emoji_of,
        )
        texts.append(text)
    return texts


def _layout(plan: _Plan, rng: np.random.Generator) -> tuple[Doubles, Doubles, Doubles]:
    """Where the objects are: centre x, centre y and size, float64 [n, 3] each."""
    count = len(plan.row)
    two, placed = plan.row[:, 1] >= 0, plan.place >= 0

    bounds = np.tile(np.array(LARGE), (count, 1))
    bounds[placed] = PLACED
    bounds[plan.small] = SMALL
    bounds[two | (plan.count > 1)] = SHARED
    size = rng.uniform(bounds[:, :1], bounds[:, 1:], (count, SLOTS))
    size[plan.count > 1] = size[plan.count > 1, :1]
    room = (SIZE - size) / 2

    offset = rng.uniform(-0.9, 0.9, (count, SLOTS, 2))
    aimed = _OFFSETS[plan.place] * 0.9 + rng.uniform(-0.12, 0.12, (count, 2))
    offset[placed, 0] = aimed[placed].clip(-1, 1)
    offset[plan.small & ~placed, 0] *= 0.35

    first = np.where(plan.relation[:, None] == 0, [-1.0, 0.0], [0.0, -1.0])
    cross = rng.uniform(-0.5, 0.5, (count, 1)) * first[:, ::-1]
    shake = rng.uniform(-0.07, 0.07, (count, SLOTS, 2))
    offset[two, 0] = (0.92 * first + cross + shake[:, 0])[two]
    offset[two, 1] = (-0.92 * first + cross + shake[:, 1])[two]

    rows_of = {2: ([-0.92, 0], [0.92, 0], [0, 0]), 3: ([0, -0.92], [-0.92, 0.92], [0.92, 0.92])}
    for number, spots in rows_of.items():
        offset[plan.count == number] = (np.array(spots) + shake)[plan.count == number]
    centre = SIZE / 2 + room[..., None] * offset
    return centre[..., 0], centre[..., 1], size


def sample_scenes(
    sprites: Sequence[Sprite], count: int, seed: int, split: str = "train", pairs: float = PAIRS
) -> Scenes:
    """Draw scenes of the sprites of one split; the same seed gives the same scenes.

    pairs: share of scenes for which two different objects are drawn.
    """
    rng = np.random.default_rng(seed)
    table = _Table(sprites, split)
    plan = _plan(table, rng, count, pairs)
    x, y, size = _layout(plan, rng)

    row = np.full((count, SLOTS), -1)
    row[:, :2] = plan.row
    colour = np.full((count, SLOTS), -1)
    colour[:, :2] = plan.colour
    for slot in (1, 2):
        copied = plan.count > slot
        row[copied, slot], colour[copied, slot] = row[copied, 0], colour[copied, 0]

    flip = table.flips[row] & (rng.random((count, SLOTS)) < 0.5)
    flip[plan.count > 1] = flip[plan.count > 1, :1]
    jitter = rng.uniform(-6, 6, (count, 3))
    white = 255 - np.abs(jitter) * (rng.random((count, 1)) < 0.5)
    named = _BACKGROUND_RGB[plan.background] + jitter
    background = np.where(plan.background[:, None] >= 0, named, white)
    return Scenes(
        sprite=np.where(row >= 0, table.index[row], -1),
        x=x.astype(np.float32),
        y=y.astype(np.float32),
        size=size.astype(np.float32),
        flip=flip,
        colour=colour,
        hue=table.hue[row],
        background=background.round().clip(0, 255).astype(np.uint8),
        captions=_captions(plan),
    )
