"""The whole harness, but for the wire, finds what was planted in a judge of 300 prompts."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dirotq.judge import analysis
from dirotq.judge.asking import ask_all
from dirotq.judge.clients import Reply, Turn
from dirotq.judge.protocol import Protocol, Request
from dirotq.judge.runs import Panel, load_panel
from dirotq.metrics.statistics import Estimate
from tests.support.judging import equal_scores, verdict, write_runs

PROMPTS = {f"p{n:03}": f"picture {n}" for n in range(300)}
PROTOCOL = Protocol(minimum_side=8)


class Planted:
    """Knows the images by their bytes. prefer: prompt, names and whether x is liked there, to a verdict."""

    name = "planted"
    concurrency = 4

    def __init__(self, panel: Panel, prefer: Callable[[str, str, str], str]) -> None:
        self._prefer = prefer
        self._known = {
            png: (prompt.id, name)
            for prompt in panel.prompts
            for name, png in panel.encoded(prompt, PROTOCOL.minimum_side).items()
        }

    def complete(self, turns: Sequence[Turn], request: Request) -> Reply:
        shown = [self._known[part] for part in turns[0].parts if isinstance(part, bytes)]
        if "preference" not in request.schema["properties"]:
            return Reply(equal_scores(len(shown)), "json_schema")
        (prompt, first), (_, second) = shown
        return Reply(verdict(self._prefer(prompt, first, second)), "json_schema")


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    folder = tmp_path_factory.mktemp("planted")
    runs = write_runs(folder, ["x"], PROMPTS)
    return load_panel(runs[0], runs[1:])


def chance(*parts: str) -> float:
    """A number from 0 to 1 that depends on the parts alone."""
    return float(
        np.random.default_rng(list(hashlib.sha256("/".join(parts).encode()).digest())).random()
    )


def inside(estimate: Estimate | None, truth: float) -> bool:
    assert estimate is not None
    assert estimate.ci_low is not None
    assert estimate.ci_high is not None
    return estimate.ci_low <= truth <= estimate.ci_high


def test_a_preference_of_70_to_30(panel: Panel, tmp_path: Path) -> None:
    def prefer(prompt: str, first: str, second: str) -> str:
        liked = "tiny-x" if chance(prompt) < 0.7 else "16-bit"
        return "A" if first == liked else "B"

    answers = ask_all(panel, PROTOCOL, Planted(panel, prefer), tmp_path, max_failed=0)
    fought = analysis.duels(answers)
    (pair,) = analysis.pairs(fought, panel.names, seed=0)
    assert (pair.first, pair.second) == ("tiny-x", "16-bit")
    assert inside(pair.win_rate, 0.7)
    assert pair.win_rate is not None
    assert pair.win_rate.n == 300
    assert pair.verdict == "tiny-x"
    bias = analysis.position_bias(fought, seed=0)
    assert bias is not None
    assert (bias.value, bias.ci_low, bias.ci_high) == (0.5, 0.5, 0.5)
    consistent = analysis.order_consistency(fought, seed=0)
    assert consistent is not None
    assert consistent.value == 1.0


def test_a_liking_for_the_first_image(panel: Panel, tmp_path: Path) -> None:
    """In one of two prompts the first image wins whatever it is; in the others, 70:30 as above."""

    def prefer(prompt: str, first: str, second: str) -> str:
        if chance(prompt, "blind") < 0.5:
            return "A"
        liked = "tiny-x" if chance(prompt) < 0.7 else "16-bit"
        return "A" if first == liked else "B"

    answers = ask_all(panel, PROTOCOL, Planted(panel, prefer), tmp_path, max_failed=0)
    fought = analysis.duels(answers)
    assert inside(analysis.position_bias(fought, seed=0), 0.75)
    assert inside(analysis.order_consistency(fought, seed=0), 0.5)
    (pair,) = analysis.pairs(fought, panel.names, seed=0)
    assert inside(pair.win_rate, 0.5 * 0.5 + 0.5 * 0.7)


def test_nothing_but_a_position(panel: Panel, tmp_path: Path) -> None:
    """Each order is judged by a coin that shows its first side in 80 of 100 throws."""

    def prefer(prompt: str, first: str, second: str) -> str:
        return "A" if chance(prompt, first) < 0.8 else "B"

    answers = ask_all(panel, PROTOCOL, Planted(panel, prefer), tmp_path, max_failed=0)
    fought = analysis.duels(answers)
    bias = analysis.position_bias(fought, seed=0)
    assert inside(bias, 0.8)
    assert not inside(bias, 0.5)
    (pair,) = analysis.pairs(fought, panel.names, seed=0)
    assert pair.verdict == "not distinguishable"
    assert inside(analysis.order_consistency(fought, seed=0), 2 * 0.8 * 0.2)
