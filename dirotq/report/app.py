"""The command line of reports: `dirotq-report` and `python experiments/report.py`."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image

from dirotq.atomic import atomic_write_text
from dirotq.lab.pictures import save_png
from dirotq.report.blocks import refreshed
from dirotq.report.cells import Table
from dirotq.report.differences import differences_table
from dirotq.report.images import image_grid
from dirotq.report.judgements import judge_tables
from dirotq.report.metrics import ordered
from dirotq.report.published import TABLES, load_published
from dirotq.report.render import FORMATS
from dirotq.report.runs import NoDataError, Run, find_runs
from dirotq.report.tables import results_table

if TYPE_CHECKING:  # matplotlib is an extra; tables do without it
    from matplotlib.figure import Figure

_README = Path("README.md")


def main(arguments: Sequence[str] | None = None) -> None:
    """Report on runs, or check README; bad input ends in one line on stderr and exit status 1."""
    options = _parser().parse_args(arguments)
    try:
        if options.check or options.write:
            _check(write=options.write)
        else:
            _report(options)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dirotq-report", description="Tables, plots, grids and a page of runs and sweeps."
    )
    add = parser.add_argument
    add(
        "words",
        nargs="*",
        metavar="PATH|KEY=VALUE",
        help="run directories, sweeps, result files; settings as for dirotq, such as sweep=rank",
    )
    add("--format", choices=[*FORMATS, "html"], default="terminal", help="default: terminal")
    add("--out", type=Path, metavar="FOLDER", help="write files there, not to the terminal")
    add("--plots", action="store_true", help="draw the plots that the runs have data for")
    add("--grid", action="store_true", help="images of the runs beside the 16-bit ones")
    add(
        "--baseline",
        metavar="RUN",
        help="a run, by its path or name, to take paired differences to",
    )
    add("--paper", metavar="NAME", help=f"published numbers beside ours: a table of {TABLES}")
    add(
        "--judge", type=Path, metavar="FILE", help="scores and win rates: dirotq-judge's judge.json"
    )
    add("--metrics", metavar="NAME,...", help="only these columns")
    add("--each-seed", action="store_true", help="a row for each seed, not their mean")
    add("--check", action="store_true", help="check README's tables against experiments/results")
    add("--write", action="store_true", help="write README's tables anew")
    return parser


def _check(*, write: bool) -> None:
    text = _README.read_text(encoding="utf-8")
    wanted = refreshed(text)
    if text == wanted:
        return
    if not write:
        raise ValueError(
            f"{_README}: its tables do not agree with experiments/results; dirotq-report --write"
        )
    atomic_write_text(_README, wanted)


def _report(options: argparse.Namespace) -> None:
    if not options.words:
        raise ValueError("PATH: name at least one run, sweep or result file, or settings")
    if (options.plots or options.format == "html") and find_spec("matplotlib") is None:
        raise ValueError("plots and pages need matplotlib: pip install 'dirotq[lab]'")
    runs = _found(options.words)
    metrics = _metrics(runs, options.metrics)
    tables = {"Results": _results(runs, metrics, options)}
    if options.baseline is not None:
        baseline = _find(runs, options.baseline)
        tables["Differences"] = differences_table(runs, baseline, metrics=metrics)
    if options.judge is not None:
        tables |= judge_tables(options.judge, runs, spread=_spread(options))
    if options.format == "html":
        _html(runs, tables, metrics, options)
        return
    ending, render = FORMATS[options.format]
    text = "\n".join(render(table) for table in tables.values())
    if options.out is None:
        sys.stdout.write(text)
    else:
        _write(options.out / f"table.{ending}", text)
    if options.plots or options.grid:
        _pictures(runs, metrics, options)


def _found(words: Sequence[str]) -> list[Run]:
    """Runs under the paths, then those that the settings name; ValueError if there are none."""
    presets = [word for word in words if _is_preset(word)]
    runs = find_runs([word for word in words if word not in presets])
    if not presets:
        return runs
    # Brings diffusers, which takes seconds to import.
    from dirotq.report.presets import how_to_run, named_runs

    logging.disable(logging.WARNING)  # what dirotq says of settings without use, it has said
    try:
        named = named_runs(presets)
    finally:
        logging.disable(logging.NOTSET)
    if not any(run.result for run in [*runs, *named]):
        raise ValueError(how_to_run(presets, named))
    known = {run.path.resolve() for run in runs}
    return [*runs, *(run for run in named if run.path.resolve() not in known)]


def _is_preset(word: str) -> bool:
    """Whether a word is a setting and not a path, of which no key but Hydra's own has the slashes."""
    return bool(re.match(r"(\W*hydra/)?[^/=]+=", word)) and not Path(word).exists()


def _metrics(runs: Sequence[Run], asked: str | None) -> list[str] | None:
    """The metrics that `--metrics` names, None for all; ValueError for one that no run has."""
    if asked is None:
        return None
    known = ordered({name for run in runs if run.result for name in run.result["metrics"]})
    for name in asked.split(","):
        if name not in known:
            raise ValueError(f"metrics={name}: allowed are {', '.join(known)}")
    return asked.split(",")


def _html(
    runs: Sequence[Run],
    tables: Mapping[str, Table],
    metrics: Sequence[str] | None,
    options: argparse.Namespace,
) -> None:
    """The page, with all plots and the grid."""
    from dirotq.report.page import page

    plots, missing = _plots(runs, metrics)
    picture = _grid(runs, missing)
    names = [word if _is_preset(word) else Path(word).resolve().name for word in options.words]
    _write(
        _out(options) / "report.html", page(", ".join(names), runs, tables, plots, picture, missing)
    )


def _pictures(
    runs: Sequence[Run], metrics: Sequence[str] | None, options: argparse.Namespace
) -> None:
    """Plots as PNG and SVG, the grid as PNG."""
    missing: list[str] = []
    if options.plots:
        from dirotq.report.figures import save

        plots, missing = _plots(runs, metrics)
        for name, figure in plots.items():
            for path in save(figure, _out(options) / name):
                _say(str(path))
    picture = _grid(runs, missing) if options.grid else None
    if picture is not None:
        save_png(picture, _out(options) / "images.png")
        _say(str(_out(options) / "images.png"))
    for line in missing:
        _say(line)


def _plots(
    runs: Sequence[Run], metrics: Sequence[str] | None
) -> tuple[dict[str, Figure], list[str]]:
    """Plots of the metrics, or of the first one, and a line for each that could not be drawn."""
    from dirotq.report.plots import drawn

    measured = {name for run in runs if run.result for name in run.result["metrics"]}
    return drawn(runs, metrics or ordered(measured)[:1])


def _grid(runs: Sequence[Run], missing: list[str]) -> Image | None:
    """The grid of images; None, and a line more in ``missing``, if it cannot be drawn."""
    try:
        return image_grid(runs)
    except NoDataError as reason:
        missing.append(f"images: not drawn; {reason}")
        return None


def _results(
    runs: Sequence[Run], metrics: Sequence[str] | None, options: argparse.Namespace
) -> Table:
    known = {path.stem for path in TABLES.glob("*.yaml")}
    named = {run.result["model"] for run in runs if run.result and run.result["paper"]}
    return results_table(
        runs,
        metrics=metrics,
        published=load_published(options.paper) if options.paper else None,
        tables={name: load_published(name) for name in sorted(named & known)},
        each_seed=options.each_seed,
        spread=_spread(options),
    )


def _spread(options: argparse.Namespace) -> bool:
    """Whether the format is for machines, or wide enough, to have a column for everything."""
    return options.format in ("csv", "html")


def _find(runs: Sequence[Run], name: str) -> Run:
    """A run among those of the report by its name, or any by its path."""
    for run in runs:
        if run.name == name and run.result is not None:
            return run
    found = find_runs([Path(name)])
    if len(found) != 1 or found[0].result is None:
        raise ValueError(f"baseline={name}: holds {len(found)} runs, name one that is finished")
    return found[0]


def _out(options: argparse.Namespace) -> Path:
    return options.out or Path("outputs/report")


def _write(path: Path, text: str) -> None:
    atomic_write_text(path, text)
    _say(str(path))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
