"""What a wheel holds, and what the checkout's root must not shadow."""

import ast
import importlib.machinery
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def setuptools() -> dict[str, Any]:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found: dict[str, Any] = document["tool"]["setuptools"]
    return found


def folder_of(package: str, setuptools: dict[str, Any]) -> Path:
    named = setuptools.get("package-dir", {}).get(package)
    return ROOT / (named or package.replace(".", "/"))


def test_every_package_is_listed(setuptools: dict[str, Any]) -> None:
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "dirotq").rglob("*.py")}
    expected = {".".join(folder.parts) for folder in folders}
    assert expected <= set(setuptools["packages"])
    for package in setuptools["packages"]:
        assert folder_of(package, setuptools).is_dir(), package


def test_every_data_file_is_listed(setuptools: dict[str, Any]) -> None:
    shipped: set[Path] = set()
    for package, patterns in setuptools["package-data"].items():
        folder = folder_of(package, setuptools)
        for pattern in patterns:
            found = {path for path in folder.glob(pattern) if path.is_file()}
            assert found or pattern == "py.typed", f"{package}: {pattern} matches nothing"
            shipped |= found
    data = [path for folder in ("dirotq", "conf") for path in (ROOT / folder).rglob("*")]
    for path in data:
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert path in shipped, path


def test_console_scripts_name_functions() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    for name, target in document["project"]["scripts"].items():
        module, _, function = target.partition(":")
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert f"def {function}(" in source, name


def test_import_kernels_does_not_find_ours() -> None:
    """Hugging Face has a package of this name, which diffusers and transformers import."""
    spec = importlib.machinery.PathFinder.find_spec("kernels", [str(ROOT)])
    # A folder without __init__.py is a namespace, which any real package goes before.
    assert spec is None or spec.loader is None


def imported(path: Path) -> set[str]:
    """First parts of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found


def test_one_package_alone_imports_hydra() -> None:
    users = {path.parent for path in (ROOT / "dirotq").rglob("*.py") if "hydra" in imported(path)}
    assert users == {ROOT / "dirotq" / "config"}
