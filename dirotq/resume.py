"""Finished inputs of a quantization on disk, so that a run that is killed goes on where it stopped.

`workdir/<run>/<input>.safetensors` holds the tensors of the linears that read one input and, as JSON in its header,
what they are and their rows of the report, with checksums of both. A file is whole or not there, and one that is
damaged is as if it were not. `<run>` is a hash of all that decides the result: the recipe, the layout, the model with
every weight (what a layer reads depends on all those before it) and the calibration; a folder serves many runs.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dirotq import digests
from dirotq.atomic import atomic_write_bytes
from dirotq.calibrate import Members
from dirotq.checkpoint import LAYOUT_VERSION, checksum
from dirotq.linear import InputSpec, QuantLinear, build
from dirotq.models import Layout
from dirotq.quantization_report import LayerReport
from dirotq.recipes import Recipe
from dirotq.version import __version__

_VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """One distinct input, quantized.

    layers and their checksums: by name. rows: of the report. statistics: `calibrate.digest` of what it was made from.
    """

    layers: dict[str, QuantLinear]
    checksums: dict[str, str]
    rows: tuple[LayerReport, ...]
    statistics: str


class Shelf:
    """The finished inputs of one run, in a folder; nothing is kept where there is none."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def put(self, members: Members, finished: Finished) -> Finished:
        """Write an input, or replace it; returns it. Layers on the CPU then lie in the file's memory.

        The system can do without that memory. Raises OSError when the disk is full or the place cannot be written.
        """
        if self.folder is None:
            return finished
        tensors = {
            f"{name}.{key}": tensor.to("cpu", copy=True).contiguous()
            for name, layer in finished.layers.items()
            for key, tensor in layer.state_dict().items()
        }
        (spec,) = [layer.spec for layer in finished.layers.values() if layer.spec is not None]
        text = json.dumps(
            {
                "spec": spec.to_dict(),
                "out_features": {name: its.out_features for name, its in finished.layers.items()},
                "checksums": finished.checksums,
                "rows": [asdict(row) for row in finished.rows],
                "statistics": finished.statistics,
            }
        )
        header = {"entry": text, "checksum": digests.of_text(text)}
        atomic_write_bytes(self._path(members), save(tensors, header))
        on_host = all(tensor.is_cpu for tensor in finished.layers[members[0]].buffers())
        return _read(self._path(members), check=False) if on_host else finished

    def get(self, members: Members) -> Finished | None:
        """An input that was written before, its layers on the CPU; None, with a warning, when it is damaged."""
        if self.folder is None or not (path := self._path(members)).exists():
            return None
        try:
            _read(path, check=True)
            # Mapped anew: pages of a mapping that was read count as the process's memory.
            return _read(path, check=False)
        except (OSError, SafetensorError, AttributeError, KeyError, ValueError) as error:
            _log.warning("%s: %s is damaged (%s) and made anew", members[0], path, error)
            return None

    def _path(self, members: Members) -> Path:
        assert self.folder is not None, "there is no folder"
        return self.folder / f"{digests.of_text(' '.join(members))}.safetensors"


def run_of(
    model: nn.Module, recipe: Recipe, layout: Layout, calibration: str, device: torch.device
) -> str:
    """Name of a run: 32 hex digits of all that decides its result. calibration: identity of the batches."""
    content = [
        *(_VERSION, LAYOUT_VERSION, __version__, device.type, calibration, repr(layout)),
        *(recipe.to_dict(), repr(model), _settings(getattr(model, "config", None))),
        digests.of_weights(model),
    ]
    return digests.of_text(json.dumps(content, sort_keys=True))


def _settings(config: Any) -> str:
    """A model's configuration without what diffusers notes in it besides, in another order for every process."""
    if isinstance(config, Mapping):
        config = sorted((str(key), repr(its)) for key, its in config.items() if str(key)[0] != "_")
    return repr(config)


def _read(path: Path, check: bool) -> Finished:
    """Raises ValueError for what has other content than when it was written, and as reading does."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        text = header["entry"]
        if digests.of_text(text) != header["checksum"]:
            raise ValueError("its header has another checksum")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
    entry = json.loads(text)
    layers = _rebuilt(InputSpec.from_dict(entry["spec"]), entry["out_features"], tensors)
    for name, layer in layers.items():
        if check and checksum(layer) != entry["checksums"][name]:
            raise ValueError(f"layer {name} has another checksum")
    rows = tuple(LayerReport(**row) for row in entry["rows"])
    return Finished(layers, entry["checksums"], rows, entry["statistics"])


def _rebuilt(
    spec: InputSpec, out_features: dict[str, int], tensors: Mapping[str, Tensor]
) -> dict[str, QuantLinear]:
    layers = build(spec, out_features)
    for name, layer in layers.items():
        own = {key.removeprefix(f"{name}."): key for key in tensors if key.startswith(f"{name}.")}
        for place, key in own.items():
            owner, _, leaf = place.rpartition(".")
            setattr(layer.get_submodule(owner), leaf, tensors[key])
    return layers
