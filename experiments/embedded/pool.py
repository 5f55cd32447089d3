"""A pool of encoded scenes on the GPU, filled while training already draws from it."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from experiments.embedded.config import LATENT_CHANNELS, LATENT_SIZE, MAX_TOKENS
from experiments.embedded.scenes import render
from experiments.embedded.stream import SceneStream


class LatentPool:
    """Latents and caption tokens of many scenes, in the order in which they were sampled."""

    def __init__(
        self, capacity: int, stream: SceneStream, sprites: Tensor, vae: AutoencoderKL
    ) -> None:
        """Reserve the memory; :meth:`grow` fills it.

        Args:
            capacity: scenes in a full pool.
            stream: where scenes and tokens come from.
            sprites: uint8 [N, 64, 64, 4] on the device to use.
            vae: encodes the pictures, on the same device.
        """
        self.size = 0
        self.capacity = capacity
        self._stream, self._sprites, self._vae = stream, sprites, vae
        shape = (capacity, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
        self._latents = torch.empty(shape, dtype=torch.float16, device=sprites.device)
        self._tokens = torch.empty((capacity, MAX_TOKENS), dtype=torch.int16, device=sprites.device)

    def grow(self, encode_batch: int = 2048) -> bool:
        """Add one chunk of the stream; False when the pool is full."""
        if self.size == self.capacity:
            return False
        scenes, tokens = self._stream.take()
        if tokens is None:
            raise ValueError("the stream of a pool needs a tokenizer")
        count = min(len(tokens), self.capacity - self.size)
        self._tokens[self.size : self.size + count] = torch.from_numpy(tokens[:count]).to(
            self._tokens.device
        )
        for start in range(0, count, encode_batch):
            stop = min(start + encode_batch, count)
            images = render(scenes, self._sprites, start, stop)
            latents = encode_images(self._vae, images)
            self._latents[self.size + start : self.size + stop] = latents
        self.size += count
        return True

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Random latents float32 [batch, 4, 16, 16] and tokens int64 [batch, MAX_TOKENS]."""
        rows = torch.randint(self.size, (batch,), device=self._latents.device)
        return self._latents[rows].float(), self._tokens[rows].long()


@torch.no_grad()
def encode_images(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Posterior means [B, 4, 16, 16] of images [B, 3, 64, 64] in [-1, 1], scaled for diffusion."""
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        latents: Tensor = vae.encode(images).latent_dist.mode()
    scale: float = vae.config.scaling_factor
    return latents.float() * scale
