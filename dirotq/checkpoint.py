"""Save and load quantized models: safetensors and JSON, strict, no pickle.

`config.json` holds `quantization_config`: layout version, tool version, recipe, calibration hash, the inputs with
their transforms and formats (`dirotq.linear.InputSpec`), a checksum of each quantized layer, and, where layers were
rewritten, `rewrites` (`dirotq.models.rewrite`). The tensors are those of `dirotq.linear.QuantLinear`, row-major, under
the layer's name. A diffusers model saved by `save_pretrained` has the same `quantization_config` and tensors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dirotq import digests, graphs, placement, transforms
from dirotq.atomic import atomic_directory
from dirotq.linear import InputSpec, QuantLinear, build
from dirotq.models import rewrite
from dirotq.recipes import Recipe
from dirotq.transforms import Transform
from dirotq.version import __version__

LAYOUT_VERSION = 3
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_ATTRIBUTE = "dirotq_config"


class CheckpointError(ValueError):
    """A checkpoint that must not be loaded; the message says which part is wrong."""


def describe(
    model: nn.Module,
    recipe: Recipe,
    layers: Mapping[str, QuantLinear],
    *,
    checksums: Mapping[str, str],
    calibration: str,
    dtype: torch.dtype,
    rewrites: rewrite.Record | None = None,
) -> None:
    """Attach to `model` the `quantization_config` that its checkpoints will carry; checksums: of the `layers`."""
    config: dict[str, Any] = {
        "quant_method": "dirotq",
        "layout_version": LAYOUT_VERSION,
        "tool_version": __version__,
        "recipe": recipe.to_dict(),
        "calibration": calibration,
        "dtype": str(dtype).removeprefix("torch."),
        "inputs": [layer.spec.to_dict() for layer in layers.values() if layer.spec is not None],
        "checksums": dict(checksums),
    }
    if rewrites:
        config["rewrites"] = rewrites
    attach(model, config)


def attach(model: nn.Module, config: dict[str, Any]) -> None:
    """Make `config` the model's; a diffusers model also gets the quantizer that saves it."""
    setattr(model, _ATTRIBUTE, config)
    if "diffusers" in sys.modules and hasattr(model, "register_to_config"):
        from dirotq.diffusers_quantizer import adopt

        adopt(model, config)


def quantization_config(model: nn.Module) -> dict[str, Any]:
    """The model's `quantization_config`; raises ValueError when it was not quantized by this library."""
    config = getattr(model, _ATTRIBUTE, None)
    if config is None:
        raise ValueError(
            f"{type(model).__name__} is not quantized by dirotq; there is nothing to save"
        )
    return dict(config)


def save(model: nn.Module, path: Path | str) -> None:
    """Write a quantized model to the folder `path`, whole or not at all; an earlier checkpoint there is replaced.

    Raises ValueError when the model is not quantized, FileExistsError when the folder holds anything but a checkpoint,
    OSError when the place cannot be written.
    """
    path = Path(path)
    if path.exists() and (
        not path.is_dir() or {file.name for file in path.iterdir()} - {CONFIG_FILE, WEIGHTS_FILE}
    ):
        raise FileExistsError(f"{path} holds something else than a checkpoint; it is left alone")
    config = quantization_config(model)
    state: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict().items():
        # Tied weights are stored once for each name: safetensors refuses tensors that share memory.
        storage = tensor.untyped_storage().data_ptr()
        state[name] = tensor.clone() if storage in storages else tensor.contiguous()
        storages.add(storage)
    with atomic_directory(path, replace=True) as folder:
        text = json.dumps(
            {"architecture": type(model).__name__, "quantization_config": config}, indent=2
        )
        (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
        save_file(state, folder / WEIGHTS_FILE)


def load(model: nn.Module, path: Path | str, device: torch.device | str | None = None) -> None:
    """Load a folder written by `save` into an unquantized instance of the same architecture, in place.

    The model may be on the meta device (made under `accelerate.init_empty_weights()`, or under `torch.device("meta")`
    where it has no buffers that files leave out). Then no 16-bit weight of a quantized layer ever exists: each tensor
    goes from the file, which is mapped into memory, to `device` by itself.
    device: of the model afterwards; by default where it is, and the CPU for a model on meta.

    Raises CheckpointError, which says what, for an unreadable or missing file, an unknown layout version, another
    architecture, a missing or extra tensor, a wrong shape or dtype, a checksum mismatch, and tensors on meta that no
    file holds; ValueError for device=meta. The model is as it was then.
    """
    destination = placement.destination(model, device)
    path = Path(path)
    try:
        document = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError(f"{CONFIG_FILE} holds a {type(document).__name__}")
        tensors = load_file(path / WEIGHTS_FILE)  # mapped: it takes memory only where it is read
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({error})") from error
    config: dict[str, Any] = document.get("quantization_config") or {}
    architecture = document.get("architecture")
    if architecture != type(model).__name__:
        raise CheckpointError(
            f"{path}: holds a {architecture}, but the model is a {type(model).__name__}"
        )
    originals = dict(model.named_modules())
    graphs.forget(model)
    layers = install(model, config)
    try:
        _check_tensors(model.state_dict(), tensors)
        if unheld := placement.unheld(model):
            raise CheckpointError(
                f"{', '.join(unheld)}: on the meta device and in no checkpoint; make the model under "
                "accelerate.init_empty_weights(), which leaves buffers real"
            )
        verify({name: of_layer(name, layer, tensors) for name, layer in layers.items()}, config)
        placement.fill(model, tensors, destination)
    except BaseException:
        rewrite.undo(model, originals)
        raise
    model.to(destination)
    attach(model, config)


def _check_tensors(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError unless names, shapes and dtypes agree."""
    check_names(set(expected), set(found))
    for name, want in expected.items():
        got = found[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise CheckpointError(
                f"tensor {name} is {got.dtype} {tuple(got.shape)}, expected {want.dtype} {tuple(want.shape)}"
            )


def install(model: nn.Module, config: Mapping[str, Any] | None) -> dict[str, QuantLinear]:
    """Replace the linears that `config` names by quantized layers on the meta device; returns them by name.

    Rewrites the model first, as `config` says. Raises CheckpointError for a missing or unknown configuration and for
    layers that are not in the model; the model is then as it was.
    """
    originals = dict(model.named_modules())
    try:
        return _install(model, config)
    except CheckpointError:
        rewrite.undo(model, originals)
        raise


def _install(model: nn.Module, config: Mapping[str, Any] | None) -> dict[str, QuantLinear]:
    if not isinstance(config, Mapping) or config.get("quant_method") != "dirotq":
        raise CheckpointError("config.json has no quantization_config of dirotq")
    if config.get("layout_version") != LAYOUT_VERSION:
        version = config.get("layout_version")
        raise CheckpointError(
            f"checkpoint layout_version={version}, this version reads {LAYOUT_VERSION}"
        )
    for key in ("inputs", "checksums"):
        if key not in config:
            raise CheckpointError(f"quantization_config: {key} is missing")
    try:
        rewrite.redo(model, config.get("rewrites", {}))
    except ValueError as error:
        raise CheckpointError(f"quantization_config: {error}") from error
    layers: dict[str, QuantLinear] = {}
    for fields in config["inputs"]:
        try:
            spec = InputSpec.from_dict(fields)
            with torch.device("meta"):
                transform = transforms.from_dict(spec.transform)
            modules = {name: model.get_submodule(name) for name in spec.members}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"quantization_config: {error}") from error
        linears = {
            name: module for name, module in modules.items() if isinstance(module, nn.Linear)
        }
        for name in sorted(modules.keys() - linears.keys()):
            raise CheckpointError(
                f"layer {name} is a {type(modules[name]).__name__}, expected an unquantized Linear"
            )
        for name, linear in linears.items():
            if linear.in_features != transform.width:
                raise CheckpointError(
                    f"layer {name} has {linear.in_features} input features, in the checkpoint {transform.width}"
                )
        layers.update(_empty(spec, linears, transform))
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    return layers


def _empty(
    spec: InputSpec, linears: Mapping[str, nn.Linear], transform: Transform
) -> dict[str, QuantLinear]:
    """Quantized layers on meta for the linears of one input."""
    built = build(spec, {name: its.out_features for name, its in linears.items()}, transform)
    with torch.device("meta"):
        for name, layer in built.items():
            layer.allocate(linears[name].bias, linears[name].weight.dtype)
    return built


def check_names(expected: set[str], found: set[str]) -> None:
    """Raise CheckpointError unless the tensor names agree."""
    if expected - found:
        raise CheckpointError(f"tensor {min(expected - found)} is missing from the checkpoint")
    if found - expected:
        raise CheckpointError(
            f"tensor {min(found - expected)} of the checkpoint is not in the model"
        )


def of_layer(name: str, layer: QuantLinear, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the layer `name`, out of all of a checkpoint, under the layer's own names."""
    return {key: tensors[f"{name}.{key}"] for key in layer.state_dict()}


def verify(layers: Mapping[str, Mapping[str, Tensor]], config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for the first layer whose tensors (by the layer's names) lack the recorded checksum."""
    recorded = config["checksums"]
    for name, found in digests.of_each(layers).items():
        if found != recorded.get(name):
            raise CheckpointError(f"layer {name}: checksum mismatch, the checkpoint is damaged")


def checksum(layer: nn.Module) -> str:
    """BLAKE2b of the layer's tensors (names, dtypes, shapes, bytes), 16 hex digits."""
    return digests.of_tensors(layer.state_dict())
