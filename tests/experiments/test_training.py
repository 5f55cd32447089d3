"""Training of the embedded model: tokens, losses, weights, states, and a run that is resumed."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline
from PIL import Image
from torch import nn
from transformers import T5Config, T5EncoderModel

from experiments.embedded import train_transformer
from experiments.embedded.config import LATENT_SIZE, MAX_TOKENS, build_transformer, build_vae
from experiments.embedded.denoiser import (
    Denoiser,
    FusedAttention,
    Weights,
    carry_words,
    flow_loss,
)
from experiments.embedded.sources import STYLES
from experiments.embedded.sprites import Sprite
from experiments.embedded.stream import SceneStream, image_batches
from experiments.embedded.tokenizer import (
    attention_mask,
    build_tokenizer,
    empty_caption,
    encode,
)
from experiments.embedded.train_vae import standardize
from experiments.embedded.training import (
    Counters,
    Log,
    learning_rate,
    load_state,
    read_counters,
    save_state,
)
from tests.support.tiny import build_transformer as build_tiny

NAMES = ("red apple", "cat", "fox", "pear")


def make_sprites() -> list[Sprite]:
    pairs = [(name, style) for name in NAMES for style in STYLES]
    return [
        Sprite(i, style, name, name, "Objects", "tool", None, 0.0, (200, 40, 40), "train")
        for i, (name, style) in enumerate(pairs)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with made-up sprites and a tokenizer of their words."""
    rng = np.random.default_rng(0)
    sprites = make_sprites()
    with zipfile.ZipFile(tmp_path / "sprites.zip", "w") as archive:
        for sprite in sprites:
            rgba = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            buffer = io.BytesIO()
            Image.fromarray(rgba).save(buffer, "WEBP", lossless=True)
            archive.writestr(f"{sprite.index:06d}.webp", buffer.getvalue())
    rows = {"sprites": [dataclasses.asdict(sprite) for sprite in sprites]}
    (tmp_path / "sprites.json").write_text(json.dumps(rows))
    build_tokenizer(["a", "red", "apple", "cat", "fox", "pear", "two", "three"]).save_pretrained(
        tmp_path / "tokenizer"
    )
    return tmp_path


class CountedBudget:
    """Like `Budget`, with each look at the clock as a second."""

    def __init__(self, seconds: float, used: float = 0.0) -> None:
        self.seconds, self.used = seconds, used

    @property
    def progress(self) -> float:
        self.used += 1
        return min(1.0, self.used / self.seconds)


def tiny_text_encoder(vocabulary: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=vocabulary, d_model=256, d_kv=8, d_ff=16, num_heads=2, num_layers=1
    )
    return T5EncoderModel(config)


def test_words_are_tokens_and_others_are_spelled() -> None:
    tokenizer = build_tokenizer(["a", "red", "apple"])
    tokens = encode(tokenizer, ["a red apple", "", "a zebra 3d", "zebra " * 9])
    assert tokens.shape == (4, MAX_TOKENS)
    assert (tokens != 0).sum(1).tolist()[:3] == [4, 1, 1 + 6 + 3 + 1]
    assert tokenizer.unk_token_id not in tokens
    assert tokens[1].tolist() == empty_caption(tokenizer).tolist()
    assert tokens[1, 0] == tokenizer.eos_token_id
    assert attention_mask(tokens).sum(1)[1] == 1


def test_words_keep_their_embeddings_in_a_larger_vocabulary() -> None:
    earlier, larger = (build_tokenizer(words).get_vocab() for words in (["cat"], ["bee", "cat"]))
    trained = tiny_text_encoder(len(earlier)).eval()
    carried = carry_words(trained, earlier, larger)
    before, after = (model.get_input_embeddings().weight for model in (trained, carried))
    for word, row in earlier.items():
        assert torch.equal(before[row], after[larger[word]]), word
    assert torch.equal(after[larger["\u2581bee"]], before.mean(0))
    tokens = torch.tensor([[earlier["\u2581cat"], 1]])
    moved = torch.tensor([[larger["\u2581cat"], 1]])
    assert torch.equal(trained(tokens)[0], carried.eval()(moved)[0])


def test_fused_attention_is_the_default_attention() -> None:
    torch.manual_seed(0)
    transformer = build_tiny()
    latents, text = torch.randn(2, 4, 4, 4), torch.randn(2, 5, 16)
    inputs = {
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]),
        "timestep": torch.tensor([5, 900]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    with torch.no_grad():
        expected = transformer(latents, **inputs).sample
        transformer.set_attn_processor(FusedAttention())
        fused = transformer(latents, **inputs).sample
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5)


def test_new_transformer_predicts_zero_and_learns() -> None:
    torch.manual_seed(0)
    denoiser = Denoiser(tiny_text_encoder(10), build_transformer())
    tokens = torch.tensor([[3, 4, 1, 0], [5, 1, 0, 0]])
    latents = torch.randn(2, 4, LATENT_SIZE, LATENT_SIZE)
    noisy, timestep = torch.randn_like(latents), torch.tensor([10, 990])
    assert denoiser(noisy, timestep, tokens).abs().max() == 0
    loss = flow_loss(denoiser, latents, tokens, torch.tensor([1, 0, 0, 0]))
    assert 1.5 < float(loss.detach()) < 2.5  # the variance of noise minus data
    loss.backward()
    assert denoiser.transformer.proj_out.weight.grad.abs().max() > 0


def _train_linear(weights: Weights, module: nn.Module, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        module(torch.randn(4, 3).to(next(module.parameters()).dtype)).square().mean().backward()
        weights.optimizer.param_groups[0]["lr"] = weights.optimizer.param_groups[1]["lr"] = 0.1
        weights.step(step)


def test_state_continues_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def start() -> tuple[nn.Linear, Weights]:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        return module, Weights(module, decay=0.9)

    module, weights = start()
    _train_linear(weights, module, 0, 3)
    path = tmp_path / "state.safetensors"
    save_state(path, weights.tensors(), weights.optimizer, Counters(3, 1.5, 7))
    _train_linear(weights, module, 3, 2)

    resumed, fresh = start()
    assert read_counters(path) == Counters(3, 1.5, 7)
    load_state(path, fresh.tensors(), fresh.optimizer)
    fresh.publish()
    _train_linear(fresh, resumed, 3, 2)
    for (name, a), b in zip(weights.tensors().items(), fresh.tensors().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(module.weight, resumed.weight)


def test_small_updates_survive_behind_bfloat16() -> None:
    torch.manual_seed(0)
    module = nn.Linear(3, 2).bfloat16()
    weights = Weights(module, decay=0.5)
    before = weights.tensors()["master/weight"].clone()
    module(torch.ones(1, 3).bfloat16()).sum().backward()
    for group in weights.optimizer.param_groups:
        group["lr"] = 1e-5
    weights.step(100)
    moved = weights.tensors()["master/weight"] - before
    assert 0 < moved.abs().max() < 1e-4
    average = weights.tensors()["average/weight"] - before
    torch.testing.assert_close(average, moved / 2, rtol=1e-2, atol=1e-8)


def test_no_state_counts_from_zero(tmp_path: Path) -> None:
    assert read_counters(tmp_path / "missing.safetensors") == Counters()


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    assert learning_rate(1.0, 0.0, 0) < 0.01
    assert learning_rate(1.0, 0.0, 500) == 1.0
    assert learning_rate(1.0, 0.5, 500) == pytest.approx(0.5)
    assert learning_rate(1.0, 1.0, 500) == pytest.approx(0.0)


def test_log_is_continued(tmp_path: Path) -> None:
    Log(tmp_path / "log.json", {"seed": 1}).add(step=1, loss=0.123456789)
    log = Log(tmp_path / "log.json", {"seed": 1})
    log.add(step=2, loss=0.1)
    content = json.loads((tmp_path / "log.json").read_text())
    assert [row["step"] for row in content["rows"]] == [1, 2]
    assert content["rows"][0]["loss"] == 0.123457


def test_standardized_latents_decode_to_the_same_picture() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=2,
    )
    images = torch.rand(64, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        before = vae.encode(images).latent_dist
        expected = vae.decode(before.mode()).sample
        standardize(vae, images)
        after = vae.encode(images).latent_dist
        torch.testing.assert_close(vae.decode(after.mode()).sample, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4), rtol=1e-3, atol=0)
    noise = before.std / before.mean.std((0, 2, 3), keepdim=True)
    torch.testing.assert_close(after.std, noise, rtol=1e-3, atol=1e-5)


def test_stream_is_the_same_from_any_position() -> None:
    sprites = make_sprites()
    tokenizer = build_tokenizer(["a", "cat"])
    whole = SceneStream(sprites, 5, tokenizer, chunk=16, processes=1)
    whole.take()
    scenes, tokens = whole.take()
    whole.close()
    later = SceneStream(sprites, 5, tokenizer, chunk=16, processes=1, position=1)
    again, tokens_again = later.take()
    later.close()
    assert scenes.captions == again.captions
    assert np.array_equal(scenes.x, again.x)
    assert tokens is not None
    assert tokens_again is not None
    assert np.array_equal(tokens, tokens_again)
    pictures = torch.zeros(len(sprites), 64, 64, 4, dtype=torch.uint8)
    starts = [(first, len(images)) for first, images in image_batches(scenes, pictures, 6, 12)]
    assert starts == [(0, 6), (6, 6)]


def test_run_trains_saves_and_resumes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"num_layers": 1, "num_attention_heads": 1, "cross_attention_dim": 64}

    def tiny_transformer() -> nn.Module:
        config = {**build_transformer().config, **small}
        return type(build_transformer()).from_config(config)

    monkeypatch.setattr(train_transformer, "Budget", CountedBudget)
    monkeypatch.setattr(train_transformer, "build_text_encoder", tiny_text_encoder)
    monkeypatch.setattr(train_transformer, "build_transformer", tiny_transformer)
    build_vae().save_pretrained(tmp_path / "vae")
    arguments = argparse.Namespace(
        data=data, vae=tmp_path / "vae", tokenizer=data / "tokenizer", output=tmp_path / "run",
        seconds=8.0, batch=2, rate=1e-3, average=0.9, seed=3, pairs=0.2, pool=8, first_pool=8,
        grow_every=10**6, log_every=1, save_every=10**6, resume=False, init_from=None, start=0.0,
        compile=False,
    )  # fmt: skip
    train_transformer.Run(arguments).train()
    counters = read_counters(tmp_path / "run" / "state.safetensors")
    assert counters.step == 4
    folder = tmp_path / "run" / "pipeline"
    pipeline = PixArtSigmaPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    assert pipeline.vae_scale_factor == 4

    arguments.resume, arguments.seconds = True, counters.used + 8
    run = train_transformer.Run(arguments)
    assert run.step == counters.step
    assert run.stream.position == counters.position
    run.train()
    assert read_counters(tmp_path / "run" / "state.safetensors").step > counters.step

    arguments.resume, arguments.init_from, arguments.start = False, folder, 0.5
    leg = train_transformer.Run(arguments)
    leg.stream.close()
    assert leg.budget.progress >= 0.5
