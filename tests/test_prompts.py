"""Prompt sets: the shipped ones, one's own files, and what is wrong with a file."""

import json
from pathlib import Path

import pytest

from dirotq.prompts import SETS, Prompt, load_prompts

SIZES = {"calibration": 128, "quick": 16, "standard": 256, "full": 1000}


def write(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("name", SIZES)
def test_shipped_sets_have_their_sizes(name: str) -> None:
    prompts = load_prompts(name)
    assert len(prompts) == SIZES[name]
    assert len({prompt.id for prompt in prompts}) == SIZES[name]
    assert all(prompt.category and prompt.split for prompt in prompts)


def test_shipped_sets_share_no_prompt() -> None:
    for field in ("id", "text"):
        every = [getattr(prompt, field) for name in SIZES for prompt in load_prompts(name)]
        assert len(set(every)) == len(every)


def test_the_three_kinds_of_files(tmp_path: Path) -> None:
    entries = {"b": "a cat", "a": {"prompt": " a dog ", "category": "animal", "split": "train"}}
    expected = [Prompt("b", "a cat"), Prompt("a", "a dog", "animal", "train")]
    assert load_prompts(write(tmp_path, "p.json", json.dumps(entries))) == expected
    assert load_prompts(write(tmp_path, "p.yaml", "b: a cat\n'7': a dog\n"))[1].id == "7"
    assert load_prompts(write(tmp_path, "q.yml", "7: a dog\n")) == [Prompt("7", "a dog")]
    lines = write(tmp_path, "p.txt", "a cat\n\n  a dog \u00e9 \n")
    assert load_prompts(lines) == [Prompt("00000", "a cat"), Prompt("00001", "a dog \u00e9")]


def test_the_first_so_many(tmp_path: Path) -> None:
    assert load_prompts("quick", 3) == load_prompts("quick")[:3]
    assert load_prompts("quick", 16) == load_prompts("quick")
    with pytest.raises(ValueError, match="prompts=17: the set quick has 16"):
        load_prompts("quick", 17)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", "", "cannot be read"),
        ("p.json", "{", "cannot be read"),
        ("p.json", "{}", "the file holds no prompts"),
        ("p.yaml", "", "the file holds no prompts"),
        ("p.txt", " \n\n", "the file holds no prompts"),
        ("p.yaml", "a: [", "cannot be read"),
        ("p.txt", b"\xff\xfe\x00", "cannot be read"),
        ("p.json", '["a cat"]', "holds a list, expected a mapping"),
        ("p.yaml", "just text", "holds a str, expected a mapping"),
        ("p.json", '{"a": ""}', "the entry 'a' has no prompt"),
        ("p.json", '{"a": 3}', "the entry 'a' has no prompt"),
        ("p.json", '{"a": {"text": "a cat"}}', "the entry 'a' has no prompt"),
        ("p.json", '{"../a": "a cat"}', "the id '../a' cannot name a file"),
        ("p.json", '{"..": "a cat"}', "the id '..' cannot name a file"),
        ("p.json", '{".": "a cat"}', "the id '.' cannot name a file"),
        ("p.json", '{"a": "x", "a": "y"}', "the entry 'a' is there twice"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(ValueError, match=message) as caught:
        load_prompts(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_set_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt_set=quik: unknown, allowed are .*quick"):
        load_prompts("quik")
    with pytest.raises(ValueError, match="cannot be read"):
        load_prompts(str(tmp_path / "none.json"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        load_prompts(str(tmp_path / "folder.json"))
    assert SETS.is_dir()


def test_seeds_depend_on_the_id_alone() -> None:
    assert Prompt("a", "x").seed() == Prompt("a", "y", "c").seed()
    # SHA-256 of "a/0", written out: images must not change between versions.
    assert Prompt("a", "x").seed() == 1451346014421447915
    seeds = {prompt.seed(offset) for prompt in load_prompts("full") for offset in (0, 1)}
    assert len(seeds) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
