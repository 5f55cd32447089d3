"""Pipelines: images depend on prompt and seed alone; recorded calls replay to the same output."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dirotq import pipeline as module
from dirotq.config import Job
from dirotq.pipeline import Pipeline, fingerprint, model_folder, to_uint8
from dirotq.prompts import Prompt
from dirotq.records import load_call, save_call
from dirotq.settings import ModelSettings
from tests.support.jobs import job

CPU = torch.device("cpu")
PROMPTS = [Prompt("a", "a cat"), Prompt("b", "two dogs"), Prompt("c", "a house by the sea")]


@pytest.fixture(scope="module")
def settings(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelSettings:
    made: Job = job(tiny_pipeline, tmp_path_factory.mktemp("settings"))
    return made.model


@pytest.fixture(scope="module")
def pipeline(settings: ModelSettings) -> Pipeline:
    return Pipeline(settings, CPU, torch.float32)


@pytest.fixture(scope="module")
def images(pipeline: Pipeline) -> Tensor:
    return pipeline.generate(PROMPTS, batch=3)


def test_images(images: Tensor) -> None:
    assert images.shape == (3, 16, 16, 3)
    assert images.dtype == torch.float32
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    assert not torch.equal(images[0], images[1])


def test_generation_is_deterministic(pipeline: Pipeline, images: Tensor) -> None:
    torch.manual_seed(77)  # global state must not matter
    assert torch.equal(pipeline.generate(PROMPTS, batch=3), images)


@pytest.mark.parametrize("batch", [1, 2], ids=lambda batch: f"batch{batch}")
def test_an_image_does_not_depend_on_the_others(
    pipeline: Pipeline, images: Tensor, batch: int
) -> None:
    found = pipeline.generate(PROMPTS[::-1], batch=batch)
    # Matrix products over another number of rows: float32 rounding through 3 steps and the decoder.
    torch.testing.assert_close(found, images.flip(0), rtol=0, atol=1e-5)


def test_another_seed_or_id_is_another_image(pipeline: Pipeline, images: Tensor) -> None:
    seeded = pipeline.generate(PROMPTS[:1], batch=1, seed=1)
    renamed = pipeline.generate([Prompt("z", PROMPTS[0].text)], batch=1)
    for other in (seeded, renamed):
        assert float((other[0] - images[0]).abs().max()) > 1e-3


def test_the_text_matters(pipeline: Pipeline, images: Tensor) -> None:
    other = pipeline.generate([Prompt("a", "zzz qq x")], batch=1)
    assert float((other[0] - images[0]).abs().max()) > 1e-5


def test_ticks_count_steps(pipeline: Pipeline) -> None:
    ticks: list[int] = []
    pipeline.generate(PROMPTS, batch=2, tick=lambda: ticks.append(1))
    assert len(ticks) == pipeline.num_steps(3, 2) == 6


def test_latents_are_watched_after_every_step(pipeline: Pipeline, images: Tensor) -> None:
    seen: list[tuple[int, Tensor]] = []
    found = pipeline.generate(PROMPTS, batch=2, watch=lambda *step: seen.append(step))
    assert [first for first, _ in seen] == [0, 0, 0, 2, 2, 2]
    assert [len(latents) for _, latents in seen] == [2, 2, 2, 1, 1, 1]
    vae = pipeline.pipe.vae
    with torch.no_grad():
        decoded = vae.decode(seen[2][1] / vae.config.scaling_factor, return_dict=False)[0]
    assert torch.equal((decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1), found[:2])


class Newer:
    """A pipeline that reports its steps at their end, with a state, as those after PixArt's do."""

    def __call__(self, prompt: list[str], callback_on_step_end: Any, **_: Any) -> Any:
        for step in range(2):
            state = {"latents": torch.full((len(prompt), 4), float(step))}
            assert callback_on_step_end(self, step, None, state) is state
        return SimpleNamespace(images=torch.zeros(len(prompt), 3, 2, 2))


def test_newer_pipelines_report_in_their_way(settings: ModelSettings) -> None:
    pipeline = Pipeline(settings, CPU, torch.float32)
    assert pipeline.reports_latents
    pipeline.pipe, pipeline._accepted = Newer(), {"callback_on_step_end"}
    seen: list[tuple[int, float]] = []
    ticks: list[int] = []
    pipeline.generate(
        PROMPTS,
        batch=2,
        tick=lambda: ticks.append(1),
        watch=lambda first, latents: seen.append((first, float(latents.mean()))),
    )
    assert seen == [(0, 0), (0, 1), (2, 0), (2, 1)]
    assert len(ticks) == 4
    pipeline._accepted = set()
    assert not pipeline.reports_latents


def test_recorded_calls_replay_to_the_same_output(pipeline: Pipeline, tmp_path: Path) -> None:
    outputs: list[Tensor] = []
    handle = pipeline.transformer.register_forward_hook(
        lambda module, args, output: outputs.append(output[0])
    )
    records = dict(pipeline.record(PROMPTS, batch=2, wanted={0, 2, 5}))
    handle.remove()
    assert sorted(records) == [0, 2, 5]
    for number, kwargs in records.items():
        save_call(kwargs, tmp_path / f"{number}.safetensors")
        loaded = load_call(tmp_path / f"{number}.safetensors")
        with torch.no_grad():
            assert torch.equal(pipeline.transformer(**loaded)[0], outputs[number])
    # Both guidance halves of two prompts, and of the one left for the last batch.
    assert records[0]["hidden_states"].shape[0] == 4
    assert records[5]["hidden_states"].shape[0] == 2
    assert not pipeline.transformer._forward_pre_hooks


def test_recording_does_not_change_the_images(pipeline: Pipeline, images: Tensor) -> None:
    for _ in pipeline.record(PROMPTS, batch=3, wanted={1}):
        pass
    assert torch.equal(pipeline.generate(PROMPTS, batch=3), images)


def test_dtype_is_applied(settings: ModelSettings) -> None:
    pipeline = Pipeline(settings, CPU, torch.bfloat16)
    assert next(pipeline.transformer.parameters()).dtype == torch.bfloat16
    assert pipeline.generate(PROMPTS[:1], batch=1).dtype == torch.float32


def test_transformers_can_be_loaded_and_exchanged(
    pipeline: Pipeline, images: Tensor, tmp_path: Path
) -> None:
    original = pipeline.transformer
    original.save_pretrained(tmp_path)
    loaded = pipeline.load_transformer(tmp_path)
    assert loaded is not original
    try:
        pipeline.transformer = loaded
        assert torch.equal(pipeline.generate(PROMPTS, batch=3), images)
    finally:
        pipeline.transformer = original


def replaced(settings: ModelSettings, **fields: object) -> ModelSettings:
    return ModelSettings(**{**settings.__dict__, **fields})


def test_what_cannot_be_loaded_is_named(settings: ModelSettings, tmp_path: Path) -> None:
    for path, message in (
        (str(tmp_path), f"model.path={tmp_path}: no diffusers pipeline there"),
        ("nobody/nothing", "model.path=nobody/nothing: cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            Pipeline(replaced(settings, path=path), CPU, torch.float32)
        assert "\n" not in str(caught.value)


def test_unknown_call_arguments_are_named(settings: ModelSettings) -> None:
    with pytest.raises(ValueError, match=r"model.call.colour: PixArtSigmaPipeline takes no such"):
        Pipeline(replaced(settings, call={"colour": "red"}), CPU, torch.float32)


@pytest.fixture
def copied(tiny_pipeline: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pipeline, tmp_path / "copy"))


def test_damaged_pipelines_are_named(settings: ModelSettings, copied: Path) -> None:
    (copied / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=f"model.path={copied}: cannot be loaded"):
        Pipeline(replaced(settings, path=str(copied)), CPU, torch.float32)


def test_cut_weights_are_named(settings: ModelSettings, copied: Path) -> None:
    weights = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"model.path={copied}: cannot be loaded"):
        Pipeline(replaced(settings, path=str(copied)), CPU, torch.float32)


def test_fingerprint_follows_bytes_and_not_the_place(
    pipeline: Pipeline, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = fingerprint(pipeline.folder, "here")
    assert fingerprint(copied, "there") == original
    (copied / "README.md").write_text("not part of the model")
    assert fingerprint(copied, "there") == original
    weights = copied / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert fingerprint(copied, "there") != original
    monkeypatch.setattr(module, "_WHOLE_FILE", 0)  # every file is sampled, small ones in full
    sampled = fingerprint(copied, "there")
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    assert fingerprint(copied, "there") != sampled


def test_model_folders(tmp_path: Path) -> None:
    assert model_folder("some/hub-id") is None
    (tmp_path / "model_index.json").write_text("{}")
    assert model_folder(str(tmp_path)) == tmp_path


def test_to_uint8_rounds_to_nearest() -> None:
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels / 255), levels.to(torch.uint8))
    assert to_uint8(torch.tensor([-0.2, 1.7, 0.49 / 255, 0.51 / 255])).tolist() == [0, 255, 0, 1]
