"""What a vision-language model thought of runs: `judge.json` of dirotq.judge as tables beside the measured ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dirotq.judge.analysis import MINIMUM_PROMPTS
from dirotq.judge.report import read
from dirotq.judge.rubric import CRITERIA
from dirotq.judge.runs import REFERENCE
from dirotq.metrics.statistics import Estimate, distinguishable
from dirotq.report.cells import Cell, Column, Marked, Number, Table
from dirotq.report.differences import INDISTINGUISHABLE
from dirotq.report.render import text
from dirotq.report.rows import groups, label
from dirotq.report.runs import Run

_UNKNOWN = "judged, but not among the runs of this report"
_MISSING = "not judged: not among the runs of this judgement"
_FIELDS = ("model", "method", "bits", "rank", "rounding", "effective_bits", "weights")


def judge_tables(path: Path, runs: Sequence[Run], *, spread: bool = False) -> dict[str, Table]:
    """Scores of each candidate, and win rates of each pair of them, by heading.

    A candidate that is no run of the report is called as the judgement calls it and marked so; a run that was not
    judged has a row that says so.

    Args:
        path: judge.json, or its folder.
        runs: of the report.
        spread: columns for the runs' names, the judge and the prompt set, which the notes say otherwise.

    Raises:
        ValueError: not a judgement; names the file.
        OSError: it cannot be read.
    """
    content = read(path / "judge.json" if path.is_dir() else path)
    names = _Names.of(content, runs)
    facts: list[Cell] = [content["judge"], content["protocol"]["prompts"]["set"]] if spread else []
    titles = [Column("judge", "judge"), Column("prompts", "prompts")] if spread else []
    return {
        "Judge: scores": _beside(_scores(content, names, spread=spread), titles, facts),
        "Judge: pairs": _beside(_pairs(content, names), titles, facts),
    }


@dataclass(frozen=True)
class _Names:
    """What candidates are called in a report: rows by the judgement's name, and the runs that it does not have."""

    rows: Mapping[str, Cell]
    runs: Mapping[str, str]
    missing: Sequence[tuple[str, str]]

    @classmethod
    def of(cls, content: Mapping[str, Any], runs: Sequence[Run]) -> _Names:
        labels = {
            run.path: label(group) for group in groups(runs, each_seed=True) for run in group.runs
        }
        finished = [run for run in runs if run.result is not None]
        found: dict[str, list[Run]] = {}
        for one in content["candidates"]:
            same = [run for run in finished if _is(run, one)]
            # Copies of a run are the same run; the judged one is shown if it is there.
            found[one["name"]] = sorted(same, key=lambda run: _name(run) != one["name"])
        judged = {run.path for same in found.values() for run in same}
        times = Counter(labels[same[0].path] for same in found.values() if same)
        rows: dict[str, Cell] = {}
        for name, same in found.items():
            if same:
                said = labels[same[0].path]
                rows[name] = said if times[said] == 1 else f"{said} ({name})"
            else:
                rows[name] = name if name == REFERENCE else Marked(name, (_UNKNOWN,))
        missing = [(run.name, labels[run.path]) for run in finished if run.path not in judged]
        return cls(rows, {name: same[0].name for name, same in found.items() if same}, missing)


def _is(run: Run, candidate: Mapping[str, Any]) -> bool:
    """Whether the candidate is the run: by its identity, or by its name where one of the two does not have one."""
    result: Mapping[str, Any] = run.result or {}
    if any(name in candidate and result[name] != candidate[name] for name in _FIELDS):
        return False
    identity, other = result.get("config"), candidate["config"]
    if identity is not None and other is not None:
        return bool(identity == other)
    return candidate["name"] in (_name(run), REFERENCE)


def _name(run: Run) -> str:
    """The judge's name for a run, which the one in a report need not be."""
    path = run.path.resolve()
    return path.name if path.is_dir() else path.stem


def _scores(content: Mapping[str, Any], names: _Names, *, spread: bool) -> Table:
    columns = [Column("run", "run")] if spread else []
    columns += [Column("method", "method"), *(Column(one, f"{one} ↑") for one in CRITERIA)]
    lines: list[tuple[Cell, ...]] = []
    for name, shown in names.rows.items():
        scores, differences = content["scores"][name], content["score_differences"].get(name)
        cells = [_score(scores[one], differences and differences[one]) for one in CRITERIA]
        head: list[Cell] = [names.runs.get(name)] if spread else []
        lines.append((*head, shown, *cells))
    for name, shown in names.missing:
        head = [name] if spread else []
        lines.append((*head, shown, *[Marked("-", (_MISSING,))] * len(CRITERIA)))
    prompts, counts = content["protocol"]["prompts"], content["answers"]
    said = (
        f"Scores by {content['judge']}, 1 to 5, which saw unnamed images in shuffled order: N = {prompts['n']} prompts "
        f"of {prompts['set']}, {counts['asked']} questions, {counts['invalid']} invalid and {counts['failed']} failed "
        "answers left out; 95 % bootstrap intervals over prompts."
    )
    return Table(tuple(columns), tuple(lines), (said,))


def _pairs(content: Mapping[str, Any], names: _Names) -> Table:
    titles = {"first": "first", "second": "against", "win_rate": "win rate of the first"}
    titles |= {"wins": "won", "ties": "tied", "losses": "lost", "better": "better"}
    lines: list[tuple[Cell, ...]] = []
    for pair in content["pairs"]:
        verdict = pair["verdict"]
        named = verdict in (pair["first"], pair["second"])
        rate = _number(pair["win_rate"], 3, verdict="" if named else verdict)
        counts = [Number(pair[key], 0) for key in ("wins", "ties", "losses")]
        better = names.rows[verdict] if named else None
        lines.append((names.rows[pair["first"]], names.rows[pair["second"]], rate, *counts, better))
    bias, order = (
        text(_number(content[name], 2)) for name in ("position_bias", "order_consistency")
    )
    said = (
        f"Win rates as {content['judge']} has them, over N = {content['protocol']['prompts']['n']} prompts, ties half, "
        f"both orders of each pair; {INDISTINGUISHABLE}: the 95 % bootstrap interval covers one half; no verdict below "
        f"{MINIMUM_PROMPTS} prompts. Wins of the image shown first: {bias} (0.5: no position bias); same verdict in "
        f"both orders: {order}."
    )
    return Table(tuple(Column(key, title) for key, title in titles.items()), tuple(lines), (said,))


def _beside(table: Table, columns: Sequence[Column], cells: Sequence[Cell]) -> Table:
    """The table with the same further cells in every row."""
    rows = tuple((*row, *cells) for row in table.rows)
    return Table((*table.columns, *columns), rows, table.notes)


def _score(found: Mapping[str, Any] | None, difference: Mapping[str, Any] | None) -> Cell:
    """A mean score, and what its paired difference to that of the 16-bit images comes to."""
    marks: tuple[str, ...] = ()
    if difference is not None and not distinguishable(Estimate(**difference)):
        marks = (f"{INDISTINGUISHABLE} from the 16-bit images",)
    if difference is not None and difference["n"] < MINIMUM_PROMPTS:
        marks = ("too few prompts to tell it from the 16-bit images",)
    return _number(found, 2, marks=marks)


def _number(
    found: Mapping[str, Any] | None, digits: int, *, marks: tuple[str, ...] = (), verdict: str = ""
) -> Cell:
    if found is None:
        return Marked("-", ("no answer counts",))
    low, high = found["ci_low"], found["ci_high"]
    return Number(found["value"], digits, low, high, found["n"], marks, verdict)
