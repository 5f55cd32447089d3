"""The quantizer that lets diffusers save and load DiRotQ models by `save_pretrained` and `from_pretrained`."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

_AUTO = "diffusers.quantizers.auto"
NAME = "dirotq"

if TYPE_CHECKING:
    from torch import nn


def register_when_imported() -> None:
    """Register with diffusers now if it is imported, otherwise as soon as it is.

    Importing diffusers takes seconds; someone who quantizes a plain module should not wait for it.
    """
    if _AUTO in sys.modules:
        _register(sys.modules[_AUTO])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing of its own: hands `diffusers.quantizers.auto` to the usual finders and registers after it ran."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, wrapped: importlib.abc.Loader) -> None:
        self._wrapped = wrapped

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._wrapped.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._wrapped.exec_module(module)
        _register(module)


def _register(auto: ModuleType) -> None:
    from dirotq._diffusers_classes import DiRotQConfig, DiRotQQuantizer

    auto.AUTO_QUANTIZER_MAPPING[NAME] = DiRotQQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[NAME] = DiRotQConfig


def adopt(model: nn.Module, config: dict[str, Any]) -> None:
    """Make a diffusers model that was quantized in memory saveable by `save_pretrained`."""
    from dirotq._diffusers_classes import DiRotQConfig, DiRotQQuantizer

    model.register_to_config(quantization_config=config)  # type: ignore[operator]
    model.hf_quantizer = DiRotQQuantizer(DiRotQConfig(**config), pre_quantized=True)
