"""CLIP score on a tiny random CLIP, written out; ImageReward on a stand-in for its package."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from dirotq.metrics.text import Clip, clip_score, image_reward, load_clip, load_image_reward
from dirotq.metrics.unavailable import UnavailableError

TEXTS = ["a cat", "two dogs and a very long tail of words", "x"]
SIDE, LENGTH, WIDTH = 32, 12, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 2}
    text = {
        **sizes, "num_hidden_layers": 1, "vocab_size": len(pieces),
        "max_position_embeddings": LENGTH, "eos_token_id": len(pieces) - 1,
        "bos_token_id": len(pieces) - 2, "pad_token_id": len(pieces) - 1,
    }  # fmt: skip
    vision = {**sizes, "num_hidden_layers": 1, "image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(place)
    crop = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=crop)
    CLIPProcessor(images, tokenizer).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(str(folder), torch.device("cpu"))


def pictures() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, SIDE, SIDE, 3), generator=generator, dtype=torch.uint8)


def written_out(clip: Clip, image: Tensor, text: str) -> float:
    """One picture and one text: normalization, both towers and the cosine, without the processor's pictures."""
    statistics = clip.processor.image_processor
    mean, std = (torch.tensor(x) for x in (statistics.image_mean, statistics.image_std))
    pixels = ((image / 255 - mean) / std).permute(2, 0, 1)[None]
    ids = clip.processor.tokenizer(text, return_tensors="pt")["input_ids"]
    if ids.shape[1] > LENGTH:
        ids = torch.cat([ids[:, : LENGTH - 1], ids[:, -1:]], dim=1)
    model = clip.model
    with torch.no_grad():
        seen = model.visual_projection(model.vision_model(pixels).pooler_output)[0].double()
        read = model.text_projection(model.text_model(ids).pooler_output)[0].double()
    return 100 * max(0.0, float(seen @ read / seen.norm() / read.norm()))


def test_clip_score_is_its_definition(clip: Clip) -> None:
    found = clip_score(clip, pictures(), TEXTS)
    expected = [written_out(clip, *pair) for pair in zip(pictures(), TEXTS, strict=True)]
    # Float32 towers, padded to the longest text in one case.
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    assert found.dtype == torch.float64
    assert len(set(found.tolist())) > 1


def test_texts_are_cut_to_the_model_s_length(clip: Clip) -> None:
    long = "a" * 40
    scores = clip_score(clip, pictures()[:2], [long, long + "bcd"])
    alone = clip_score(clip, pictures()[1:2], [long])
    assert float(scores[1]) == pytest.approx(float(alone[0]), abs=1e-3)  # as above


def test_what_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match=r"^the CLIP model .*none cannot be had: ") as caught:
        load_clip(str(tmp_path / "none"), torch.device("cpu"))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(UnavailableError, match=r"ImageReward-v1.0 .* import of ImageReward halted"):
        load_image_reward(torch.device("cpu"))


def test_image_reward_gets_every_prompt_with_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, device: str) -> SimpleNamespace:
        assert (name, device) == ("ImageReward-v1.0", "cpu")

        def score(prompt: str, image: Image.Image) -> float:
            return len(prompt) + image.getpixel((0, 0))[0] / 1000

        return SimpleNamespace(score=score)

    monkeypatch.setitem(sys.modules, "ImageReward", SimpleNamespace(load=load))
    found = image_reward(load_image_reward(torch.device("cpu")), pictures(), TEXTS)
    reds = pictures()[:, 0, 0, 0].tolist()
    assert found.tolist() == [len(text) + red / 1000 for text, red in zip(TEXTS, reds, strict=True)]
    with pytest.raises(ValueError, match="3 images need as many texts, got 2"):
        image_reward(None, pictures(), TEXTS[:2])
