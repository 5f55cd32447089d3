"""Plain text as LaTeX."""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after a line's \\, a bracket or a star would be read as its argument
    "]": "{]}",
    "*": "{*}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    "²": "$^2$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{MINUS SIGN}": "$-$",
}
_CAPITALS = {"gamma", "delta", "theta", "lambda", "xi", "pi", "sigma", "phi", "psi", "omega"}
_TAKEN = set("ßøØæÆœŒåÅłŁ§©£\u2013\u2014\u2018\u2019\u201c\u201d…")
_ACCENTS = set("\u0300\u0301\u0302\u0303\u0304\u0306\u0307\u0308\u030a\u030b\u030c\u0327")


def escaped(plain: str) -> str:
    """Text for pdfLaTeX without a package; a character that would stop it is shown by its code point."""
    return "".join(map(_character, plain)).replace("--", "-{}-")


def _character(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    parts = unicodedata.normalize("NFD", character)
    latin = character < "\u0180" and parts[0].isascii() and set(parts[1:]) <= _ACCENTS
    if character.isprintable() and (latin or character in _TAKEN):
        return character
    return _greek(character) or rf"\texttt{{U+{ord(character):04X}}}"


def _greek(character: str) -> str | None:
    """A Greek letter in mathematics; None for what is none, or one that TeX writes in Latin."""
    named = re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (\w+)", unicodedata.name(character, ""))
    if named is None:
        return None
    name = named[2].lower().replace("lamda", "lambda")
    if named[1] == "CAPITAL":
        return rf"$\{name.capitalize()}$" if name in _CAPITALS else None
    return None if name == "omicron" else rf"$\{name}$"
