"""From runs to rows: runs that differ in their seed alone are one row, called by what tells it from the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dirotq.lab.results import Metric, Result
from dirotq.report.cells import Cell, Marked, Number
from dirotq.report.metrics import shown
from dirotq.report.runs import Run, differing

_PHRASES = {
    "bits": "{}",
    "rank": "rank {}",
    "budget": "at most {} bits",
    "basis": "{} basis",
    "rotation": "{} rotation",
    "protect": "{} protected",
    "rounding": "{} rounding",
}
_PAPER = {"basis": "pca", "protect": "bf16"}


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in nothing but the seed, or not at all; ``settings`` are those that tell groups apart.

    Runs do not differ at all where a sweep varies what a method has no use for.
    """

    runs: tuple[Run, ...]
    settings: Mapping[str, str | None]

    @property
    def results(self) -> list[Result]:
        """Result of each seed."""
        by_seed: dict[int, Result] = {}
        for run in self.runs:
            if run.result is not None:
                by_seed.setdefault(run.result["seed"], run.result)
        return list(by_seed.values())

    @property
    def first(self) -> Result:
        """The result that stands for what all seeds share."""
        return self.results[0]


def groups(
    runs: Sequence[Run], *, each_seed: bool = False, each_commit: bool = True
) -> list[Group]:
    """Rows of a table, in the order of the runs.

    Runs measured differently are never one row, nor are those of one seed with different metrics; and if ``each_seed``,
    those of different seeds, if ``each_commit`` those of different commits.
    """
    apart = {"seed"} if each_commit else {"seed", "commit"}
    names = differing(runs)
    found: dict[str, list[Run]] = {}
    for number, run in enumerate(runs):
        if run.result is None:
            continue
        settings, seed = run.settings, run.result["seed"]
        alike = {name: text for name, text in origin(run.result).items() if name not in apart}
        told = [run.result["method"], alike, [settings.get(name) for name in names]]
        key = str([told, seed if each_seed else None])
        same = [other.result for other in found.get(key, []) if other.result]
        if any(o["seed"] == seed and o["metrics"] != run.result["metrics"] for o in same):
            key += str(number)
        found.setdefault(key, []).append(run)
    rows = []
    for members in found.values():
        settings = members[0].settings
        rows.append(Group(tuple(members), {name: settings.get(name) for name in names}))
    return rows


def rank_order(rank: float) -> tuple[bool, float]:
    """Sorting key of ranks: coordinates, then shares of the input width, which are no number of coordinates."""
    return 0 < rank < 1, rank


def origin(result: Result) -> dict[str, str]:
    """What decides whether two results can be compared, as text."""
    prompts = result.get("prompts")
    return {
        "model": result["model"],
        "weights": result["weights"],
        "numerics": result["numerics"],
        "N": str(prompts["n"]) if prompts else "not recorded",
        "prompts": prompts["set"] if prompts else "not recorded",
        "seed": str(result["seed"]),
        "device": result["env"]["device"],
        "torch": result["env"]["versions"]["torch"] or "not recorded",
        "commit": result["env"]["git"] or "not recorded",
    }


def origins(rows: Sequence[Group]) -> tuple[dict[str, str], list[str]]:
    """The facts of :func:`origin` that all runs share, and the names of the others."""
    found: dict[str, set[str]] = {}
    for group in rows:
        for result in group.results:
            for name, text in origin(result).items():
                found.setdefault(name, set()).add(text)
    alike = {name: min(texts) for name, texts in found.items() if len(texts) == 1}
    several = any(len(group.results) > 1 for group in rows)
    varying = [name for name in found if name not in alike and not (name == "seed" and several)]
    return alike, varying


def describe(facts: Mapping[str, str]) -> str:
    """Facts of :func:`origin` in one line."""
    phrases = {
        "weights": "{} weights",
        "numerics": "{} numerics",
        "N": "N = {} prompts",
        "prompts": "prompt set {}",
        "seed": "seed {}",
        "torch": "torch {}",
        "commit": "commit {}",
    }
    return ", ".join(phrases.get(name, "{}").format(text) for name, text in facts.items())


def label(group: Group, *, leave_out: Sequence[str] = (), brief: bool = False) -> str:
    """The method, and those of its settings that tell rows apart.

    ``leave_out`` are settings with a column of their own; ``brief`` leaves the paper's basis and protection unsaid.
    """
    said = [group.first["method"]]
    for name, text in group.settings.items():
        if name in leave_out or text is None or (brief and _PAPER.get(name) == text):
            continue
        said.append(_PHRASES[name].format(text) if name in _PHRASES else f"{name}={text}")
    return ", ".join(said)


def measured(group: Group, name: str) -> Cell:
    """A metric of a row: value and interval over prompts, or mean and range over seeds; None if it was not measured."""
    digits = shown(name).digits
    found: list[Metric] = [r["metrics"][name] for r in group.results if name in r["metrics"]]
    if not found:
        reason = left_out(group.first).get(name)
        return None if reason is None else Marked("-", (f"left out: {reason}",))
    if len(found) == 1:
        one, floor = found[0], group.first.get("noise_floor", {}).get(name)
        said = "not distinguishable from drawing the 16-bit images again in batches of another size"
        marks = (said,) if floor is not None and floor["distinguishable"] is False else ()
        return Number(one["value"], digits, one["ci_low"], one["ci_high"], one["n"], marks)
    values = [one["value"] for one in found]
    mark = f"mean [least, largest] over {len(values)} seeds"
    low, high, n = min(values), max(values), found[0]["n"]
    return Number(sum(values) / len(values), digits, low, high, n, marks=(mark,))


def left_out(result: Result) -> Mapping[str, str]:
    """Metrics that were asked for and could not be had, with the reason."""
    return result.get("left_out", {})


def unfinished(runs: Sequence[Run]) -> tuple[tuple[str, str, str], ...]:
    """Job, its overrides, and what became of it, for every job without a result."""
    return tuple(
        (
            run.name,
            " ".join(run.overrides),
            f"{run.status}: {run.error}" if run.error else run.status,
        )
        for run in runs
        if run.result is None
    )
