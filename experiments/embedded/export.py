"""Assemble the model folder `dirotq/assets/emoji/` from what the trainings wrote.

`python -m experiments.embedded.export` copies the pipeline and the feature network, writes the
model card from `experiments/embedded/logs/` and `sheet.json`, loads the result as a user would,
and fails if the folder is larger than it may be. The prompt sets in it stay as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import PixArtSigmaPipeline

from dirotq.metrics.feature_network import FILE_NAME, load_feature_network
from experiments.embedded.card import COMMANDS, LAST_COMMANDS, model_card, read_logs
from experiments.embedded.config import ASSETS, CALL, LIMIT_BYTES, WORK, parameter_count
from experiments.embedded.sprites import read_sprites

PARTS = ("transformer", "text_encoder", "vae", "tokenizer", "scheduler")
LOCAL_SETTINGS = ("_name_or_path", "is_local", "local_files_only")
HERE = Path(__file__).parent


def copy_model(pipeline: Path, features: Path, output: Path, vae: Path | None = None) -> None:
    """Copy the parts of a pipeline and the feature network into the model folder.

    `vae`, where given, takes the place of the pipeline's autoencoder.
    """
    output.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source = vae if part == "vae" and vae is not None else pipeline / part
        shutil.rmtree(output / part, ignore_errors=True)
        (output / part).mkdir()
        for file in sorted(source.iterdir()):
            if file.name not in ("log.json", "state.safetensors"):
                _copy(file, output / part / file.name)
    shutil.copyfile(pipeline / "model_index.json", output / "model_index.json")
    shutil.copyfile(features / FILE_NAME, output / FILE_NAME)


def _copy(source: Path, target: Path) -> None:
    """Copy contents without permissions, and settings without traces of where they came from."""
    if source.suffix != ".json" or source.name == "tokenizer.json":
        shutil.copyfile(source, target)
        return
    settings = json.loads(source.read_text())
    kept = {key: value for key, value in settings.items() if key not in LOCAL_SETTINGS}
    target.write_text(json.dumps(kept, indent=2) + "\n")


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_model(folder: Path) -> dict[str, tuple[int, int]]:
    """Load and call the model as a user would; returns parameters and bytes of each part.

    Raises:
        ValueError: the folder is too large, or a picture is not finite.
    """
    size = folder_bytes(folder)
    if size > LIMIT_BYTES:
        raise ValueError(f"{folder} has {size:,} bytes; {LIMIT_BYTES:,} are allowed")
    pipeline = PixArtSigmaPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red apple", output_type="pt", **{**CALL, "num_inference_steps": 2})
    if not torch.isfinite(picture.images).all():
        raise ValueError(f"{folder} draws pictures that are not finite")
    network = load_feature_network(folder)
    parts = {
        part: (parameter_count(getattr(pipeline, part)), folder_bytes(folder / part))
        for part in ("transformer", "text_encoder", "vae")
    }
    parts["feature network"] = (parameter_count(network), (folder / FILE_NAME).stat().st_size)
    parts["tokenizer, scheduler"] = (0, sum(folder_bytes(folder / part) for part in PARTS[3:]))
    return parts


def main() -> None:
    """Assemble from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pipeline", type=Path, default=WORK / "transformer" / "pipeline")
    parser.add_argument("--vae", type=Path, help="an autoencoder in place of the pipeline's")
    parser.add_argument("--features", type=Path, default=WORK / "features")
    parser.add_argument("--data", type=Path, default=WORK)
    parser.add_argument("--logs", type=Path, default=HERE / "logs")
    parser.add_argument("--sheet", type=Path, default=HERE / "sheet.json")
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--card-only", action="store_true", help="the model is in place already")
    arguments = parser.parse_args()
    if not arguments.card_only:
        copy_model(arguments.pipeline, arguments.features, arguments.output, arguments.vae)
    parts = check_model(arguments.output)
    sprites = read_sprites(arguments.data)
    logs = read_logs(arguments.logs)
    commands = (*COMMANDS, *(log["command"] for log in logs.values()), *LAST_COMMANDS)
    sheet = json.loads(arguments.sheet.read_text())
    counts = len(sprites), len({sprite.concept for sprite in sprites})
    card = model_card(logs, parts, counts, commands, sheet)
    (arguments.output / "README.md").write_text(card)
    check_model(arguments.output)
    print(f"{folder_bytes(arguments.output):,} of {LIMIT_BYTES:,} bytes")


if __name__ == "__main__":
    main()
