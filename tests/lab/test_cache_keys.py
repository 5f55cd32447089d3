"""Keys of the stage cache: equal exactly when stage and fields are equal."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dirotq.lab import cache as module
from dirotq.lab.cache import stage_key

FIELDS = {"model": "emoji", "steps": 20, "guidance": 4.5}

TEXT = st.text('ab."\\\n\u00e9\u2028\U0001f600', max_size=4)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(TEXT, JSON, max_size=4))
def test_key_survives_json_and_order(fields: dict[str, object]) -> None:
    key = stage_key("stage", fields)
    assert len(key) == 32
    assert set(key) <= set("0123456789abcdef")
    assert stage_key("stage", json.loads(json.dumps(fields))) == key
    assert stage_key("stage", dict(reversed(fields.items()))) == key


def test_key_is_stable() -> None:
    # Written down: a change of the canonical form loses every user's cache.
    assert stage_key("images", FIELDS) == "2671eaa05cadd77bc0942f6c19c43274"


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1.0, True),
        (0.0, -0.0, True),
        ((1, 2), [1, 2], True),
        (np.float64(0.125), 0.125, True),
        (0.1 + 0.2, 0.3, False),
        (1, True, False),
        (1, "1", False),
        (None, False, False),
        ({}, [], False),
    ],
    ids=lambda value: repr(value),
)
def test_key_of_like_values(a: object, b: object, equal: bool) -> None:
    assert (stage_key("s", {"x": a}) == stage_key("s", {"x": b})) is equal


def test_key_depends_on_stage_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    key = stage_key("a", {})
    assert stage_key("b", {}) != key
    monkeypatch.setattr(module, "CACHE_VERSION", 99)
    assert stage_key("a", {}) != key


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (float("nan"), r"fields\.x is nan"),
        (float("inf"), r"fields\.x is inf"),
        ([0, Path("a")], r"fields\.x\[1\]"),
        ({"y": {1}}, r"fields\.x\.y is \{1\}"),
        ({1: 2}, r"fields\.x has the key 1"),
        (np.int64(3), r"fields\.x"),
        (b"bytes", r"fields\.x"),
    ],
    ids=["nan", "inf", "path", "set", "key", "int64", "bytes"],
)
def test_key_refuses_what_json_lacks(value: object, place: str) -> None:
    with pytest.raises(TypeError, match=place):
        stage_key("s", {"x": value})
