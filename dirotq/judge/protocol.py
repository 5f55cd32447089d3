"""Which questions are asked, in which order images are shown, and what a request holds.

For every prompt and repeat there are
- one scoring question: the 16-bit image and all candidates in one shuffled row. The 16-bit image
  is not marked: told which one is the original, a judge scores likeness to it, which PSNR and
  perceptual distances measure already; unmarked, its own scores show what the model can reach;
- two preference questions for every pair among them, the 16-bit image included, one for each
  order, so that a judge's liking for a position cancels and is measured.

A request names neither methods nor files; two runs that made the same image cannot be told apart.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from PIL import Image

from dirotq.judge import rubric

REQUEST_VERSION = 1
"""Part of every request's key: raise it when the way that answers are asked for changes."""


@dataclass(frozen=True)
class Protocol:
    """Settings of a judgement.

    seed: of the order of images. repeats: times that each question is asked. temperature: of the
    judge; above 0 repeats differ. max_tokens: longest answer. minimum_side: images whose shorter
    side has fewer pixels are enlarged by a whole factor, without smoothing, to at least that.
    """

    seed: int = 0
    repeats: int = 1
    temperature: float = 0.0
    max_tokens: int = 1024
    minimum_side: int = 512


@dataclass(frozen=True)
class Question:
    """One question. prompt: its id. shown: names of the images by position. repeat: from 0."""

    prompt: str
    kind: Literal["scores", "preference"]
    shown: tuple[str, ...]
    repeat: int


@dataclass(frozen=True)
class Request:
    """What is sent. parts: texts and PNG files in order. seed: of the judge's sampling."""

    parts: tuple[str | bytes, ...]
    schema: dict[str, Any]
    temperature: float
    max_tokens: int
    seed: int

    @cached_property
    def content_digest(self) -> str:
        """SHA-256 (hex) of everything but the judge; images count by their bytes."""
        content = {
            **asdict(self),
            "version": REQUEST_VERSION,
            "parts": [
                part if isinstance(part, str) else ["image", hashlib.sha256(part).hexdigest()]
                for part in self.parts
            ],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def key(self, judge: str) -> str:
        """Key of the answer that the judge of this name gives, wherever it is served: 64 hex digits."""
        return hashlib.sha256(json.dumps([judge, self.content_digest]).encode()).hexdigest()


def questions(prompt: str, names: Sequence[str], protocol: Protocol) -> list[Question]:
    """Every question about one prompt; the order of ``names`` does not matter.

    Raises:
        ValueError: fewer than two names, one twice, or more than there are labels.
    """
    if not 2 <= len(names) <= len(rubric.LABELS) or len(set(names)) < len(names):
        raise ValueError(
            f"candidates={', '.join(names)}: allowed are 2 to {len(rubric.LABELS)} different ones"
        )
    asked = []
    for repeat in range(protocol.repeats):
        shuffled = _shuffle(names, f"{protocol.seed}/{prompt}/{repeat}")
        asked.append(Question(prompt, "scores", shuffled, repeat))
        for pair in itertools.combinations(shuffled, 2):
            asked.append(Question(prompt, "preference", pair, repeat))
            asked.append(Question(prompt, "preference", pair[::-1], repeat))
    return asked


def render(
    question: Question,
    text: str,
    images: Mapping[str, bytes],
    protocol: Protocol,
    *,
    magnified: bool,
) -> Request:
    """The request of a question.

    Args:
        question: what to ask.
        text: the prompt's text.
        images: PNG files by name, from :func:`encode`.
        protocol: settings of the sampling.
        magnified: whether the images were enlarged.
    """
    count = len(question.shown)
    parts: list[str | bytes] = [rubric.introduction(text, count, magnified)]
    for label, name in zip(rubric.LABELS, question.shown, strict=False):
        parts += [f"Image {label}:", images[name]]
    if question.kind == "scores":
        parts.append(rubric.scores_task(count))
        schema = rubric.scores_schema(count)
    else:
        parts.append(rubric.preference_task())
        schema = rubric.preference_schema()
    return Request(tuple(parts), schema, protocol.temperature, protocol.max_tokens, question.repeat)


def magnification(size: tuple[int, int], minimum_side: int) -> int:
    """Whole factor that brings the shorter side of a size in pixels to at least ``minimum_side``."""
    return max(1, -(-minimum_side // min(size)))


def encode(image: Image.Image, factor: int) -> bytes:
    """PNG file of an image's pixels alone, each shown as a square of ``factor`` pixels.

    Comments, profiles and times of the original file do not get through.
    """
    pixels = image.convert("RGB")
    pixels = pixels.resize(
        (pixels.width * factor, pixels.height * factor), Image.Resampling.NEAREST
    )
    pixels.info = {}
    buffer = io.BytesIO()
    pixels.save(buffer, format="PNG")
    return buffer.getvalue()


def rubric_digest() -> str:
    """Hash (12 hex digits) of the wording, to see that two results were asked alike."""
    return hashlib.sha256("\0".join(rubric.digest_material()).encode()).hexdigest()[:12]


def _shuffle(names: Sequence[str], seed: str) -> tuple[str, ...]:
    """The names in an order that depends on nothing but the names and the seed."""

    def place(name: str) -> bytes:
        return hashlib.sha256(f"{seed}/{name}".encode()).digest()

    return tuple(sorted(names, key=place))
