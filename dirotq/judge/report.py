"""``judge.json``, ``answers.csv`` and the table of a judgement."""

import csv
import hashlib
import importlib.resources
import io
import json
import shlex
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from dirotq.atomic import atomic_write_json, atomic_write_text
from dirotq.judge import analysis
from dirotq.judge.answers import Answer
from dirotq.judge.asking import ATTEMPTS
from dirotq.judge.protocol import Protocol, magnification, rubric_digest
from dirotq.judge.rubric import CRITERIA
from dirotq.judge.runs import REFERENCE, Panel
from dirotq.lab.results import environment, metric
from dirotq.metrics.statistics import Estimate

SCHEMA_VERSION = 1


def build(
    panel: Panel,
    protocol: Protocol,
    judge: str,
    answers: Sequence[Answer],
    device: torch.device,
) -> dict[str, Any]:
    """Content of ``judge.json``; ``judge.schema.json`` says what each field is.

    Args:
        panel: what was judged.
        protocol: how.
        judge: name of the client.
        answers: all, with those that failed.
        device: where a local judge ran; the CPU for an endpoint.
    """
    fought = analysis.duels(answers)
    seed = protocol.seed
    statuses = Counter(answer.outcome.status for answer in answers)
    means = analysis.scores(answers, panel.names, seed=seed)
    differences = analysis.score_differences(answers, panel.names, REFERENCE, seed=seed)
    return {
        "schema": SCHEMA_VERSION,
        "command": shlex.join(["dirotq-judge", *sys.argv[1:]]),
        "judge": judge,
        "protocol": described(panel, protocol),
        "candidates": [_candidate(panel, name) for name in panel.names],
        "answers": {
            "asked": len(answers),
            **{status: statuses[status] for status in ("valid", "invalid", "failed")},
            "repaired": sum(answer.valid and answer.outcome.attempts > 1 for answer in answers),
            "formats": dict(Counter(sorted(filter(None, (a.outcome.format for a in answers))))),
            "omitted": sorted({name for answer in answers for name in answer.outcome.omitted}),
        },
        "scores": {name: _metrics(means[name]) for name in panel.names},
        "score_differences": {name: _metrics(found) for name, found in differences.items()},
        "pairs": [
            {**asdict(pair), "win_rate": _metric(pair.win_rate), "verdict": pair.verdict}
            for pair in analysis.pairs(fought, panel.names, seed=seed)
        ],
        "position_bias": _metric(analysis.position_bias(fought, seed=seed)),
        "order_consistency": _metric(analysis.order_consistency(fought, seed=seed)),
        "repeat_consistency": _metric(analysis.repeat_consistency(answers, seed=seed)),
        "env": environment(device),
    }


def described(panel: Panel, protocol: Protocol) -> dict[str, Any]:
    """The protocol with what it came to on these images."""
    return {
        **asdict(protocol),
        "attempts": ATTEMPTS,
        "rubric": rubric_digest(),
        "prompts": {"set": panel.prompt_set, "n": len(panel.prompts)},
        "image_size": list(panel.size),
        "magnification": magnification(panel.size, protocol.minimum_side),
    }


def digest(panel: Panel, protocol: Protocol, judge: str) -> str:
    """Name (8 hex digits) for the results of this judge on these runs."""
    runs = [_candidate(panel, name) for name in panel.names]
    content = json.dumps([judge, described(panel, protocol), runs], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:8]


def write(folder: Path, report: Mapping[str, Any], answers: Sequence[Answer]) -> None:
    """Write ``answers.csv``, then ``judge.json``, each whole or not at all.

    Raises:
        OSError: the place cannot be written.
        ValueError: the report is not as ``judge.schema.json`` says; nothing is written.
    """
    _check(report)
    atomic_write_text(folder / "answers.csv", answer_table(answers))
    atomic_write_json(folder / "judge.json", report)


def read(path: Path) -> dict[str, Any]:
    """Read and check a ``judge.json``.

    Raises:
        OSError: the file cannot be read.
        ValueError: not JSON, or not as ``judge.schema.json`` says; names the file.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        _check(found)
    except ValueError as error:
        raise ValueError(f"{path}: no judgement of dirotq-judge ({error})") from error
    return found


def _check(report: Mapping[str, Any]) -> None:
    schema = importlib.resources.files("dirotq.judge").joinpath("judge.schema.json").read_bytes()
    for error in Draft202012Validator(json.loads(schema)).iter_errors(report):
        place = ".".join(map(str, error.absolute_path))
        raise ValueError(f"{place}: {error.message}" if place else error.message)


def answer_table(answers: Sequence[Answer]) -> str:
    """One row a question; images by position, the answer as JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["prompt", "kind", "repeat", "shown", "status", "attempts", "format", "answer", "error"]
    )
    for one in answers:
        question, outcome = one.question, one.outcome
        content = None if outcome.content is None else json.dumps(outcome.content)
        shown = json.dumps(question.shown, ensure_ascii=False)
        asked = [question.prompt, question.kind, question.repeat, shown]
        came = [outcome.status, outcome.attempts, outcome.format, content, outcome.error]
        writer.writerow([*asked, *came])
    return text.getvalue()


def table(report: Mapping[str, Any]) -> str:
    """What a reader wants to know first, for a terminal."""
    title = "scores, 1 to 5"
    width = max(len(text) for text in (title, *report["scores"]))
    prompts, counts = report["protocol"]["prompts"], report["answers"]
    lines = [
        f"{report['judge']} on {prompts['n']} prompts of {prompts['set']}: {counts['asked']} questions, "
        f"{counts['invalid']} invalid and {counts['failed']} failed answers left out",
        "",
        f"{title:{width}}  " + "  ".join(f"{name:<20}" for name in CRITERIA),
    ]
    for name, found in report["scores"].items():
        cells = "  ".join(f"{_cell(found[one], 2):<20}" for one in CRITERIA)
        lines.append(f"{name:{width}}  {cells}".rstrip())
    lines += ["", "win rate of the first, ties half"]
    for pair in report["pairs"]:
        who = f"{pair['first']:{width}} against {pair['second']:{width}}"
        counted = f"{pair['wins']} won, {pair['ties']} tied, {pair['losses']} lost"
        lines.append(f"{who}  {_cell(pair['win_rate'], 3)}  {counted}: {_verdict(pair['verdict'])}")
    lines += [
        "",
        f"first shown wins            {_cell(report['position_bias'], 3)}  (0.5: no position bias)",
        f"same verdict in both orders {_cell(report['order_consistency'], 3)}",
    ]
    if report["repeat_consistency"] is not None:
        lines.append(f"same verdict when repeated  {_cell(report['repeat_consistency'], 3)}")
    return "\n".join(lines)


def _verdict(verdict: str) -> str:
    plain = verdict in ("not distinguishable", "too few prompts")
    return verdict if plain else f"{verdict} is preferred"


def _candidate(panel: Panel, name: str) -> dict[str, Any]:
    """Which run stands behind a name."""
    result = next(one.result for one in panel.candidates if one.name == name)
    fields = ("model", "method", "bits", "rank", "rounding", "effective_bits", "weights")
    return {
        "name": name,
        **{field: result[field] for field in fields},  # type: ignore[literal-required]
        "config": result.get("config"),
    }


def _metrics(found: Mapping[str, Estimate | None]) -> dict[str, Any]:
    return {name: _metric(estimate) for name, estimate in found.items()}


def _metric(estimate: Estimate | None) -> Any:
    return None if estimate is None else metric(estimate)


def _cell(found: Mapping[str, Any] | None, digits: int) -> str:
    """Value and interval; a dash where nothing was answered."""
    if found is None:
        return "-"
    value = f"{found['value']:.{digits}f}"
    if found["ci_low"] is None:
        return value
    return f"{value} [{found['ci_low']:.{digits}f}, {found['ci_high']:.{digits}f}]"
