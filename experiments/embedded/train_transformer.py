"""Train transformer and text encoder together by rectified flow, within a number of seconds.

`python -m experiments.embedded.train_transformer --seconds 780` needs the autoencoder in
`outputs/embedded/vae/` and the tokenizer in `outputs/embedded/tokenizer/`; it writes pipelines
(of averaged weights, in bfloat16) to `outputs/embedded/transformer/pipeline/`. An interrupted
run goes on with `--resume`; where its machine is gone, `--init-from <pipeline> --start 0.6`
starts a new leg from a pipeline at that fraction of the schedule.
"""

from __future__ import annotations

import argparse
import copy
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from experiments.embedded.config import (
    WORK,
    build_text_encoder,
    build_transformer,
    parameter_count,
    pick_device,
)
from experiments.embedded.denoiser import Denoiser, Weights, carry_words, flow_loss
from experiments.embedded.pipelines import write_pipeline
from experiments.embedded.pool import LatentPool
from experiments.embedded.scenes import PAIRS
from experiments.embedded.sprites import load_sprites
from experiments.embedded.stream import SceneStream
from experiments.embedded.tokenizer import empty_caption
from experiments.embedded.training import (
    Budget,
    Counters,
    Log,
    device_name,
    learning_rate,
    load_state,
    read_counters,
    save_state,
    set_learning_rate,
)


class Run:
    """A training run: what it trains, what it reads, what it writes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Load everything; the scene workers start before CUDA does."""
        self.arguments = arguments
        self.state = arguments.output / "state.safetensors"
        self.tokenizer = T5Tokenizer.from_pretrained(arguments.tokenizer)
        pictures, sprites = load_sprites(arguments.data)
        self.begin = read_counters(self.state) if arguments.resume else Counters()
        self.stream = SceneStream(
            sprites,
            arguments.seed,
            self.tokenizer,
            position=self.begin.position,
            pairs=arguments.pairs,
        )
        torch.manual_seed(arguments.seed)
        self.device = pick_device()
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.vae = AutoencoderKL.from_pretrained(arguments.vae).to(self.device).eval()
        self.vae.requires_grad_(False).to(memory_format=torch.channels_last)
        denoiser = _denoiser(arguments.init_from, self.tokenizer).to(self.device)
        self.shadow = copy.deepcopy(denoiser)
        self.weights = Weights(denoiser, arguments.average)
        self.denoiser = denoiser.to(dtype)
        if self.begin.step:
            load_state(self.state, self.weights.tensors(), self.weights.optimizer)
            self.weights.publish()
        if arguments.compile:
            self.denoiser.speed_up()
        self.empty = empty_caption(self.tokenizer).to(self.device)
        self.pool = LatentPool(arguments.pool, self.stream, pictures.to(self.device), self.vae)
        used = max(self.begin.used, arguments.start * arguments.seconds)
        self.step, self.budget = self.begin.step, Budget(arguments.seconds, used)
        facts = {"parameters": parameter_count(denoiser), "device": device_name()}
        facts |= {"pairs": arguments.pairs, "start": arguments.start}
        facts |= {"seed": arguments.seed, "batch": arguments.batch, "rate": arguments.rate}
        self.log = Log(arguments.output / "log.json", facts)

    def train(self) -> None:
        """Train until the budget is used; saves states and pipelines on the way."""
        arguments = self.arguments
        while self.pool.size < arguments.first_pool:
            self.pool.grow()
        losses: list[Tensor] = []
        saved = self.budget.used
        while self.budget.progress < 1:
            losses.append(self._optimize())
            if self.step % arguments.grow_every == 0:
                self.pool.grow()
            if self.step % arguments.log_every == 0:
                self._report(losses)
                losses.clear()
            if self.budget.used - saved > arguments.save_every:
                saved = self.budget.used
                self.save()
        self.stream.close()
        self.save()
        self.log.save(
            steps=self.step,
            images=self.step * arguments.batch,
            scenes=self.stream.position * 8192,
            seconds=round(self.budget.used - arguments.start * arguments.seconds, 1),
        )

    def _optimize(self) -> Tensor:
        """One step; returns the loss, still on the device."""
        latents, tokens = self.pool.draw(self.arguments.batch)
        loss = flow_loss(self.denoiser, latents, tokens, self.empty)
        loss.backward()
        rate = learning_rate(self.arguments.rate, self.budget.progress, self.step - self.begin.step)
        set_learning_rate(self.weights.optimizer, rate)
        self.weights.step(self.step)
        self.step += 1
        return loss.detach()

    def _report(self, losses: list[Tensor]) -> None:
        loss = float(torch.stack(losses).mean())
        if loss != loss:
            raise RuntimeError(f"the loss is not a number at step {self.step}")
        self.log.add(step=self.step, used=self.budget.used, loss=loss, pool=self.pool.size)

    def save(self) -> None:
        """Save the state, and a pipeline of the averaged weights, each in one move."""
        counters = Counters(self.step, self.budget.used, self.stream.position)
        save_state(self.state, self.weights.tensors(), self.weights.optimizer, counters)
        self.weights.write_average(self.shadow)
        folder = self.arguments.output / "pipeline"
        partial = folder.with_name("pipeline.part")
        shutil.rmtree(partial, ignore_errors=True)
        write_pipeline(
            partial, self.tokenizer, self.shadow.text_encoder, self.shadow.transformer, self.vae
        )
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _denoiser(folder: Path | None, tokenizer: T5Tokenizer) -> Denoiser:
    """A new model, or that of a pipeline folder, whose vocabulary may have been a smaller one."""
    if folder is None:
        return Denoiser(build_text_encoder(len(tokenizer)), build_transformer())
    trained = T5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    earlier = T5Tokenizer.from_pretrained(folder / "tokenizer")
    text_encoder = carry_words(trained, earlier.get_vocab(), tokenizer.get_vocab())
    transformer = PixArtTransformer2DModel.from_pretrained(folder / "transformer")
    return Denoiser(text_encoder, transformer)


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=WORK)
    parser.add_argument("--vae", type=Path, default=WORK / "vae")
    parser.add_argument("--tokenizer", type=Path, default=WORK / "tokenizer")
    parser.add_argument("--output", type=Path, default=WORK / "transformer")
    parser.add_argument("--seconds", type=float, default=780)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--average", type=float, default=0.9995)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--pairs", type=float, default=PAIRS, help="share of two-object scenes")
    parser.add_argument("--pool", type=int, default=1_048_576, help="scenes kept")
    parser.add_argument("--first-pool", type=int, default=131_072, help="scenes to start with")
    parser.add_argument("--grow-every", type=int, default=120, help="steps")
    parser.add_argument("--log-every", type=int, default=100, help="steps")
    parser.add_argument("--save-every", type=float, default=120, help="seconds")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--init-from", type=Path)
    parser.add_argument("--start", type=float, default=0.0, help="fraction of the schedule")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    Run(parser.parse_args()).train()


if __name__ == "__main__":
    main()
