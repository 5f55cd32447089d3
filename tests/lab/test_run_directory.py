"""The run directory: whose it is, when it may be replaced, and what in it is never deleted."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dirotq.config import Job
from dirotq.lab import runner
from dirotq.lab.results import read_result
from dirotq.lab.runner import run
from tests.support.jobs import job

RTN = ("method=rtn",)

Make = Callable[..., Job]


@pytest.fixture
def make(tiny_pipeline: Path, tmp_path: Path) -> Make:
    def made(name: str, *more: str) -> Job:
        return job(tiny_pipeline, tmp_path, f"out={tmp_path / name}", *more)

    return made


def test_a_folder_that_is_no_run_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        ValueError, match=r"mine: the folder exists and holds other files \(thesis.txt\); choose"
    ):
        run(make("mine", *RTN, "force=true"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert (run(make("empty", "method=fp16")) / "result.json").is_file()


def test_a_folder_keeps_its_run_when_other_settings_are_asked_for(make: Make) -> None:
    out = run(make("kept", "method=fp16"))
    before = (out / "result.json").read_bytes()
    with pytest.raises(ValueError, match="kept: the folder holds another run"):
        run(make("kept", *RTN))
    assert (out / "result.json").read_bytes() == before
    run(make("kept", *RTN, "force=true"))
    assert read_result(out / "result.json")["method"] == "rtn"


def test_a_file_beside_a_run_is_never_deleted(make: Make) -> None:
    out = run(make("kept", "method=fp16"))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \(notes.txt\)"):
        run(make("kept", "method=fp16", "force=true"))
    assert (out / "notes.txt").read_text() == "mine"


def test_a_checkpoint_asked_for_later_is_written(make: Make) -> None:
    out = run(make("later", *RTN))
    assert not (out / "checkpoint").exists()
    run(make("later", *RTN, "save=true"))
    assert (out / "checkpoint" / "config.json").is_file()


def test_identity_follows_the_prompts(make: Make, tmp_path: Path) -> None:
    prompts = tmp_path / "mine.txt"
    prompts.write_text("a cat\n")
    one = runner.identity(make("x", *RTN, f"eval.prompt_set={prompts}"))
    assert one == runner.identity(make("y", *RTN, f"eval.prompt_set={prompts}", "force=true"))
    prompts.write_text("a dog\n")
    assert one != runner.identity(make("x", *RTN, f"eval.prompt_set={prompts}"))
