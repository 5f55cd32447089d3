"""The sample sheet, the model card and the assembly of the model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dirotq.metrics.feature_network import FeatureNetwork, save_feature_network
from experiments.embedded import export
from experiments.embedded.card import model_card
from experiments.embedded.sheet import count, draw_sheet, pair_psnr, report

PROMPTS = {
    "a-cat": {"prompt": "a cat", "category": "nature", "split": "training"},
    "a-dog": {"prompt": "a dog", "category": "nature", "split": "composition"},
}


def pictures(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)


def test_psnr_of_pairs() -> None:
    black = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    assert pair_psnr(black, black + 255)[0] == pytest.approx(0.0)
    assert pair_psnr(black, black)[0] > 100


def test_verdicts_hold_for_the_pictures_they_were_made_on() -> None:
    first = report(PROMPTS, pictures(0), pictures(1), {"guidance": 3.0}, {})
    assert first["prompts"]["a-cat"]["blind"] == [None, None]
    verdict = {"blind": [False, True], "with_caption": [True, True], "order": [True, False]}
    first["prompts"]["a-cat"].update(verdict, remark="clear")
    same = report(PROMPTS, pictures(0), pictures(1), {"guidance": 3.0}, first)
    assert same["prompts"]["a-cat"]["remark"] == "clear"
    other = report(PROMPTS, pictures(2), pictures(1), {"guidance": 3.0}, first)
    assert other["prompts"]["a-cat"]["blind"] == [None, None]
    assert count(same) == {
        "blind": {"all": [0, 1], "training": [0, 1], "composition": [0, 0]},
        "with_caption": {"all": [1, 1], "training": [1, 1], "composition": [0, 0]},
        "with_order": {"all": [1, 0], "training": [1, 0], "composition": [0, 0]},
    }


def test_sheet_has_a_row_for_every_eight() -> None:
    sheet = draw_sheet(pictures(0), ["a", "a rather long label that must be wrapped into lines"], 1)
    assert sheet.width == 136
    assert sheet.height % 2 == 0


def _log(**facts: Any) -> dict[str, Any]:
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}]
    return {
        "device": "GPU", "seconds": 60.0, "steps": 2, "images": 8, "seed": 1, "command": "train",
        "rows": rows, **facts,
    }  # fmt: skip


def test_card_names_numbers_licences_and_commands() -> None:
    logs = {
        "vae": _log(validation_psnr_db=31.5, validation_images=4096),
        "features": _log(accuracy=0.8),
        "transformer_1": _log(),
    }
    sheet = report(PROMPTS, pictures(0), pictures(1), {"guidance": 3.0}, {})
    sheet |= {"recognized": count(sheet), "readers": "Somebody."}
    card = model_card(logs, {"vae": (10, 20)}, (100, 25), ("train it",), sheet)
    for text in ("31.5 dB", "80%", "CC-BY-4.0", "train it", "0 / 0", "leg 1", "2.000 to"):
        assert text in card


def test_assembled_model_loads_and_is_refused_when_too_large(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_feature_network(FeatureNetwork((8, 8)), tmp_path)
    output = tmp_path / "emoji"
    export.copy_model(tiny_pipeline, tmp_path, output)
    parts = export.check_model(output)
    assert parts["transformer"][0] > 0
    assert parts["feature network"][1] > 0
    monkeypatch.setattr(export, "LIMIT_BYTES", 1000)
    with pytest.raises(ValueError, match="1,000 are allowed"):
        export.check_model(output)
