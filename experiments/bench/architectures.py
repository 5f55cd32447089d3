"""Transformers of published dimensions and one call's arguments: data only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from dirotq.settings import Settings

Batch = dict[str, Any]


@dataclass(frozen=True)
class Architecture(Settings):
    """A class of diffusers, and the arguments that differ from its defaults. text: tokens of a prompt."""

    architecture: str
    config: dict[str, Any]
    text: int

    def __post_init__(self) -> None:
        self._one_of("architecture", tuple(_CALLS))

    def instance(self) -> nn.Module:
        """A new instance, on the device and with the initialization of the context."""
        model: nn.Module = getattr(diffusers, self.architecture)(**self.config)
        return model

    @property
    def smallest(self) -> int:
        """Pixels a side of an image of 2 x 2 tokens at least."""
        return 64

    def batch(self, rows: int, size: int, device: torch.device, dtype: torch.dtype) -> Batch:
        """Arguments of one call: `rows` images of `size` pixels a side, random."""
        model_config = _defaults(self.architecture) | self.config

        def normal(*shape: int) -> Tensor:
            return torch.randn(rows, *shape, device=device, dtype=dtype)

        return {
            "return_dict": False,
            **_CALLS[self.architecture](normal, model_config, size, self.text),
        }

    def tokens(self, size: int) -> int:
        """Image tokens of one image."""
        return (size // _PIXELS[self.architecture]) ** 2


# Pixels a side of one token: the autoencoder's factor times the patch.
_PIXELS = {
    "FluxTransformer2DModel": 16,
    "PixArtTransformer2DModel": 16,
    "SanaTransformer2DModel": 32,
}
Normal = Callable[..., Tensor]


def _defaults(name: str) -> dict[str, Any]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _flux(normal: Normal, config: dict[str, Any], size: int, text: int) -> Batch:
    side = size // 16
    latents = normal(side * side, config["in_channels"])
    where = latents.device
    axes = len(config["axes_dims_rope"])
    ids = torch.zeros(side, side, axes, device=where)
    ids[..., 1] += torch.arange(side, device=where)[:, None]
    ids[..., 2] += torch.arange(side, device=where)[None, :]
    rows = latents.shape[0]
    batch = {
        "hidden_states": latents,
        "encoder_hidden_states": normal(text, config["joint_attention_dim"]),
        "pooled_projections": normal(config["pooled_projection_dim"]),
        "timestep": torch.full((rows,), 0.5, device=where, dtype=latents.dtype),
        "img_ids": ids.flatten(0, 1),
        "txt_ids": torch.zeros(text, axes, device=where),
    }
    if config["guidance_embeds"]:
        batch["guidance"] = torch.full((rows,), 3.5, device=where)
    return batch


def _pixart(normal: Normal, config: dict[str, Any], size: int, text: int) -> Batch:
    conditions = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
    return _captioned(normal, config, size // 8, text) | conditions


def _sana(normal: Normal, config: dict[str, Any], size: int, text: int) -> Batch:
    return _captioned(normal, config, size // 32, text)


def _captioned(normal: Normal, config: dict[str, Any], side: int, text: int) -> Batch:
    """Latents of `side` numbers a side, and a caption with its mask."""
    latents = normal(config["in_channels"], side, side)
    rows = latents.shape[0]
    return {
        "hidden_states": latents,
        "encoder_hidden_states": normal(text, config["caption_channels"]),
        "encoder_attention_mask": torch.ones(rows, text, device=latents.device),
        "timestep": torch.full((rows,), 500, device=latents.device),
    }


_CALLS: dict[str, Callable[[Normal, dict[str, Any], int, int], Batch]] = {
    "FluxTransformer2DModel": _flux,
    "PixArtTransformer2DModel": _pixart,
    "SanaTransformer2DModel": _sana,
}
