"""Where the artwork and the names come from, and under which licences."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """One npm package: what is drawn in it, by whom, and under which licence."""

    package: str
    version: str
    sha256: str
    licence: str
    credit: str
    url: str
    style: str | None = None
    folder: str = ""


SOURCES = (
    Source(
        "emoji-datasource-google", "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "Apache-2.0 (artwork), MIT (data)", "Noto Emoji, Google; emoji-data, Cal Henderson",
        "https://github.com/googlefonts/noto-emoji", "noto", "img/google/64",
    ),
    Source(
        "emoji-datasource-twitter", "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "CC-BY-4.0 (artwork), MIT (data)", "Twemoji, Twitter, Inc. and other contributors",
        "https://github.com/jdecked/twemoji", "twemoji", "img/twitter/64",
    ),
    Source(
        "@lobehub/fluent-emoji-3d", "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT", "Fluent Emoji, Microsoft Corporation; packaged by LobeHub",
        "https://github.com/microsoft/fluentui-emoji", "fluent 3d", "assets",
    ),
    Source(
        "@lobehub/fluent-emoji-flat", "1.1.0",
        "8f9113c027c7c20eced0070354715a4093a459b8bef6332b91d45f38c9bdb147",
        "MIT", "Fluent Emoji, Microsoft Corporation; packaged by LobeHub",
        "https://github.com/microsoft/fluentui-emoji", "fluent flat", "assets",
    ),
    Source(
        "unicode-emoji-json", "0.9.0",
        "ae7efacb55533385bf8767d613dbd36c71226669759d95919a6e9059f5e4c401",
        "MIT (code), Unicode-3.0 (names)", "Unicode, Inc. (CLDR); Mu-An Chiou",
        "https://github.com/muan/unicode-emoji-json",
    ),
)  # fmt: skip
STYLES = tuple(source.style for source in SOURCES if source.style is not None)


def fetch(source: Source, cache: Path) -> Path:
    """Download and unpack one package, once; returns its folder."""
    folder = cache / f"{source.package.replace('/', '-').lstrip('@')}-{source.version}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{source.package}@{source.version}"]
        subprocess.run(command, cwd=cache, check=True, stdout=subprocess.DEVNULL)
        archive = folder.with_suffix(folder.suffix + ".tgz")
        if hashlib.sha256(archive.read_bytes()).hexdigest() != source.sha256:
            raise ValueError(f"{archive.name} is not the archive this was written for")
        partial_folder = folder.with_name(folder.name + ".part")
        with tarfile.open(archive) as tar:
            tar.extractall(partial_folder, filter="data")
        partial_folder.rename(folder)
    return folder / "package"
