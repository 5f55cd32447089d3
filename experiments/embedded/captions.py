"""The caption grammar: every caption, in training and in the prompt sets, is made here.

A caption names one to three things, and may name their style, category, skin tone, colour, size,
place and number, and the background: "a small noto dog at the top", "a twemoji food emoji of a
pizza", "a fluent flat cat beside a twemoji tree on a yellow background", "two red apples".
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from experiments.embedded.names import words
from experiments.embedded.sprites import Sprite

# What a colour word does to a sprite: target hue in degrees, chroma factor, value exponent.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.0, 1.0, 1.0),
    "orange": (27.0, 1.0, 0.65),
    "yellow": (51.0, 1.0, 0.6),
    "green": (125.0, 0.85, 1.15),
    "blue": (216.0, 0.9, 1.0),
    "purple": (276.0, 0.8, 1.0),
    "pink": (333.0, 0.55, 0.55),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (222, 62, 60),
    "orange": (246, 152, 56),
    "yellow": (252, 222, 86),
    "green": (98, 186, 98),
    "blue": (84, 146, 228),
    "purple": (152, 98, 204),
    "pink": (250, 174, 204),
    "grey": (156, 158, 162),
    "black": (26, 26, 30),
}
# Where a place word puts the centre, each axis from -1 (left, top) to 1.
PLACES: dict[str, tuple[float, float]] = {
    "on the left": (-1, 0),
    "on the right": (1, 0),
    "at the top": (0, -1),
    "at the bottom": (0, 1),
    "in the top left corner": (-1, -1),
    "in the top right corner": (1, -1),
    "in the bottom left corner": (-1, 1),
    "in the bottom right corner": (1, 1),
}
RELATIONS = ("beside", "above")
# The word of a category, by the start of the subcategory where one category has several words.
CATEGORIES: dict[str, dict[str, str]] = {
    "Smileys & Emotion": {"": "smiley"},
    "People & Body": {"": "people"},
    "Animals & Nature": {"animal": "animal", "": "plant"},
    "Food & Drink": {"drink": "drink", "": "food"},
    "Travel & Places": {"transport": "vehicle", "sky": "sky", "time": "clock", "": "place"},
    "Activities": {"": "activity"},
    "Objects": {"": "object"},
    "Symbols": {"": "symbol"},
    "Flags": {"": "flag"},
}
NUMBERS = ("", "", "two", "three")
MAX_WORDS = 24

_COLOUR_WORDS = {*COLOURS, *BACKGROUNDS, "white", "brown", "dark", "light"}
_UNCOUNTED = words(
    "bread milk rice ice snow rain fog honey butter salt bacon garlic wood coral wine popcorn fire "
    "money hair broccoli tofu falafel sushi cheese spaghetti sake luggage lightning rugby wind "
    "water art food meat soap dizzy hockey lacrosse football volleyball softball knot ginger "
    "locked unlocked mail jack lantern soup snowflake sand dashing tennis badminton golf score "
    "film thread yarn"
)
_PLURALS = {
    "mouse": "mice",
    "leaf": "leaves",
    "wolf": "wolves",
    "knife": "knives",
    "loaf": "loaves",
    "fish": "fish",
    "sheep": "sheep",
    "bison": "bison",
    "tooth": "teeth",
    "foot": "feet",
    "ox": "oxen",
    "goose": "geese",
    "octopus": "octopuses",
    "bus": "buses",
    "cactus": "cactuses",
    "hibiscus": "hibiscuses",
    "lotus": "lotuses",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "mango": "mangoes",
    "volcano": "volcanoes",
    "butterfly": "butterflies",
}
_SINGULAR_ENDS = ("ss", "us", "bus", "tennis", "christmas", "compass", "iris", "news", "atlas")


@dataclass(frozen=True)
class Thing:
    """One thing that a caption names; the category is said in "emoji of" captions only."""

    name: str
    style: str | None = None
    category: str | None = None
    colour: str | None = None
    skin: str | None = None
    small: bool = False


def category_word(sprite: Sprite) -> str:
    """The word for the category of a sprite: "animal", "food", "vehicle" ..."""
    kinds = CATEGORIES[sprite.category]
    return next(word for start, word in kinds.items() if sprite.subcategory.startswith(start))


@cache
def colourless(name: str) -> str:
    """A name without its colour words: "red apple" is "apple", "orange heart" is "heart"."""
    kept = [word for word in name.split() if word not in _COLOUR_WORDS]
    return " ".join(kept) if kept else name


@cache
def is_plural(name: str) -> bool:
    """Whether a name is plural already, so that it takes no article and no number."""
    head = (
        name.split(" with ")[0].split(" in ")[0].split(" of ")[0].split(" showing ")[0].split()[-1]
    )
    return head.endswith("s") and not head.endswith(_SINGULAR_ENDS)


@cache
def plural(name: str) -> str | None:
    """The plural of a simple name; None where there is none that reads well."""
    *before, last = name.split()
    if len(before) > 1 or is_plural(name):
        return None
    if name in _UNCOUNTED or last in _UNCOUNTED or last.endswith("ing"):
        return None
    if last in _PLURALS:
        last = _PLURALS[last]
    elif last.endswith(("s", "x", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last])


@cache
def with_article(phrase: str, plural_head: bool = False) -> str:
    """Put "a" or "an" before a phrase in the singular."""
    if plural_head:
        return phrase
    silent = phrase.startswith(("hour", "honest", "heir"))
    long_u = phrase.startswith(("uni", "use", "uk", "ut", "u "))
    vowel = phrase[0] in "aeiou" and not long_u
    return f"{'an' if vowel or silent or phrase.startswith(('x ', 'mri')) else 'a'} {phrase}"


def _describe(thing: Thing, count: int = 1, emoji_of: bool = False) -> str:
    """A thing with its attributes and its article or number."""
    noun = thing.name if thing.colour is None else colourless(thing.name)
    name = noun if thing.colour is None else f"{thing.colour} {noun}"
    several = is_plural(name)
    if count > 1:
        name = " ".join(filter(None, (thing.colour, plural(noun) or noun)))
    if thing.skin is not None:
        name = f"{name} with {thing.skin} skin tone"
    if emoji_of and thing.style is not None and count == 1:
        size = "small " if thing.small else ""
        kind = f"{thing.category} " if thing.category is not None else ""
        return f"a {size}{thing.style} {kind}emoji of {with_article(name, several)}"
    if thing.style is not None:
        name = f"{thing.style} {name}"
    if thing.small:
        name = f"small {name}"
    return f"{NUMBERS[count]} {name}" if count > 1 else with_article(name, several)


def caption(
    thing: Thing,
    other: Thing | None = None,
    relation: str = "beside",
    count: int = 1,
    place: str | None = None,
    background: str | None = None,
    emoji_of: bool = False,
) -> str:
    """Compose a caption; `other` is to the right of the thing ("beside") or below ("above")."""
    text = _describe(thing, count, emoji_of)
    if other is not None:
        text = f"{text} {relation} {_describe(other)}"
    if place is not None:
        text = f"{text} {place}"
    if background is not None:
        text = f"{text} on {with_article(background)} background"
    return text


_STIFF = {"alphanum", "keycap", "time", "country-flag", "flag", "arrow", "math", "av-symbol"}
_STIFF |= {"punctuation", "zodiac", "currency", "religion", "transport-sign", "other-symbol"}
_STIFF |= {"warning", "money", "mail", "book-paper", "gender"}
_TEXTY = words(
    "left right clockwise leftwards rightwards tilted calendar sign abc atm passport card mark "
    "hundred medal bubble ok zzz top soon end back chart keyboard ball police ambulance clock "
    "watch stopwatch ticket tickets die screen computer score japan map stop date office"
)


def can_flip(sprite: Sprite) -> bool:
    """Whether the mirror image of a sprite still is what its name says."""
    return sprite.subcategory not in _STIFF and not _TEXTY & set(sprite.name.split())


def can_recolour(sprite: Sprite) -> bool:
    """Whether a named colour makes sense for a sprite and can be painted on it."""
    symbol = sprite.category == "Symbols" and sprite.subcategory != "geometric"
    named = sprite.category in ("People & Body", "Flags") or symbol
    return sprite.hue is not None and not named and "rainbow" not in sprite.name


def can_pair(sprite: Sprite) -> bool:
    """Whether a sprite may stand beside or above another one."""
    odd = sprite.category in ("Flags", "Symbols") or sprite.subcategory in ("time", "family")
    return not odd and sprite.skin is None and len(sprite.name.split()) <= 4


def can_count(sprite: Sprite) -> bool:
    """Whether a caption may ask for two or three of a sprite."""
    kinds = ("Animals & Nature", "Food & Drink", "Objects", "Activities")
    moving = sprite.subcategory in ("transport-ground", "transport-air", "heart", "light & video")
    plain = sprite.category in kinds or moving
    return plain and sprite.skin is None and plural(sprite.name) is not None


def sampling_weight(sprite: Sprite) -> float:
    """How often a sprite is drawn, 1 for common things."""
    if sprite.skin is not None:
        return 0.16
    if sprite.category in ("Flags", "Symbols") or sprite.subcategory == "time":
        return 0.6 if sprite.subcategory == "geometric" else 0.3
    return 0.5 if sprite.category == "People & Body" else 1.0


@cache
def text_key(text: str) -> np.uint64:
    """A stable 32-bit number for a name, a colour or a background."""
    return np.uint64(zlib.crc32(text.encode()))
