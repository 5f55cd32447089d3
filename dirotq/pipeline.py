"""Load a diffusers pipeline, generate images deterministically, and record what its transformer is called with."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from packaging.version import Version
from torch import Tensor, nn

from dirotq.prompts import ASSETS, Prompt
from dirotq.settings import ModelSettings

Tick = Callable[[], None]
Watch = Callable[[int, Tensor], None]
"""Called after every step with the number of the batch's first prompt and the batch's latents [b, ...]."""
_WHOLE_FILE = 64 * 2**20
_BLOCKS, _BLOCK_BYTES = 1024, 16 * 2**10
# diffusers renamed the argument; the old name still works, with a warning.
_DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.42") else "torch_dtype"


class Pipeline:
    """A text-to-image pipeline with the call settings that belong to its model."""

    def __init__(self, settings: ModelSettings, device: torch.device, dtype: torch.dtype) -> None:
        self.settings = settings
        self.folder = model_folder(settings.path)
        self.dtype = dtype
        source = self.folder or settings.path
        try:
            self.pipe = DiffusionPipeline.from_pretrained(source, **{_DTYPE: dtype}).to(device)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"model.path={settings.path}: cannot be loaded ({' '.join(str(error).split())})"
            ) from error
        if not isinstance(getattr(self.pipe, "transformer", None), nn.Module):
            raise ValueError(
                f"model.path={settings.path}: {type(self.pipe).__name__} has no transformer to quantize"
            )
        self.pipe.set_progress_bar_config(disable=True)
        self._accepted = set(inspect.signature(self.pipe.__call__).parameters)
        for key in settings.call:
            if key not in self._accepted:
                raise ValueError(
                    f"model.call.{key}: {type(self.pipe).__name__} takes no such argument"
                )

    @property
    def transformer(self) -> nn.Module:
        """The diffusion transformer."""
        module: nn.Module = self.pipe.transformer
        return module

    @transformer.setter
    def transformer(self, module: nn.Module) -> None:
        self.pipe.transformer = module

    def load_transformer(self, folder: Path) -> nn.Module:
        """A transformer saved by `save_pretrained`, of the pipeline's class, on the pipeline's device."""
        loaded: nn.Module = type(self.pipe.transformer).from_pretrained(folder)
        return loaded.to(self.pipe.device)

    def num_steps(self, num_prompts: int, batch: int) -> int:
        """Denoising steps that `generate` takes: calls of `tick`."""
        return -(-num_prompts // batch) * self.settings.steps

    @property
    def reports_latents(self) -> bool:
        """Whether `generate` can watch the latents: a pipeline without a callback keeps them to itself."""
        return bool({"callback_on_step_end", "callback"} & self._accepted)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        batch: int,
        seed: int = 0,
        tick: Tick | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Images of `prompts`: float32 [B, H, W, 3] in [0, 1] on the CPU, not rounded; NaN where the model made NaN.

        The initial noise of a prompt depends on its id and `seed` alone. `tick` and `watch` are called after every
        step, if the pipeline reports its steps; what `watch` gets must be copied to be kept.
        """
        images = []
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            generators = [torch.Generator("cpu").manual_seed(prompt.seed(seed)) for prompt in part]

            def after_step(latents: Tensor, first: int = start) -> None:
                if tick is not None:
                    tick()
                if watch is not None:
                    watch(first, latents)

            images.append(self._call([prompt.text for prompt in part], generators, after_step))
        return torch.cat(images)

    def _call(
        self,
        texts: list[str],
        generators: list[torch.Generator],
        after_step: Callable[[Tensor], None],
    ) -> Tensor:
        def on_step_end(
            pipe: Any, step: int, timestep: Any, state: dict[str, Any]
        ) -> dict[str, Any]:
            after_step(state["latents"])
            return state

        arguments: dict[str, Any] = {
            "prompt": texts,
            "generator": generators,
            "num_inference_steps": self.settings.steps,
            "guidance_scale": self.settings.guidance,
            "height": self.settings.size,
            "width": self.settings.size,
            "output_type": "pt",
            **self.settings.call,
        }
        # Pipelines report their steps in one of two ways; older ones only in the second.
        if "callback_on_step_end" in self._accepted:
            arguments["callback_on_step_end"] = on_step_end
        elif "callback" in self._accepted:
            arguments["callback"] = lambda step, timestep, latents: after_step(latents)
        with torch.no_grad():
            images: Tensor = self.pipe(**arguments).images
        return images.permute(0, 2, 3, 1).float().cpu()

    def record(
        self,
        prompts: Sequence[Prompt],
        *,
        batch: int,
        wanted: set[int],
        seed: int = 0,
        tick: Tick | None = None,
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Calls of the transformer while `prompts` are generated: (number, keyword arguments) of the `wanted` ones.

        Calls are numbered from 0 over all batches, one a step (both guidance halves together).
        """
        for start in range(0, len(prompts), batch):
            seen: list[dict[str, Any]] = []

            def keep(
                module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], seen: Any = seen
            ) -> None:
                names = list(inspect.signature(module.forward).parameters)
                seen.append({**dict(zip(names, args, strict=False)), **kwargs})

            handle = self.transformer.register_forward_pre_hook(keep, with_kwargs=True)
            try:
                self.generate(prompts[start : start + batch], batch=batch, seed=seed, tick=tick)
            finally:
                handle.remove()
            first = start // batch * self.settings.steps
            for number, kwargs in enumerate(seen, start=first):
                if number in wanted:
                    yield number, kwargs


def fingerprint(folder: Path | None, path: str) -> str:
    """Hash of a pipeline's files (16 hex digits): names and bytes; of a hub id, which has no folder, `path`.

    Files over 64 MB are sampled: their size and 1,024 evenly spaced blocks of 16 KB. They are read again only when
    their sizes or times have changed.
    """
    if folder is None:
        return hashlib.blake2b(path.encode(), digest_size=8).hexdigest()
    folder = folder.absolute()
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = {*index, "model_index.json"}
    files = []
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.relative_to(folder).parts[0] in parts:
            status = file.stat()
            files.append((file, status.st_size, status.st_mtime_ns))
    return _fingerprint(folder, tuple(files))


@functools.lru_cache
def _fingerprint(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for file, _, _ in files:
        digest.update(str(file.relative_to(folder)).encode())
        _update(digest, file)
    return digest.hexdigest()


def _update(digest: Any, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_FILE:
            digest.update(file.read())
            return
        digest.update(str(size).encode())
        for block in range(_BLOCKS):
            file.seek(block * max(0, size - _BLOCK_BYTES) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK_BYTES))


def model_folder(path: str) -> Path | None:
    """The local folder that a model path names: one of dirotq/assets, or any; None for a hub id.

    Raises ValueError for a folder that holds no pipeline.
    """
    for folder in (ASSETS / path, Path(path)):
        if folder.is_dir():
            if not (folder / "model_index.json").is_file():
                raise ValueError(
                    f"model.path={path}: no diffusers pipeline there (model_index.json is missing)"
                )
            return folder
    return None


def to_uint8(images: Tensor) -> Tensor:
    """Float images in [0, 1] as uint8, rounded to nearest."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)
