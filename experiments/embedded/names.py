"""Short, plain names for emoji, made from their Unicode (CLDR) names."""

from __future__ import annotations

import re
import unicodedata

SKINS = {
    "1f3fb": "light",
    "1f3fc": "medium light",
    "1f3fd": "medium",
    "1f3fe": "medium dark",
    "1f3ff": "dark",
}


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


_FLAGS = words(
    "ar au at be br ca ch cl cn co cz de dk eg es fi fr gb gr ie il in it jm jp ke kr ma mx nl no "
    "nz pl pt se th tr ua us vn za"
)
_WHOLE = {
    "keycap #": "keycap hash",
    "keycap *": "keycap asterisk",
    "mrs. claus": "mrs claus",
    "on! arrow": "on arrow",
    "up! button": "up button",
    "pool 8 ball": "billiard ball",
    "love you gesture": "love you hand",
}
_HAIR_OR_BEARD = re.compile(
    r"^(person|man|woman) ((?:blond|red|curly|white) hair|beard|bald|beard, bald)$"
)


def codepoint_key(text: str) -> str:
    """Normalize a hyphenated code point sequence: lower case, no variation selectors."""
    parts = (part.lower().lstrip("0") or "0" for part in text.split("-"))
    return "-".join(part for part in parts if part != "fe0f")


def split_skin(key: str) -> tuple[str, str | None] | None:
    """Split a key into (key without skin, skin word); None where two people differ in skin."""
    parts = key.split("-")
    found = [part for part in parts if part in SKINS]
    if not found:
        return key, None
    if len(found) > 1 or parts[0] in SKINS:
        return None
    return "-".join(part for part in parts if part not in SKINS), SKINS[found[0]]


def clean_name(cldr: str) -> str:
    """The name as it is used in captions: lower case words of a-z and digits only."""
    name = cldr.lower()
    name = _WHOLE.get(name, name)
    if name.startswith("flag ") and name != "flag in hole":
        name = "flag of " + name[5:]
    name = re.sub(r" \(blood type\)$", "", name)
    if match := _HAIR_OR_BEARD.match(name):
        person, trait = match.groups()
        name = f"bald {person}" if trait == "bald" else f"{person} with {trait}"
    name = name.replace("\u2019", "").replace("-", " ").replace(":", " ")
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return " ".join(re.findall(r"[a-z0-9]+", ascii_name))


def is_wanted(key: str, cldr: str, category: str, subcategory: str) -> bool:
    """Whether a concept belongs in the data: drops what no caption could tell apart."""
    if category == "Component" or subcategory == "subdivision-flag":
        return False
    if subcategory == "country-flag":
        letters = "".join(chr(int(part, 16) - 0x1F1E6 + ord("a")) for part in key.split("-"))
        return letters in _FLAGS
    several_people = subcategory == "family" and "," in cldr
    return not (several_people or "facing right" in cldr or cldr.startswith("Japanese “"))
