"""Answers are read strictly, and damaged ones on disk are found."""

import json
import logging
from pathlib import Path

import pytest

from dirotq.judge.answers import AnswerCache, Outcome, parse
from dirotq.judge.asking import answer
from dirotq.judge.clients import Reply
from dirotq.judge.protocol import Request
from dirotq.judge.rubric import preference_schema, scores_schema
from tests.support.judging import equal_scores, verdict

REQUEST = Request(("which?",), preference_schema(), 0.0, 10, 0)


class Counting:
    """A judge that likes A and counts."""

    name = "judge"
    concurrency = 1

    def __init__(self) -> None:
        self.asked = 0

    def complete(self, turns: object, request: Request) -> Reply:
        self.asked += 1
        return Reply(verdict("A"), "text", ("seed",))


@pytest.mark.parametrize(
    "text", [verdict("tie"), f" {verdict('tie')}\n", f"```json\n{verdict('tie')}\n```"]
)
def test_an_object_alone_or_in_a_fence(text: str) -> None:
    assert parse(text, preference_schema()) == {"reason": "seen", "preference": "tie"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "not JSON"),
        ("A is better.", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (verdict("A") * 2, "not JSON: Extra data"),
        (f"Sure! {verdict('A')}", "not JSON"),
        (f"```\n{verdict('A')}\n```\nor\n```\n{verdict('B')}\n```", "not JSON"),
        ("NaN", "not JSON: NaN is no number"),
        ("[]", "is not of type 'object'"),
        ('{"preference": "A"}', "'reason' is a required property"),
        (verdict("a"), "^preference: 'a' is not one of"),
        ('{"reason": "x", "preference": "A", "preference": "B"}', "a name is there twice"),
        ('{"reason": "x", "preference": "A", "sure": true}', "'sure' was unexpected"),
        ('{"reason": 1, "preference": "A"}', "^reason: 1 is not of type 'string'"),
    ],
)
def test_anything_else_is_refused_in_one_line(text: str, error: str) -> None:
    with pytest.raises(ValueError, match=error) as raised:
        parse(text, preference_schema())
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) <= 300


@pytest.mark.parametrize("score", ["0", "6", "2.5", '"3"', "null", "true"])
def test_scores_are_whole_numbers_from_1_to_5(score: str) -> None:
    assert parse(equal_scores(2), scores_schema(2))["B"]["quality"] == 3
    with pytest.raises(ValueError, match=r"^A\.alignment: "):
        parse(equal_scores(2).replace("3", score, 1), scores_schema(2))


def test_an_answer_is_asked_for_once(tmp_path: Path) -> None:
    client, cache = Counting(), AnswerCache(tmp_path)
    first = answer(REQUEST, client, cache)
    assert first == Outcome(
        "valid", {"reason": "seen", "preference": "A"}, 1, "text", ("seed",), None
    )
    assert answer(REQUEST, client, AnswerCache(tmp_path)) == first
    assert client.asked == 1
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"A"', '"B"'),
        lambda text: text.replace('"attempts": 1', '"attempts": 2'),
        lambda text: text.replace('"text"', '"\udcff"').replace('"\udcff"', '"\\ud800"'),
    ],
    ids=["empty", "half", "list", "nothing", "verdict", "attempts", "format"],
)
def test_a_damaged_answer_is_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    client, cache = Counting(), AnswerCache(tmp_path)
    before = answer(REQUEST, client, cache)
    path = cache.path(REQUEST.key(client.name))
    whole = path.read_text()
    path.write_text(damage(whole))  # type: ignore[operator]
    assert path.read_text() != whole
    with caplog.at_level(logging.WARNING):
        assert answer(REQUEST, client, cache) == before
    assert "is damaged" in caplog.text
    assert client.asked == 2
    assert path.read_text() == whole


def test_an_answer_under_another_key_is_not_taken(tmp_path: Path) -> None:
    client, cache = Counting(), AnswerCache(tmp_path)
    answer(REQUEST, client, cache)
    other = Request(("another?",), preference_schema(), 0.0, 10, 0)
    path = cache.path(other.key(client.name))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(cache.path(REQUEST.key(client.name)).read_bytes())
    answer(other, client, cache)
    assert client.asked == 2
    assert json.loads(path.read_text())["outcome"]["status"] == "valid"
