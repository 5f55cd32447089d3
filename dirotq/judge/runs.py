"""The runs that are judged: their prompts and images, and that they belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, UnidentifiedImageError

from dirotq.judge.protocol import encode, magnification
from dirotq.lab.results import Result, read_result
from dirotq.prompts import Prompt, load_prompts

REFERENCE = "16-bit"
"""Name of the reference among the candidates."""


@dataclass(frozen=True)
class Candidate:
    """A run. name: its folder's, or REFERENCE."""

    name: str
    folder: Path
    result: Result

    def image(self, prompt: Prompt) -> Path:
        """The image file of a prompt."""
        return self.folder / "images" / f"{prompt.id}.png"


@dataclass(frozen=True)
class Panel:
    """Runs over the same prompts, the reference first. size: of every image, width and height in pixels."""

    candidates: tuple[Candidate, ...]
    prompts: tuple[Prompt, ...]
    prompt_set: str
    size: tuple[int, int]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the candidates, the reference first."""
        return tuple(candidate.name for candidate in self.candidates)

    def encoded(self, prompt: Prompt, minimum_side: int) -> dict[str, bytes]:
        """PNG files of a prompt's images by name of the candidate, enlarged where they are small.

        Raises:
            ValueError: a file cannot be read, or its size is not that of the first image.
        """
        factor = magnification(self.size, minimum_side)
        encoded = {}
        for candidate in self.candidates:
            image = _open(candidate.image(prompt))
            if image.size != self.size:
                raise ValueError(
                    f"{candidate.image(prompt)} has {image.size[0]} x {image.size[1]} pixels, the "
                    f"other images {self.size[0]} x {self.size[1]}; only one size can be compared"
                )
            encoded[candidate.name] = encode(image, factor)
        return encoded


def load_panel(reference: Path, runs: Sequence[Path], first: int | None = None) -> Panel:
    """Read run directories and check that they can be compared.

    Args:
        reference: run of the 16-bit model.
        runs: the candidates.
        first: use only so many prompts, the first of the set.

    Raises:
        ValueError: one line that names the run and what is wrong: not a finished run, the
            reference is not of method fp16, a folder or a name twice, other prompts or another
            model than the reference, fewer prompts than asked for, an image missing.
    """
    if not runs:
        raise ValueError("no run is given, allowed is at least one beside the reference")
    base = _candidate(reference, REFERENCE)
    if base.result["method"] != "fp16":
        raise ValueError(
            f"--reference {reference} is of method {base.result['method']}, allowed is fp16"
        )
    prompt_set, prompts = _prompts(reference)
    candidates = [base]
    for run in runs:
        candidate = _candidate(run, run.resolve().name)
        if any(run.resolve() == one.folder.resolve() for one in candidates):
            raise ValueError(f"{run} is given twice")
        if candidate.name in [one.name for one in candidates]:
            raise ValueError(f"{run}: another run's folder is named {candidate.name} too")
        if candidate.result["model"] != base.result["model"]:
            raise ValueError(
                f"{run} is of model {candidate.result['model']}, the reference of {base.result['model']}"
            )
        if _prompts(run)[1] != prompts:
            raise ValueError(f"{run} has other prompts than {reference}")
        candidates.append(candidate)
    if first is not None and not 1 <= first <= len(prompts):
        raise ValueError(f"--prompts {first}, allowed are 1 to {len(prompts)}")
    used = tuple(prompts[:first])
    for candidate in candidates:
        for prompt in used:
            if not candidate.image(prompt).is_file():
                raise ValueError(f"{candidate.image(prompt)} is missing")
    size = _open(base.image(used[0])).size
    return Panel(tuple(candidates), used, prompt_set, size)


def _candidate(folder: Path, name: str) -> Candidate:
    try:
        return Candidate(name, folder, read_result(folder / "result.json"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no finished run: result.json is missing") from None


def _prompts(run: Path) -> tuple[str, list[Prompt]]:
    """Name and prompts of the set that a run was evaluated on, as its config.yaml says."""
    try:
        config: Any = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{run}: config.yaml cannot be read ({reason})") from error
    evaluation = config.get("eval") if isinstance(config, Mapping) else None
    if not isinstance(evaluation, Mapping) or not isinstance(evaluation.get("prompt_set"), str):
        raise ValueError(f"{run}: config.yaml names no eval.prompt_set")
    try:
        prompts = load_prompts(evaluation["prompt_set"], evaluation.get("prompts"))
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from error
    return evaluation["prompt_set"], prompts


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
