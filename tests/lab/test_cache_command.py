"""`dirotq-cache`: what it lists, finds damaged and deletes."""

import os
import time
from pathlib import Path

import pytest
from filelock import FileLock

from dirotq.lab.cache import MANIFEST, Cache
from dirotq.lab.cache_command import main

DAY = 86400


def add(cache: Cache, stage: str, number: int, *, size: int, days: float = 0) -> Path:
    entry = cache.get_or_build(
        stage,
        {"number": number},
        lambda folder: (folder / "data").write_bytes(bytes(size)) and None,
        f"entry {number}",
    )
    then = time.time() - days * DAY
    os.utime(entry / MANIFEST, (then, then))
    return entry


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def run(cache: Cache, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--cache", str(cache.root)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_list(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    new = add(cache, "images", 1, size=2_000_000)
    old = add(cache, "reference", 2, size=500, days=3)
    assert run(cache, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [
        ["reference", old.name[:8]],
        ["images", new.name[:8]],
    ]
    assert lines[0].split()[4] == "3d"
    assert lines[0].endswith("entry 2")
    assert " 2.0 MB " in lines[1]
    assert lines[2] == "2 entries, 2.0 MB"
    assert run(cache, "list", "--stage", "images") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("1 entries")


def test_verify_finds_and_repairs(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = add(cache, "images", 1, size=100), add(cache, "images", 2, size=100)
    assert run(cache, "verify") == 0
    (bad / "data").write_bytes(bytes(99) + b"x")
    assert run(cache, "verify") == 1
    assert f"images/{bad.name}: data has other bytes" in capsys.readouterr().out
    assert bad.exists()
    with FileLock(bad.with_name(f"{bad.name}.lock")):  # somebody builds it again at this moment
        assert run(cache, "verify", "--repair") == 1
    assert bad.exists()
    assert run(cache, "verify", "--repair") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 entries, 1 damaged"
    assert good.exists()
    assert not bad.exists()


def test_prune_by_age(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = (add(cache, "images", n, size=100, days=days) for n, days in ((1, 1), (2, 8)))
    assert run(cache, "prune", "--older-than", "7d", "--dry-run") == 0
    assert "1 of 2 entries" in capsys.readouterr().out
    assert old.exists()
    assert run(cache, "prune", "--older-than", "7d", "--stage", "reference") == 0
    assert old.exists()
    with FileLock(old.with_name(f"{old.name}.lock")):
        assert run(cache, "prune", "--older-than", "7d") == 0
    assert old.exists()
    assert "in use, kept" in capsys.readouterr().out
    assert run(cache, "prune", "--older-than", "7d") == 0
    assert not old.exists()
    assert new.exists()


def test_using_an_entry_makes_it_young(cache: Cache) -> None:
    old = add(cache, "images", 1, size=100, days=8)
    cache.get_or_build("images", {"number": 1}, lambda folder: None)
    assert run(cache, "prune", "--older-than", "7d") == 0
    assert old.exists()


def test_prune_to_a_size_goes_from_the_longest_unused(cache: Cache) -> None:
    entries = [add(cache, "images", n, size=10_000, days=9 - n) for n in range(4)]
    assert run(cache, "prune", "--keep-size", "25KB") == 0
    assert [entry.exists() for entry in entries] == [False, False, True, True]


def test_prune_deletes_what_killed_processes_left(cache: Cache) -> None:
    kept = add(cache, "images", 1, size=100)
    left, built = (kept.with_name(f".{name}.tmp-0123456789abcdef") for name in ("a", "b"))
    for folder in (left, built):
        folder.mkdir()
        (folder / "data").write_bytes(b"half")
    with FileLock(kept.with_name("b.lock")):
        assert run(cache, "prune", "--older-than", "7d") == 0
    assert not left.exists()
    assert built.exists()
    assert kept.exists()


def test_what_is_no_stage_is_left_alone(cache: Cache, capsys: pytest.CaptureFixture[str]) -> None:
    add(cache, "images", 1, size=100)
    others = [cache.root / "judge" / name for name in ("ab", "0" * 32, "model@endpoint")]
    for folder in others:
        folder.mkdir(parents=True)
        (folder / "answer.json").write_text("{}")
    assert run(cache, "verify", "--repair") == 0
    assert run(cache, "prune", "--keep-size", "0B") == 0
    assert "1 of 1 entries" in capsys.readouterr().out
    assert all((folder / "answer.json").exists() for folder in others)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune"], "error: prune needs --older-than or --keep-size"),
        (["prune", "--older-than", "week"], "week, allowed is a number and s, m, h, d or w"),
        (["prune", "--keep-size", "5"], "5, allowed is a number and B, KB, MB, GB or TB"),
    ],
)
def test_bad_input(
    cache: Cache, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    add(cache, "images", 1, size=1)
    assert run(cache, *arguments) in (1, 2)
    assert message in capsys.readouterr().err


def test_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Cache(tmp_path / "none"), "list") == 1
    assert "there is no such folder" in capsys.readouterr().err
