"""Runs of two methods over four prompts, an endpoint that judges them, and the command."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dirotq.judge.app import main
from tests.support.judging import KNOWN, Endpoint, serve, write_runs

PROMPTS = {"p-zebra": "a cat", "p-yak": "two dogs", "p-xerus": "a house", "p-wombat": "a tree"}
METHODS = ("svdquant", "dirotq")


@pytest.fixture(autouse=True)
def own_interrupts() -> Iterator[None]:
    """The command takes over Ctrl-C."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return write_runs(tmp_path, METHODS, PROMPTS)


@pytest.fixture
def endpoint(runs: list[Path]) -> Iterator[Endpoint]:
    endpoint = Endpoint(runs, list(PROMPTS))
    with serve(endpoint):
        yield endpoint


@pytest.fixture
def judge(tmp_path: Path, runs: list[Path], endpoint: Endpoint) -> Callable[..., dict[str, Any]]:
    """Judge the runs with more arguments; returns judge.json."""

    def call(*more: str) -> dict[str, Any]:
        main(
            [
                *map(str, runs[1:]), f"--reference={runs[0]}", f"--endpoint={endpoint.url}",
                f"--model={KNOWN}", f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'out'}",
                "--concurrency=1", *more,
            ]
        )  # fmt: skip
        found: dict[str, Any] = json.loads((tmp_path / "out" / "judge.json").read_text())
        return found

    return call
