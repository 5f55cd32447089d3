"""Prompt sets: those of the embedded model, or a file of one's own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ASSETS = Path(__file__).parent / "assets"
SETS = ASSETS / "emoji" / "prompts"


@dataclass(frozen=True)
class Prompt:
    """id: names the image file and decides the seed. category, split: free text, for tables."""

    id: str
    text: str
    category: str = ""
    split: str = ""

    def seed(self, offset: int = 0) -> int:
        """Seed of the prompt's initial noise (63 bits), from its id alone, so that no other prompt affects it."""
        digest = hashlib.sha256(f"{self.id}/{offset}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1


def load_prompts(name_or_path: str, first: int | None = None) -> list[Prompt]:
    """Read a set by name (`quick`, `standard` ...) or from a .json, .yaml or .txt file; its first so many prompts.

    .json and .yaml map ids to a prompt or to {prompt, category, split}; .txt has a prompt a line.
    Raises ValueError, which names what is wrong: an unknown set, an unreadable or empty file, a bad entry, too few.
    """
    path = SETS / f"{name_or_path}.json"
    if not path.is_file():
        path = Path(name_or_path)
        if path.suffix not in (".json", ".yaml", ".yml", ".txt"):
            names = ", ".join(sorted(file.stem for file in SETS.glob("*.json")))
            raise ValueError(
                f"prompt_set={name_or_path}: unknown, allowed are {names} and .json, .yaml or .txt files"
            )
    prompts = [_prompt(key, value, path) for key, value in _entries(path).items()]
    if not prompts:
        raise ValueError(f"prompt_set={name_or_path}: the file holds no prompts")
    if first is not None and first > len(prompts):
        raise ValueError(f"prompts={first}: the set {name_or_path} has {len(prompts)}")
    return prompts[:first]


def _entries(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".txt":
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            return {f"{number:05d}": line for number, line in enumerate(lines)}
        content = (
            json.loads(text, object_pairs_hook=_unique)
            if path.suffix == ".json"
            else yaml.safe_load(text)
        )
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"prompt_set={path}: cannot be read ({reason})") from error
    if not isinstance(content, Mapping | None):
        raise ValueError(
            f"prompt_set={path}: holds a {type(content).__name__}, expected a mapping of ids to prompts"
        )
    return {str(key): value for key, value in (content or {}).items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python would silently keep the last of two entries of one name."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the entry {double!r} is there twice")
    return entries


def _prompt(key: str, value: Any, path: Path) -> Prompt:
    entry = {"prompt": value} if isinstance(value, str) else value
    text = entry.get("prompt") if isinstance(entry, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"prompt_set={path}: the entry {key!r} has no prompt")
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", key):
        raise ValueError(
            f"prompt_set={path}: the id {key!r} cannot name a file; allowed are letters, digits and ._-, no dot first"
        )
    return Prompt(key, text.strip(), str(entry.get("category", "")), str(entry.get("split", "")))
