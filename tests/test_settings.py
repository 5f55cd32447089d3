"""Settings: types are checked, not guessed."""

from dataclasses import dataclass
from typing import Any

import pytest

from dirotq.settings import Settings, typed


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (0.5, float, 0.5),
        (None, int | None, None),
        (3, int | None, 3),
        ("a", str | None, "a"),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([], tuple[str, ...], ()),
        ({"a": 1}, dict[str, Any], {"a": 1}),
        (True, bool, True),
    ],
    ids=str,
)
def test_values_of_the_type_are_taken(value: Any, hint: Any, expected: Any) -> None:
    found = typed(value, hint, "key")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "names"),
    [
        (True, int, "an integer"),
        (True, float, "a number"),
        (1, bool, "true or false"),
        (1.0, int, "an integer"),
        ("1", int, "an integer"),
        (1, str, "text"),
        (None, int, "an integer"),
        ("a", int | None, "an integer or null"),
        ("ab", tuple[str, ...], "a list"),
        ([1, "b"], tuple[int, ...], "an integer"),
        ([("a", 1)], dict[str, Any], "a mapping"),
    ],
    ids=str,
)
def test_other_values_are_refused_by_name(value: Any, hint: Any, names: str) -> None:
    with pytest.raises(ValueError, match=rf"^group\.key=.*, allowed is {names}$"):
        typed(value, hint, "group.key")


@dataclass(frozen=True)
class Two(Settings):
    count: int
    name: str = "x"

    def __post_init__(self) -> None:
        self._at_least(1, "count")
        self._one_of("name", ("x", "y"))


def test_groups_are_built_and_checked() -> None:
    assert Two.build({"count": 2}, "g") == Two(2, "x")
    for values, message in (
        ({"count": 0}, "g.count=0, allowed are integers from 1"),
        ({"count": 1, "name": "z"}, "g.name=z, allowed are x, y"),
        ({"count": 1, "size": 2}, "g.size: unknown key, allowed are count, name"),
        ({"name": "x"}, "g.count is missing"),
        ({"count": "1"}, "g.count=1, allowed is an integer"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            Two.build(values, "g")
