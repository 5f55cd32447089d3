"""Train the feature network to tell what random scenes show.

`python -m experiments.embedded.train_features --seconds 60` writes `features.safetensors` and
a log to `outputs/embedded/features/`. The run is short; it is repeated rather than resumed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dirotq.metrics.feature_network import FeatureNetwork, save_feature_network
from experiments.embedded.config import WORK, parameter_count, pick_device
from experiments.embedded.scenes import Scenes, render, sample_scenes
from experiments.embedded.sprites import Sprite, load_sprites
from experiments.embedded.stream import SceneStream, image_batches
from experiments.embedded.training import (
    Budget,
    Log,
    adamw,
    device_name,
    learning_rate,
    set_learning_rate,
)

VALIDATION_SEED = 998


class Questions(nn.Module):
    """What the network is asked of its pooled features: which emoji, which styles, what colours.

    The answers about a scene with several objects are shared equally among them.
    """

    def __init__(self, sprites: Sequence[Sprite], width: int) -> None:
        super().__init__()
        concepts = sorted({sprite.concept for sprite in sprites})
        styles = sorted({sprite.style for sprite in sprites})
        self.register_buffer(
            "concept", torch.tensor([concepts.index(sprite.concept) for sprite in sprites])
        )
        self.register_buffer(
            "style", torch.tensor([styles.index(sprite.style) for sprite in sprites])
        )
        self.heads = nn.ModuleDict(
            {
                "concept": nn.Linear(width, len(concepts)),
                "style": nn.Linear(width, len(styles)),
                "background": nn.Linear(width, 3),
                "places": nn.Linear(width, 9),
            }
        )

    def loss(self, pooled: Tensor, scenes: Scenes, start: int, stop: int) -> Tensor:
        """Mean loss of pooled features [B, width] of the scenes `start` to `stop`."""
        device = pooled.device
        slots = torch.from_numpy(scenes.sprite[start:stop]).to(device)
        weight = (slots >= 0).float()
        weight = weight / weight.sum(1, keepdim=True)
        total = torch.zeros((), device=device)
        for name, share in (("concept", 1.0), ("style", 0.5)):
            logs = F.log_softmax(self.heads[name](pooled).float(), dim=-1)
            answers = getattr(self, name)[slots.clamp(min=0)]
            total = total - share * (logs.gather(1, answers) * weight).sum(1).mean()
        background = torch.from_numpy(scenes.background[start:stop]).to(device).float() / 255
        total = total + 4 * F.mse_loss(self.heads["background"](pooled).float(), background)
        places = np.concatenate([scenes.x, scenes.y, scenes.size], axis=1)[start:stop] / 64
        wanted = torch.from_numpy(places).to(device).float()
        error: Tensor = (self.heads["places"](pooled).float() - wanted).square()
        return total + 4 * (error * (slots >= 0).repeat(1, 3)).mean()

    @torch.no_grad()
    def accuracy(self, pooled: Tensor, scenes: Scenes) -> float:
        """How often the concept thought likeliest is in the scene."""
        slots = torch.from_numpy(scenes.sprite).to(pooled.device)
        there = self.get_buffer("concept")[slots.clamp(min=0)].masked_fill(slots < 0, -1)
        guess = self.heads["concept"](pooled).argmax(1, keepdim=True)
        return float((there == guess).any(1).float().mean())


def train(arguments: argparse.Namespace) -> FeatureNetwork:
    """Train within the budget; returns the network."""
    pictures, sprites = load_sprites(arguments.data)
    stream = SceneStream(sprites, arguments.seed, processes=4)
    torch.manual_seed(arguments.seed)
    device = pick_device()
    pictures = pictures.to(device)
    network = FeatureNetwork().to(device)
    questions = Questions(sprites, network.widths[-1]).to(device)
    parameters = [*network.parameters(), *questions.parameters()]
    optimizer = adamw(parameters, betas=(0.9, 0.98), weight_decay=0.05)
    facts = {"parameters": parameter_count(network), "device": device_name()}
    log = Log(arguments.output / "log.json", {**facts, "seed": arguments.seed})
    budget, step, batch = Budget(arguments.seconds), 0, arguments.batch
    while budget.progress < 1:
        scenes, _ = stream.take()
        for start, images in image_batches(scenes, pictures, batch):
            set_learning_rate(optimizer, learning_rate(arguments.rate, budget.progress, step))
            with torch.autocast(device.type, torch.bfloat16, enabled=images.is_cuda):
                _, pooled = network(images)
            loss = questions.loss(pooled.float(), scenes, start, start + batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % arguments.log_every == 0:
                log.add(step=step, used=budget.used, loss=float(loss.detach()))
            if budget.progress >= 1:
                break
    stream.close()
    network.eval()
    scenes = sample_scenes(sprites, arguments.validation, VALIDATION_SEED)
    with torch.no_grad():
        images = render(scenes, pictures, 0, arguments.validation)
        pooled = torch.cat([network(part)[1] for part in images.split(512)])
    log.save(steps=step, images=step * batch, seconds=budget.used)
    log.save(accuracy=questions.accuracy(pooled, scenes), validation_images=len(images))
    return network


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=WORK)
    parser.add_argument("--output", type=Path, default=WORK / "features")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--validation", type=int, default=2048)
    parser.add_argument("--log-every", type=int, default=100)
    arguments = parser.parse_args()
    network = train(arguments)
    save_feature_network(network, arguments.output)


if __name__ == "__main__":
    main()
