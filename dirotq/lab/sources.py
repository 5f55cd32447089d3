"""Source files as part of cache keys: a stage is not reused across a change of its code."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import dirotq

SOURCE = Path(dirotq.__file__).parent


def is_source(path: Path) -> bool:
    """Whether a folder or file of the library holds Python source."""
    return path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))


def source_hash(*names: str) -> str:
    """Hash of source files and packages of the library: a stage is not reused across a change of its code."""
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        path = SOURCE / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def kernels_hash(*names: str) -> str:
    """Hash of the sources of the Triton kernels `names`, of all but benches by default; empty where there are none."""
    digest = hashlib.blake2b(digest_size=8)
    found = importlib.util.find_spec("dirotq_kernels")
    folders = list(found.submodule_search_locations or ()) if found else []
    for file in sorted(file for folder in folders for file in Path(folder).glob("*.py")):
        bench = file.stem.endswith("_bench") or file.stem == "benching"
        if file.name in names or not (names or bench):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest() if folders else ""
