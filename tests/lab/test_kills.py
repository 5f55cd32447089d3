"""SIGKILL in any stage of a run, in a job of a sweep and at random: the next start ends with bitwise the same files."""

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from dirotq.lab import app, cache, runner
from experiments import kills
from experiments.kills import Child
from tests.support.jobs import overrides

SECONDS = 120


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_sealing(stage: str) -> Callable[[], None]:
    """In a child: what the stage writes is written, and not yet under its name."""

    def prepare() -> None:
        original = cache._seal

        def seal(folder: Path, name: str, *arguments: object) -> None:
            if name == stage:
                die()
            original(folder, name, *arguments)  # type: ignore[arg-type]

        cache._seal = seal  # type: ignore[assignment]

    return prepare


def die_in_the_run_directory() -> None:
    runner.save_png = lambda *arguments: die()  # type: ignore[assignment]


PLACES = {stage: die_before_sealing(stage) for stage in kills.STAGES[:-1]} | {
    kills.STAGES[-1]: die_in_the_run_directory
}


@pytest.fixture
def arguments(tiny_pipeline: Path, tmp_path: Path) -> list[str]:
    return overrides(
        tiny_pipeline, tmp_path, "method=dirotq", "rank=8", "save=true",
        "runtime.cache=outputs/cache",
    )  # fmt: skip


def folder(tmp_path: Path, name: str) -> Path:
    made = tmp_path / name
    made.mkdir()
    return made


def test_a_kill_in_every_stage(arguments: list[str], tmp_path: Path) -> None:
    undisturbed, killed = folder(tmp_path, "undisturbed"), folder(tmp_path, "killed")
    child = Child(arguments, undisturbed)
    assert child.wait(SECONDS) == 0, child.output()
    for stage, prepare in PLACES.items():
        child = Child(arguments, killed, prepare)
        assert child.wait(SECONDS) == -signal.SIGKILL, child.output()
        assert stage in kills.stages(kills.building(killed))
        assert not any(killed.glob("outputs/runs/[!.]*/result.json"))
    child = Child(arguments, killed)
    assert child.wait(SECONDS) == 0, child.output()
    kills.compare(kills.contents(undisturbed), kills.contents(killed))
    kills.verify_cache(killed / "outputs" / "cache")
    assert not kills.building(killed)


def test_a_killed_sweep_goes_on_in_its_folder(arguments: list[str], tmp_path: Path) -> None:
    undisturbed, killed = folder(tmp_path, "undisturbed"), folder(tmp_path, "killed")
    sweep = ["-m", *arguments, "rounding=rtn,gptq", "hydra.sweep.dir=sweeps/mine"]
    child = Child(sweep, undisturbed)
    assert child.wait(SECONDS) == 0, child.output()

    def die_in_the_second_job() -> None:
        original = runner.read_result

        def read(path: Path) -> object:
            PLACES["quantized"]()  # the first job is done when its result is read
            return original(path)

        app.read_result = read  # type: ignore[assignment]

    child = Child(sweep, killed, die_in_the_second_job)
    assert child.wait(SECONDS) == -signal.SIGKILL, child.output()
    assert statuses(killed) == ["finished", "running"]
    child = Child(sweep, killed)
    assert child.wait(SECONDS) == 0, child.output()
    assert statuses(killed) == ["finished", "finished"]
    kills.compare(kills.contents(undisturbed), kills.contents(killed))


def statuses(work: Path) -> list[str]:
    files = sorted((work / "sweeps" / "mine").glob("*/job.json"))
    return [json.loads(path.read_text())["status"] for path in files]


def test_kills_at_random(arguments: list[str], tmp_path: Path) -> None:
    count, compared = kills.experiment(tmp_path, ["-m", *arguments], 2, 2, random.Random(0))
    assert count.kills >= 2
    assert count.rounds >= 1
    assert {"result.json", "checkpoint/config.json", "images/first.png"} <= set(compared)


def test_a_lost_file_is_found() -> None:
    whole = {"a/result.json": b"{}", "a/grid.png": b"png"}
    kills.compare(whole, dict(whole))
    with pytest.raises(AssertionError, match=r"a/grid\.png is missing"):
        kills.compare(whole, {"a/result.json": b"{}"})
    with pytest.raises(AssertionError, match=r"a/grid\.png was left over"):
        kills.compare({"a/result.json": b"{}"}, whole)
    with pytest.raises(AssertionError, match=r"a/grid\.png has other bytes"):
        kills.compare(whole, {**whole, "a/grid.png": b"gnp"})
