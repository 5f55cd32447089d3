"""Train the autoencoder on random scenes.

`python -m experiments.embedded.train_vae --seconds 120` writes the finished autoencoder to
`outputs/embedded/vae/` and its log beside it. `--resume` continues an interrupted run.
`--decoder-of <folder>` trains only the decoder of a finished autoencoder further: what has been
trained on its latents stays valid.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor
from torch.optim import AdamW

from experiments.embedded.config import WORK, build_vae, parameter_count, pick_device
from experiments.embedded.scenes import render, sample_scenes
from experiments.embedded.sprites import load_sprites
from experiments.embedded.stream import SceneStream, image_batches
from experiments.embedded.training import (
    Budget,
    Counters,
    Log,
    adamw,
    device_name,
    learning_rate,
    load_state,
    read_counters,
    save_state,
    set_learning_rate,
)

GRADIENT_WEIGHT = 0.5
KL_WEIGHT = 2e-4
VALIDATION_SEED = 999


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the horizontal and vertical differences of [B, 3, H, W]."""
    difference = a - b
    return difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean()


def vae_loss(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """The training loss and the mean squared error (for the log) on images [B, 3, 64, 64]."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.is_cuda):
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample()).sample
    decoded = decoded.float()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    pixels = (decoded - images).abs().mean() + GRADIENT_WEIGHT * gradient_loss(decoded, images)
    return pixels + KL_WEIGHT * kl, F.mse_loss(decoded.detach(), images)


def psnr(mean_squared_error: float) -> float:
    """PSNR in dB of images in [-1, 1]."""
    return 10 * math.log10(4 / max(mean_squared_error, 1e-12))


@torch.no_grad()
def standardize(vae: AutoencoderKL, images: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 over these images, in place.

    The pipeline knows one scaling factor only, so the shift and the scale of each channel go into
    the 1 x 1 convolutions on both sides of the latent.
    """
    parts = [vae.encode(part).latent_dist.mode().float() for part in images.split(512)]
    latents = torch.cat(parts)
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    quant, post = vae.quant_conv, vae.post_quant_conv
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()


@torch.no_grad()
def validate(vae: AutoencoderKL, images: Tensor) -> float:
    """Mean PSNR in dB over images, each decoded from its posterior mean."""
    values = []
    for part in images.split(512):
        decoded = vae.decode(vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1)
        values += [psnr(float(e)) for e in (decoded - part).square().mean((1, 2, 3))]
    return sum(values) / len(values)


def train(arguments: argparse.Namespace) -> AutoencoderKL:
    """Train within the budget; returns the standardized autoencoder."""
    pictures, sprites = load_sprites(arguments.data)
    state = arguments.output / "state.safetensors"
    start = read_counters(state) if arguments.resume else Counters()
    stream = SceneStream(sprites, arguments.seed, processes=4, position=start.position)
    torch.manual_seed(arguments.seed)
    device = pick_device()
    pictures = pictures.to(device)
    vae = begin(arguments.decoder_of).to(device, memory_format=torch.channels_last)
    optimizer = adamw([p for p in vae.parameters() if p.requires_grad], betas=(0.9, 0.99))
    if start.step:
        load_state(state, vae.state_dict(), optimizer)
    if arguments.compile:
        vae.encoder.compile()
        vae.decoder.compile()
    facts = {"parameters": parameter_count(vae), "device": device_name(), "seed": arguments.seed}
    log = Log(arguments.output / "log.json", {**facts, "batch": arguments.batch})
    budget, step, saved = Budget(arguments.seconds, start.used), start.step, start.used
    while budget.progress < 1:
        scenes, _ = stream.take()
        for _, images in image_batches(scenes, pictures, arguments.batch):
            rate = learning_rate(arguments.rate, budget.progress, step - start.step)
            set_learning_rate(optimizer, rate)
            loss, error = optimize(vae, optimizer, images)
            step += 1
            if step % arguments.log_every == 0:
                log.add(step=step, used=budget.used, loss=float(loss), psnr=psnr(float(error)))
            if budget.progress >= 1:
                break
        if budget.used - saved > arguments.save_every:
            saved = budget.used
            counters = Counters(step, saved, stream.position)
            save_state(state, vae.state_dict(), optimizer, counters)
    stream.close()
    log.save(steps=step, images=step * arguments.batch, seconds=round(budget.used, 1))
    scenes = sample_scenes(sprites, arguments.validation, VALIDATION_SEED)
    images = render(scenes, pictures, 0, len(scenes))
    return finish(vae, images, log, arguments.decoder_of is None)


def begin(folder: Path | None) -> AutoencoderKL:
    """A new autoencoder, or a finished one with its encoder frozen; in training mode."""
    if folder is None:
        return build_vae().train()
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).train()
    vae.encoder.requires_grad_(False)
    vae.quant_conv.requires_grad_(False)
    return vae


def optimize(vae: AutoencoderKL, optimizer: AdamW, images: Tensor) -> tuple[Tensor, Tensor]:
    """One step on images [B, 3, 64, 64]; returns what :func:`vae_loss` does."""
    loss, error = vae_loss(vae, images.contiguous(memory_format=torch.channels_last))
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return loss.detach(), error


def finish(trained: AutoencoderKL, images: Tensor, log: Log, is_new: bool) -> AutoencoderKL:
    """Standardize new latents, round as shipped, and measure; returns a copy of the trained."""
    # A new module: the compiled one would compile again for evaluation.
    vae = build_vae().to(images.device).eval()
    vae.load_state_dict(trained.state_dict())
    if is_new:
        standardize(vae, images)
    vae.to(torch.bfloat16).float()
    log.save(validation_psnr_db=round(validate(vae, images), 2), validation_images=len(images))
    return vae


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=WORK)
    parser.add_argument("--output", type=Path, default=WORK / "vae")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--validation", type=int, default=4096)
    parser.add_argument("--log-every", type=int, default=100)
    parser.add_argument("--save-every", type=float, default=60, help="seconds")
    parser.add_argument("--decoder-of", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    arguments = parser.parse_args()
    vae = train(arguments)
    vae.to(torch.bfloat16).save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
