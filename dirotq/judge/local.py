"""A judge on this machine: a folder with a transformers image-and-text model.

Generation is not constrained to the schema, which transformers alone cannot do: what the model
writes is parsed strictly, as with an endpoint of format `text`.
"""

import hashlib
import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dirotq.judge.clients import Reply, Turn
from dirotq.judge.protocol import Request


class LocalModel:
    """A model and its processor, loaded at the first question that no answer is kept of."""

    concurrency = 1

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Fingerprint the folder, so that another model of the same name is another judge.

        Raises:
            ValueError: the folder holds no model.
        """
        if not (folder / "config.json").is_file():
            raise ValueError(f"--local {folder} holds no model: config.json is missing")
        self._folder = folder
        self._device = device
        self.name = f"{folder.resolve().name}@{_fingerprint(folder)}"

    def complete(self, turns: Sequence[Turn], request: Request) -> Reply:
        """See Client; greedy at temperature 0."""
        processor, model = self._loaded
        inputs = processor.apply_chat_template(
            [_message(turn) for turn in turns],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        ).to(self._device, dtype=model.dtype)
        sampling: dict[str, Any] = {"do_sample": request.temperature > 0}
        if request.temperature > 0:
            sampling["temperature"] = request.temperature
        forked = [self._device] if self._device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices=forked):
            torch.manual_seed(request.seed)
            tokens = model.generate(**inputs, max_new_tokens=request.max_tokens, **sampling)
        written = tokens[:, inputs["input_ids"].shape[1] :]
        return Reply(processor.batch_decode(written, skip_special_tokens=True)[0], "text")

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Processor and model."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        processor = AutoProcessor.from_pretrained(self._folder, local_files_only=True)
        model = AutoModelForImageTextToText.from_pretrained(
            self._folder, local_files_only=True, use_safetensors=True, dtype="auto"
        )
        return processor, model.to(self._device).eval()


def _message(turn: Turn) -> dict[str, Any]:
    """A turn as chat templates of image-and-text models have it."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": Image.open(io.BytesIO(part))}
        for part in turn.parts
    ]
    return {"role": turn.role, "content": content}


def _fingerprint(folder: Path) -> str:
    """Hash (16 hex digits) of all files of the folder, names and bytes."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").digest()
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + content)
    return digest.hexdigest()
