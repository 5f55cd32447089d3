"""Keys follow the source that decides a stage, and no other."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dirotq.lab import sources
from dirotq.lab.keys import Keys
from dirotq.lab.stages import Stages
from tests.support.jobs import job

Change = Callable[[str], None]
Make = Callable[[str], Keys]


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Change:
    """Appends a comment to a source file of the library: of a copy, which hashes are taken of from now on."""
    copy = tmp_path / "dirotq"
    shutil.copytree(sources.SOURCE, copy, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    monkeypatch.setattr(sources, "SOURCE", copy)

    def changed(name: str) -> None:
        path = copy / name
        path.write_text(path.read_text() + "# changed\n")

    return changed


@pytest.fixture
def make(tiny_pipeline: Path, tmp_path: Path) -> Make:
    def made(backend: str) -> Keys:
        settings = ("method=rtn", f"runtime.backend={backend}")
        return Stages(job(tiny_pipeline, tmp_path, *settings)).keys

    return made


def stages(keys: Keys) -> dict[str, Any]:
    return {name: getattr(keys, name)() for name in ("statistics", "quantized", "drawn")}


@pytest.mark.parametrize(
    ("file", "backend", "stale"),
    [
        ("backend.py", "reference", set()),
        ("backend.py", "auto", {"drawn"}),
        ("linear.py", "reference", {"quantized", "drawn"}),
        ("linear.py", "auto", {"quantized", "drawn"}),
        ("placement.py", "reference", {"quantized", "drawn"}),
        ("passes.py", "reference", {"statistics", "quantized", "drawn"}),
        ("calibrate.py", "reference", {"statistics", "quantized", "drawn"}),
        ("judge/rubric.py", "auto", set()),
    ],
)
def test_a_stage_is_stale_after_a_change_of_its_source(
    file: str, backend: str, stale: set[str], make: Make, change: Change
) -> None:
    keys = make(backend)
    before = stages(keys)
    change(file)
    assert {name for name, fields in stages(keys).items() if fields != before[name]} == stale


def test_images_by_kernels_are_others(make: Make) -> None:
    simulated, kernels = make("reference"), make("auto")
    assert simulated.quantized() == kernels.quantized()
    assert simulated.drawn() == simulated.quantized()
    assert kernels.drawn() != make("triton").drawn() != simulated.drawn()


def test_a_bench_of_a_kernel_makes_nothing_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    (tmp_path / "decode.py").write_text("1")
    before = sources.kernels_hash()
    for name in ("decode_bench.py", "benching.py"):
        (tmp_path / name).write_text("1")
        assert sources.kernels_hash() == before
    (tmp_path / "benched.py").write_text("1")
    assert sources.kernels_hash() != before


def test_of_one_kernel_its_file_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    (tmp_path / "second_moment.py").write_text("1")
    before = sources.kernels_hash("second_moment.py")
    (tmp_path / "decode.py").write_text("1")
    assert sources.kernels_hash("second_moment.py") == before != sources.kernels_hash()
    (tmp_path / "second_moment.py").write_text("2")
    assert sources.kernels_hash("second_moment.py") != before
