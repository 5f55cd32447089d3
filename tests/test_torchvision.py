"""Beside a CPU build of PyTorch, torchvision is made importable; elsewhere nothing is touched."""

import importlib
import importlib.machinery
from pathlib import Path

import pytest
import torch

import dirotq  # noqa: F401 - importing it defines the schemas
from dirotq import _torchvision


def test_torchvision_can_be_imported() -> None:
    module = importlib.import_module("torchvision")
    assert module.__version__
    transforms = importlib.import_module("torchvision.transforms")
    assert transforms.InterpolationMode.BICUBIC.value == "bicubic"


def test_calling_it_again_is_harmless() -> None:
    before = list(_torchvision._libraries)
    assert not _torchvision.define_missing_schemas()
    assert _torchvision._libraries == before


@pytest.fixture
def without_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process where nothing was defined yet."""
    monkeypatch.setattr(torch.ops, "torchvision", object())


@pytest.mark.usefixtures("without_operators")
def test_it_is_inert_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not _torchvision.define_missing_schemas()


@pytest.mark.usefixtures("without_operators")
def test_it_is_inert_where_the_library_loads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "_C.so").write_bytes(b"")
    spec = importlib.machinery.ModuleSpec("torchvision", None, origin=str(tmp_path / "__init__.py"))
    loaded: list[Path] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert not _torchvision.define_missing_schemas()
    assert loaded == [tmp_path / "_C.so"]


def test_a_library_that_does_not_load_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "_C.so").write_bytes(b"no library")
    assert not _torchvision._loads(tmp_path)
