"""What the judge is told, and the JSON schema that its answer must have.

Integers are enumerated and objects closed, which is the part of JSON Schema that every endpoint
with constrained decoding knows. `reason` comes first so that a verdict follows from it.
"""

import json
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

LABELS = tuple(ascii_uppercase)
"""Names of the images by position."""

CRITERIA = ("alignment", "quality", "artefacts")
"""What is scored, 1 to 5, higher is better; 5 for artefacts means that there are none."""

VERDICTS = ("A", "B", "tie")

_SCALES = """Score each image on three scales, in whole numbers from 1 to 5:
alignment, how well it shows what the prompt asks for:
  5 all of it as described; 4 a small detail is missing or wrong; 3 the subject is right, something \
important about it is wrong; 2 the subject can barely be recognized; 1 something else.
quality, how good it is as a picture, whatever the prompt:
  5 clean, coherent and pleasing; 4 good with small weaknesses; 3 mediocre; 2 poor; 1 unusable.
artefacts, whether there are noise, blur, wrong colours, broken shapes or leftovers:
  5 none; 4 only when one looks for them; 3 visible; 2 disturbing; 1 they are most of the image.
Use the whole scale. Images that are equally good get equal scores."""

_CHOICE = """Which of the two is the better image for this prompt? Weigh what the prompt asks for, \
the quality as a picture, and artefacts such as noise, blur, wrong colours or broken shapes.
Answer "A" or "B", or "tie" if you see no difference that matters."""


def introduction(text: str, count: int, magnified: bool) -> str:
    """What comes before the images.

    Args:
        text: the prompt that the images were made for.
        count: how many images follow.
        magnified: whether their pixels are shown enlarged.
    """
    lines = [
        f"A text-to-image model was asked for: {json.dumps(text, ensure_ascii=False)}",
        f"You see {count} images made for this prompt, named {', '.join(LABELS[:count])}. "
        "Their order is random and says nothing about them.",
    ]
    if magnified:
        lines.append("They are small images, enlarged: that pixels can be seen is no artefact.")
    return "\n".join(lines)


def scores_task(count: int) -> str:
    """What is asked after the images of a scoring question."""
    scores = "{" + ", ".join(f'"{name}": 1 to 5' for name in CRITERIA) + "}"
    images = ", ".join(f'"{label}": {scores}' for label in LABELS[:count])
    return f'{_SCALES}\nAnswer with one JSON object alone: {{"reason": "one short sentence", {images}}}'


def preference_task() -> str:
    """What is asked after the two images of a preference question."""
    form = '{"reason": "one short sentence", "preference": "A", "B" or "tie"}'
    return f"{_CHOICE}\nAnswer with one JSON object alone: {form}"


def correction(error: str) -> str:
    """What is said to an answer that was not accepted."""
    return f"This was not accepted: {error}\nAnswer again, with the JSON object alone."


def scores_schema(count: int) -> dict[str, Any]:
    """Schema of the answer to a scoring question of so many images."""
    scale = {"type": "integer", "enum": [1, 2, 3, 4, 5]}
    image = _closed(dict.fromkeys(CRITERIA, scale))
    return _closed({"reason": {"type": "string"}, **dict.fromkeys(LABELS[:count], image)})


def preference_schema() -> dict[str, Any]:
    """Schema of the answer to a preference question."""
    verdict = {"type": "string", "enum": list(VERDICTS)}
    return _closed({"reason": {"type": "string"}, "preference": verdict})


def digest_material() -> Sequence[str]:
    """All fixed text, for a hash that says which wording a result was taken with."""
    return [introduction("", 2, True), scores_task(2), preference_task(), correction("")]


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    """An object that has exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
