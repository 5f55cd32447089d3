"""Write, read and call the pipeline of the embedded model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, PixArtTransformer2DModel
from numpy.typing import NDArray
from torch import nn
from transformers import T5EncoderModel, T5Tokenizer

from experiments.embedded.config import CALL, build_scheduler


def write_pipeline(
    folder: Path,
    tokenizer: T5Tokenizer,
    text_encoder: T5EncoderModel,
    transformer: PixArtTransformer2DModel,
    vae: AutoencoderKL,
) -> None:
    """Write a pipeline folder in bfloat16; the modules stay as they are."""
    pipeline = PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=_shipped(text_encoder),
        transformer=_shipped(transformer),
        vae=_shipped(vae),
        scheduler=build_scheduler(),
    )
    pipeline.save_pretrained(folder)


def _shipped(module: nn.Module) -> nn.Module:
    shipped = copy.deepcopy(module).to("cpu", torch.bfloat16)
    # Training keeps convolutions channels last, which is no business of who loads the file.
    for parameter in shipped.parameters():
        parameter.data = parameter.data.contiguous()
    return shipped


def read_pipeline(folder: Path, device: torch.device) -> PixArtSigmaPipeline:
    """Read a pipeline in float32."""
    # Without a dtype, transformers takes that of the file and diffusers takes float32.
    pipeline = PixArtSigmaPipeline.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: PixArtSigmaPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    guidance: float,
    batch: int = 20,
) -> NDArray[np.uint8]:
    """One picture for each prompt from noise of its own seed: uint8 [n, 64, 64, 3]."""
    pictures = []
    for start in range(0, len(prompts), batch):
        # On the CPU, so that the noise is the same on every device.
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch]]
        output = pipeline(
            list(prompts[start : start + batch]),
            generator=generators,
            output_type="np",
            **{**CALL, "guidance_scale": guidance},
        )
        pictures.append((output.images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)
