"""Statistics of answers, on answers whose statistics are known."""

import numpy as np
import pytest
from scipy import stats

from dirotq.judge import analysis
from dirotq.judge.analysis import MINIMUM_PROMPTS, Pair, duels, pairs
from dirotq.judge.answers import Answer, Outcome
from dirotq.judge.protocol import Question
from dirotq.metrics.statistics import Estimate


def preferred(prompt: str, first: str, second: str, verdict: str | None, repeat: int = 0) -> Answer:
    """Answer to one order of a pair; None for no answer."""
    content = None if verdict is None else {"reason": "", "preference": verdict}
    status = "valid" if content else "failed"
    outcome = Outcome(status, content, 1, "text", (), None)  # type: ignore[arg-type]
    return Answer(Question(prompt, "preference", (first, second), repeat), outcome)


def scored(prompt: str, shown: tuple[str, ...], values: tuple[int, ...], repeat: int = 0) -> Answer:
    """Answer to a scoring question with one number for all criteria of an image."""
    content = {
        label: dict.fromkeys(analysis.CRITERIA, value)
        for label, value in zip("ABC", values, strict=False)
    }
    outcome = Outcome("valid", {"reason": "", **content}, 1, "text", (), None)
    return Answer(Question(prompt, "scores", shown, repeat), outcome)


@pytest.mark.parametrize(
    ("forward", "backward", "win", "lead", "same"),
    [
        ("A", "B", 1.0, 0.5, 1.0),
        ("B", "A", 0.0, 0.5, 1.0),
        ("tie", "tie", 0.5, 0.5, 1.0),
        ("A", "A", 0.5, 1.0, 0.0),
        ("B", "B", 0.5, 0.0, 0.0),
        ("A", "tie", 0.75, 0.75, 0.0),
        ("tie", "A", 0.25, 0.75, 0.0),
    ],
)
def test_a_pair_in_both_orders(
    forward: str, backward: str, win: float, lead: float, same: float
) -> None:
    (duel,) = duels([preferred("p", "x", "y", forward), preferred("p", "y", "x", backward)])
    assert (duel.first, duel.second) == ("x", "y")
    assert (duel.win, duel.lead, duel.same) == (win, lead, same)


def test_half_of_a_pair_does_not_count() -> None:
    answers = [
        preferred("p", "x", "y", "A"),
        preferred("p", "y", "x", None),
        preferred("q", "x", "y", "A", repeat=0),
        preferred("q", "y", "x", "B", repeat=1),
    ]
    assert duels(answers) == []
    (pair,) = pairs([], ["x", "y"], seed=0)
    assert pair == Pair("y", "x", None, 0, 0, 0)
    assert pair.verdict == "too few prompts"


def test_repeats_are_averaged_within_their_prompt() -> None:
    """A prompt with three repeats weighs as much as one with a single one."""
    won = [("p", repeat, "A", "B") for repeat in range(3)]
    answers = [
        preferred(prompt, *shown, verdict, repeat)
        for prompt, repeat, forward, backward in [*won, ("q", 0, "B", "A")]
        for shown, verdict in ((("x", "y"), forward), (("y", "x"), backward))
    ]
    (pair,) = pairs(duels(answers), ["y", "x"], seed=0)
    assert (pair.first, pair.second) == ("x", "y")
    assert pair.win_rate is not None
    assert (pair.win_rate.value, pair.win_rate.n) == (0.5, 2)
    assert (pair.wins, pair.ties, pair.losses) == (1, 0, 1)


def test_agreement_of_repeats() -> None:
    answers = [
        preferred("p", "x", "y", verdict, repeat)
        for repeat, verdict in enumerate(["A", "A", "tie", None, "A"])
    ]
    agreed = analysis.repeat_consistency(answers, seed=0)
    assert agreed is not None
    assert agreed.value == pytest.approx(2 / 3)
    assert analysis.repeat_consistency(answers[:1], seed=0) is None


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [
        (Estimate(0.6, 0.51, 0.7, 100), "x"),
        (Estimate(0.4, 0.3, 0.49, 100), "y"),
        (Estimate(0.6, 0.5, 0.7, 100), "not distinguishable"),
        (Estimate(0.5, 0.5, 0.5, 100), "not distinguishable"),
        (Estimate(0.9, 0.8, 1.0, MINIMUM_PROMPTS - 1), "too few prompts"),
        (Estimate(0.9, 0.8, 1.0, MINIMUM_PROMPTS), "x"),
        (None, "too few prompts"),
    ],
)
def test_verdicts(rate: Estimate | None, verdict: str) -> None:
    assert Pair("x", "y", rate, 0, 0, 0).verdict == verdict


@pytest.mark.parametrize("n", [1, 3, 50])
def test_unanimous_prompts_are_no_certainty(n: int) -> None:
    answers = [
        preferred(f"p{i}", *shown, verdict)
        for i in range(n)
        for shown, verdict in ((("x", "y"), "A"), (("y", "x"), "B"))
    ]
    exact = stats.binomtest(n, n).proportion_ci(0.95, method="exact")
    for names, expected in ((["y", "x"], (exact.low, 1.0)), (["x", "y"], (0.0, 1 - exact.low))):
        (pair,) = pairs(duels(answers), names, seed=0)
        assert pair.win_rate is not None
        low, high = pair.win_rate.ci_low, pair.win_rate.ci_high
        # Two closed forms of the same number in float64.
        assert (low, high) == pytest.approx(expected, abs=1e-12)


def test_scores_follow_the_images_not_the_positions() -> None:
    answers = [
        scored("p", ("16-bit", "x", "y"), (5, 3, 1)),
        scored("q", ("y", "16-bit", "x"), (1, 4, 3)),
        scored("q", ("x", "y", "16-bit"), (2, 1, 5), repeat=1),
    ]
    means = analysis.scores(answers, ["16-bit", "x", "y"], seed=0)
    values = {name: found["quality"].value for name, found in means.items() if found["quality"]}
    assert values == {"16-bit": 4.75, "x": 2.75, "y": 1.0}
    differences = analysis.score_differences(answers, ["16-bit", "x", "y"], "16-bit", seed=0)
    assert set(differences) == {"x", "y"}
    found = differences["x"]["alignment"]
    assert found is not None
    assert (found.value, found.n) == (-2.0, 2)
    assert (found.ci_low, found.ci_high) == (-2.0, -2.0)  # paired: both prompts say -2


def test_intervals_cover_the_truth_at_their_nominal_rate() -> None:
    """A judge that prefers x with probability 0.7, for one prompt in four with a tie in one order."""
    rng = np.random.default_rng(0)
    trials, prompts, covered = 200, 300, 0
    for seed in range(trials):
        likes, torn = rng.random(prompts) < 0.7, rng.random(prompts) < 0.25
        answers = []
        for i in range(prompts):
            answers.append(preferred(str(i), "x", "y", "A" if likes[i] else "B"))
            second = "tie" if torn[i] else ("B" if likes[i] else "A")
            answers.append(preferred(str(i), "y", "x", second))
        (pair,) = pairs(duels(answers), ["y", "x"], seed=seed)
        truth = 0.75 * 0.7 + 0.25 * (0.7 * 0.75 + 0.3 * 0.25)
        rate = pair.win_rate
        assert rate is not None
        assert rate.ci_low is not None
        assert rate.ci_high is not None
        covered += rate.ci_low <= truth <= rate.ci_high
    # Outside what a true rate of 95 % gives in all but 1 of 1,000 draws of 200: 179 to 198.
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, 0.95)
    assert low <= covered <= high
