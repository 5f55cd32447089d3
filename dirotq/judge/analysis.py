"""From answers to scores, win rates, position bias and consistency, with intervals over prompts.

Prompts are the clusters: what is measured is averaged within each, and prompts are resampled.
A preference counts only where both orders of a pair were answered, so that a liking for a
position, however strong, cancels in the win rate. Ties count half everywhere.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from dirotq.judge.answers import Answer
from dirotq.judge.rubric import CRITERIA, LABELS
from dirotq.metrics.statistics import Estimate, bootstrap_mean

MINIMUM_PROMPTS = 12
"""Fewest prompts for a verdict. For a judge without a preference whose pairs are worth 0 to 1 in
quarters alike, the 95 % bootstrap interval excludes one half in 7 % of cases at 12 prompts, 17 % at 4."""

_LEVEL = 0.95
_VALUE = {"A": 1.0, "tie": 0.5, "B": 0.0}


@dataclass(frozen=True)
class Duel:
    """Both orders of a pair, once. first, second: the names, sorted.

    forward: 1 if the image shown first won when that was ``first``, 0.5 for a tie, 0 if it lost;
    backward: the same when that was ``second``.
    """

    prompt: str
    repeat: int
    first: str
    second: str
    forward: float
    backward: float

    @property
    def win(self) -> float:
        """Value of the pair for ``first``: 0, 0.25, 0.5, 0.75 or 1."""
        return (self.forward + 1 - self.backward) / 2

    @property
    def lead(self) -> float:
        """Value of the pair for the image shown first, whichever it was."""
        return (self.forward + self.backward) / 2

    @property
    def same(self) -> float:
        """1 if both orders have the same verdict, else 0."""
        return float(self.forward == 1 - self.backward)


@dataclass(frozen=True)
class Pair:
    """How ``first`` does against ``second``.

    win_rate: share of prompts that it wins, ties half; None without any. wins, ties, losses:
    prompts by whether its value is above, at or below one half.
    """

    first: str
    second: str
    win_rate: Estimate | None
    wins: int
    ties: int
    losses: int

    @property
    def verdict(self) -> str:
        """Name of the better one, `not distinguishable` or `too few prompts`."""
        rate = self.win_rate
        if rate is None or rate.n < MINIMUM_PROMPTS or rate.ci_low is None or rate.ci_high is None:
            return "too few prompts"
        if rate.ci_low <= 0.5 <= rate.ci_high:
            return "not distinguishable"
        return self.first if rate.value > 0.5 else self.second


def duels(answers: Iterable[Answer]) -> list[Duel]:
    """Pairs of which both orders were answered."""
    values: dict[tuple[str, int, tuple[str, ...]], float] = {}
    for answer in answers:
        content, question = answer.outcome.content, answer.question
        if question.kind == "preference" and content is not None:
            key = (question.prompt, question.repeat, question.shown)
            values[key] = _VALUE[content["preference"]]
    found = []
    for (prompt, repeat, shown), forward in values.items():
        backward = values.get((prompt, repeat, shown[::-1]))
        if backward is not None and shown[0] < shown[1]:
            found.append(Duel(prompt, repeat, shown[0], shown[1], forward, backward))
    return found


def pairs(fought: Sequence[Duel], names: Sequence[str], *, seed: int) -> list[Pair]:
    """Every pair of names; the first of a pair is the one that stands later in ``names``.

    So with the reference first in ``names``, win rates against it are the candidates'.
    """
    found = []
    for second, first in combinations(names, 2):
        values = [
            (duel.prompt, duel.win if duel.first == first else 1 - duel.win)
            for duel in fought
            if {duel.first, duel.second} == {first, second}
        ]
        means = np.array(list(_by_prompt(values).values()))
        found.append(
            Pair(
                first,
                second,
                _share(means.tolist(), seed),
                int((means > 0.5).sum()),
                int((means == 0.5).sum()),
                int((means < 0.5).sum()),
            )
        )
    return found


def position_bias(fought: Sequence[Duel], *, seed: int) -> Estimate | None:
    """Rate at which the image shown first wins; one half without a bias, as both orders count."""
    return _clustered(((duel.prompt, duel.lead) for duel in fought), seed)


def order_consistency(fought: Sequence[Duel], *, seed: int) -> Estimate | None:
    """Share of pairs that have the same verdict in both orders."""
    return _clustered(((duel.prompt, duel.same) for duel in fought), seed)


def repeat_consistency(answers: Iterable[Answer], *, seed: int) -> Estimate | None:
    """Share of repeated preferences that are as the first time; None without repeats."""
    asked: dict[tuple[str, tuple[str, ...]], dict[int, str]] = defaultdict(dict)
    for answer in answers:
        content, question = answer.outcome.content, answer.question
        if question.kind == "preference" and content is not None:
            asked[question.prompt, question.shown][question.repeat] = content["preference"]
    same = [
        (prompt, float(verdict == verdicts[0]))
        for (prompt, _), verdicts in asked.items()
        for repeat, verdict in verdicts.items()
        if repeat > 0 and 0 in verdicts
    ]
    return _clustered(same, seed)


def scores(
    answers: Iterable[Answer], names: Sequence[str], *, seed: int
) -> dict[str, dict[str, Estimate | None]]:
    """Mean scores by name and criterion."""
    values = _score_values(answers)
    return {name: {one: _clustered(values[name, one], seed) for one in CRITERIA} for name in names}


def score_differences(
    answers: Iterable[Answer], names: Sequence[str], reference: str, *, seed: int
) -> dict[str, dict[str, Estimate | None]]:
    """Mean scores minus the reference's, by name and criterion, paired by prompt."""
    values = _score_values(answers)
    found: dict[str, dict[str, Estimate | None]] = {}
    for name in names:
        if name != reference:
            found[name] = {}
            for one in CRITERIA:
                # A scoring answer has every image, so the two lists are of the same answers.
                both = zip(values[name, one], values[reference, one], strict=True)
                paired = [(prompt, ours - theirs) for (prompt, ours), (_, theirs) in both]
                found[name][one] = _clustered(paired, seed)
    return found


def _score_values(answers: Iterable[Answer]) -> Mapping[tuple[str, str], list[tuple[str, float]]]:
    """Prompt and score of every valid scoring answer, by name and criterion."""
    values: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for answer in answers:
        content, question = answer.outcome.content, answer.question
        if question.kind == "scores" and content is not None:
            for label, name in zip(LABELS, question.shown, strict=False):
                for one in CRITERIA:
                    values[name, one].append((question.prompt, float(content[label][one])))
    return values


def _clustered(values: Iterable[tuple[str, float]], seed: int) -> Estimate | None:
    """Mean over prompts of the means within each; None without values."""
    means = list(_by_prompt(values).values())
    return bootstrap_mean(means, seed=seed, level=_LEVEL) if means else None


def _by_prompt(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Mean of each prompt's values."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for prompt, value in values:
        grouped[prompt].append(value)
    return {prompt: float(np.mean(group)) for prompt, group in grouped.items()}


def _share(means: Sequence[float], seed: int) -> Estimate | None:
    """Mean of numbers from 0 to 1 with an interval.

    Where all are won or all are lost, resamples do not vary and would claim certainty; the
    interval is then the exact binomial one (Clopper and Pearson, 1934).
    """
    if not means:
        return None
    n, tail = len(means), (1 - _LEVEL) / 2
    if all(value == 1 for value in means):
        return Estimate(1.0, float(tail ** (1 / n)), 1.0, n)
    if all(value == 0 for value in means):
        return Estimate(0.0, 0.0, 1 - float(tail ** (1 / n)), n)
    return bootstrap_mean(means, seed=seed, level=_LEVEL)
