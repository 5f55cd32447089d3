"""Answers: read strictly from what a judge wrote, and kept on disk by what was asked.

``root/<first two digits>/<key>.json`` holds one answer and a digest of it, written whole or not at
all. An answer that broke the schema to the last attempt is kept too, as what this judge says; a
request that got no reply is not.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

from dirotq.atomic import atomic_write_json
from dirotq.judge.protocol import Question, Request

_LONGEST_ERROR = 300
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What came of a request.

    status: `valid`, `invalid` (no attempt fitted the schema) or `failed` (no reply).
    content: the answer where valid. attempts: replies it took. format, omitted: as in
    dirotq.judge.clients.Reply, of the last reply. error: of the last attempt where not valid.
    """

    status: Literal["valid", "invalid", "failed"]
    content: dict[str, Any] | None
    attempts: int
    format: str | None
    omitted: tuple[str, ...]
    error: str | None


@dataclass(frozen=True)
class Answer:
    """A question and what came of it."""

    question: Question
    outcome: Outcome

    @property
    def valid(self) -> bool:
        """Whether there is something to count."""
        return self.outcome.content is not None


def parse(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object that ``text`` is, alone or in one code fence.

    Raises:
        ValueError: one line: more or other than an object, a name twice, or not as the schema says.
    """
    stripped = text.strip()
    fenced = re.fullmatch(r"```(?:json)?\s*\n(.*?)\n?\s*```", stripped, flags=re.DOTALL)
    try:
        value = json.loads(
            fenced[1] if fenced else stripped, object_pairs_hook=_unique, parse_constant=_constant
        )
    except RecursionError:
        raise ValueError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    wrong = best_match(_validator(json.dumps(schema)).iter_errors(value))
    if wrong is not None:
        place = ".".join(str(part) for part in wrong.absolute_path)
        raise ValueError(f"{place}: {wrong.message}"[:_LONGEST_ERROR].removeprefix(": "))
    answer: dict[str, Any] = value
    return answer


class AnswerCache:
    """Outcomes under one folder, shared by all processes that use it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        """Where the answer of this key lies, whether it exists or not."""
        return self._root / key[:2] / f"{key}.json"

    def load(self, key: str, request: Request) -> Outcome | None:
        """The kept outcome; None if there is none, or with a warning if it is damaged."""
        path = self.path(key)
        try:
            entry = json.loads(path.read_bytes())
            if entry["digest"] != _digest(key, entry["outcome"]):
                raise ValueError("its digest does not fit")
            outcome = Outcome(**{**entry["outcome"], "omitted": tuple(entry["outcome"]["omitted"])})
            if outcome.content is not None:
                parse(json.dumps(outcome.content), request.schema)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("%s is damaged (%s) and asked again", path, error)
            return None
        return outcome

    def store(self, key: str, outcome: Outcome) -> None:
        """Keep an outcome."""
        content = asdict(outcome)
        entry = {"digest": _digest(key, content), "outcome": content}
        atomic_write_json(self.path(key), entry)


def _digest(key: str, outcome: object) -> str:
    return hashlib.sha256(json.dumps([key, outcome], sort_keys=True).encode()).hexdigest()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python would silently keep the last of two values of one name."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


@cache
def _validator(schema: str) -> Draft202012Validator:
    """The validator of a schema; a run has as many as it has kinds of questions."""
    return Draft202012Validator(json.loads(schema))
