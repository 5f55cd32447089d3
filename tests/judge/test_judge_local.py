"""A local transformers model: a tiny random LLaVA, which cannot judge, sees the images and the text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from dirotq.judge.app import main
from dirotq.judge.clients import Turn
from dirotq.judge.local import LocalModel
from dirotq.judge.protocol import Request, encode
from tests.support.judging import picture

TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }}: {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
IMAGE_TOKENS = 4  # 16 pixels in patches of 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, processor and a tokenizer of single bytes."""
    folder = tmp_path_factory.mktemp("vlm") / "tiny-vlm"
    pieces = ["<pad>", "<s>", "</s>", "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bytewise = Tokenizer(models.BPE(vocab={p: i for i, p in enumerate(pieces)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer, patch_size=8, vision_feature_select_strategy="default",
        chat_template=TEMPLATE, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision = CLIPVisionConfig(num_hidden_layers=2, image_size=16, patch_size=8, **tiny)
    text = LlamaConfig(
        vocab_size=len(pieces), num_hidden_layers=1, num_key_value_heads=2,
        max_position_embeddings=16384, bos_token_id=1, eos_token_id=2, pad_token_id=0, **tiny,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Arguments of every generation; each stops after 12 tokens, as a random model says nothing in 1,024 either."""
    seen: list[dict[str, Any]] = []
    generate = LlavaForConditionalGeneration.generate

    def recorded(self: object, **arguments: Any) -> Any:
        seen.append(arguments)
        return generate(self, **{**arguments, "max_new_tokens": 12})

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", recorded)
    return seen


def test_generation_sees_images_and_text(folder: Path, calls: list[dict[str, Any]]) -> None:
    images = [encode(picture("p", name), 2) for name in "xy"]
    turns = [
        Turn("user", ("Image A:", images[0], "Image B:", images[1], "Which?")),
        Turn("assistant", ("hm",)),
        Turn("user", ("Again.",)),
    ]
    model = LocalModel(folder, torch.device("cpu"))
    request = Request((), {}, 0.0, 100, 0)
    before = torch.random.get_rng_state()
    reply = model.complete(turns, request)
    assert reply.format == "text"
    (call,) = calls
    assert call["pixel_values"].shape == (2, 3, 16, 16)
    assert not torch.equal(call["pixel_values"][0], call["pixel_values"][1])
    processor, _ = model._loaded
    tokens = "<image>" * IMAGE_TOKENS
    assert processor.decode(call["input_ids"][0]) == (
        f"user: Image A:{tokens}Image B:{tokens}Which?\nassistant: hm\nuser: Again.\nassistant: "
    )
    assert (call["max_new_tokens"], call["do_sample"]) == (100, False)
    assert model.complete(turns, request) == reply
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sampling_follows_the_seed(folder: Path) -> None:
    model = LocalModel(folder, torch.device("cpu"))
    turns = [Turn("user", ("Image A:", encode(picture("p", "x"), 2)))]
    replies = [model.complete(turns, Request((), {}, 1.0, 12, seed)).text for seed in (0, 0, 1)]
    assert replies[0] == replies[1] != replies[2]


def test_its_garbage_is_invalid(
    folder: Path,
    runs: list[Path],
    tmp_path: Path,
    calls: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("dirotq.judge.app.resolve_device", lambda name: torch.device("cpu"))
    arguments = [
        *map(str, runs[1:]), f"--reference={runs[0]}", f"--local={folder}", "--prompts=1",
        f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'out'}", "--max-failed=1",
    ]  # fmt: skip
    main(arguments)
    report = json.loads((tmp_path / "out" / "judge.json").read_text())
    assert (report["answers"]["invalid"], report["answers"]["formats"]) == (7, {"text": 7})
    assert report["judge"].startswith("tiny-vlm@")
    assert len(calls) == 7 * 3
    assert [call["pixel_values"].shape[0] for call in calls[:6]] == [3, 3, 3, 2, 2, 2]
    main(arguments)
    assert len(calls) == 7 * 3
    with pytest.raises(SystemExit):
        main([*arguments, "--max-failed=0.5"])
    assert "4 of 7 questions got no usable answer" in capsys.readouterr().err


def test_another_model_of_the_name_is_another_judge(folder: Path, tmp_path: Path) -> None:
    twin = tmp_path / folder.name
    twin.mkdir()
    for path in folder.iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    names = [LocalModel(one, torch.device("cpu")).name for one in (folder, twin)]
    assert names[0] == names[1]
    with (twin / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert LocalModel(twin, torch.device("cpu")).name != names[0]
    (twin / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds no model: config\.json is missing"):
        LocalModel(twin, torch.device("cpu"))
