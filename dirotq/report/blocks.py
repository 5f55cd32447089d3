"""README's tables: made from the committed results, between markers, so that they can be checked and made anew.

A block is a name, a file or folder under experiments/results, and a layout; README holds it between the lines
`<!-- name: begin -->` and `<!-- name: end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dirotq.report import benches
from dirotq.report.cells import Table
from dirotq.report.kernel_images import kernel_images
from dirotq.report.render import markdown
from dirotq.report.rows import describe, groups, origins, rank_order
from dirotq.report.runs import Run, find_runs
from dirotq.report.tables import pivot, results_table

RESULTS = Path("experiments/results")

Layout = Callable[[Path], str]


@dataclass(frozen=True)
class Block:
    """``source`` is under experiments/results; ``layout`` makes Markdown of what is there."""

    name: str
    source: str
    layout: Layout


def refreshed(text: str, root: Path = Path()) -> str:
    """``text`` with every block between its markers made anew from the results under ``root``.

    Raises:
        ValueError: markers that do not pair or name no block, a source that is not there, or rows that were not
            measured alike; the message names the block.
    """
    known = {block.name: block for block in BLOCKS}
    for name in re.findall(r"^<!-- (\w+): (?:begin|end) -->$", text, flags=re.MULTILINE):
        if name not in known:
            raise ValueError(f"README block {name}: there is none; there are {', '.join(known)}")
    for block in BLOCKS:
        begin, end = f"<!-- {block.name}: begin -->\n", f"<!-- {block.name}: end -->\n"
        if (text.count(begin), text.count(end)) == (0, 0):
            continue
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found or begin in rest or end in after:
            raise ValueError(f"README block {block.name}: needs one begin and one end after it")
        source = root / RESULTS / block.source
        if not source.exists():
            raise ValueError(f"README block {block.name}: {RESULTS / block.source} is not there")
        try:
            content = block.layout(source)
        except ValueError as error:
            raise ValueError(f"README block {block.name}: {error}") from None
        text = before + begin + content + end + after
    return text


def _rows(source: Path, *, order: str, metrics: Sequence[str]) -> str:
    """A row a run, with these metrics."""
    runs = _sorted(find_runs([source]), order)
    return _with_origin(results_table(runs, metrics=metrics), runs, source)


def _pivot(source: Path, *, order: str, columns: str, metric: str) -> str:
    """One metric, a column for each value of a setting."""
    runs = _sorted(find_runs([source]), order, columns)
    return _with_origin(
        pivot(runs, columns=columns, metric=metric, each_commit=False), runs, source
    )


def _layer_errors(source: Path) -> str:
    """Layer errors of experiments/layer_error.py, worst first."""
    content = json.loads(source.read_text(encoding="utf-8"))
    lines = ["| recipe | bits W | bits A | error |", "|---|---:|---:|---:|"]
    for row in sorted(content["rows"], key=lambda row: -row["error"]):
        bits = f"{row['weight_bits']:.2f} | {row['activation_bits']:.2f}"
        lines.append(f"| `{row['recipe']}` | {bits} | {row['error']:.4f} |")
    env, unseen = content["env"], content["unseen"]
    lines += [
        "",
        f"Mean over {content['rows'][0]['layers']} layers of the relative error of the output on {unseen['rows']} rows "
        f"of inputs from {unseen['prompts']} prompts that calibration did not see; w4a4_int4, trained weights, "
        f"simulated numerics, one seed, {env['device']}, torch {env['versions']['torch']}, commit {env['git']} "
        f"(`{RESULTS / 'layers' / source.name}`).",
    ]
    return "\n".join(lines) + "\n"


def _paired(source: Path, *, baseline: str) -> str:
    """Paired differences of experiments/compare.py against runs whose name holds ``baseline``."""
    content = json.loads(source.read_text(encoding="utf-8"))
    lines = [
        "| run | minus | bits W | N | PSNR dB ↑ | SSIM ↑ | emoji_perceptual ↓ |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in content["rows"]:
        run, other, found = row["run"], row["baseline"], row["differences"]
        if baseline not in other["name"]:
            continue
        cells = [
            f"{f['value']:+.{digits}f} [{f['ci_low']:+.{digits}f}, {f['ci_high']:+.{digits}f}]"
            + ("" if f["distinguishable"] else ", not distinguishable")
            for f, digits in (
                (found[n], d) for n, d in (("psnr", 2), ("ssim", 4), ("emoji_perceptual", 5))
            )
        ]
        bits = f"{run['bits']['weight']:.2f} against {other['bits']['weight']:.2f}"
        head = [f"`{run['name']}`", f"`{other['name']}`", bits, str(found["psnr"]["n"])]
        lines.append("| " + " | ".join([*head, *cells]) + " |")
    lines += ["", f"Paired by prompt, 95 % bootstrap intervals (`{RESULTS / source.name}`)."]
    return "\n".join(lines) + "\n"


def _with_origin(table: Table, runs: Sequence[Run], source: Path) -> str:
    """The table in Markdown, with a line on where it was measured; ValueError unless all rows were measured alike."""
    rows = groups(runs, each_commit=False)
    shared, varying = origins(rows)
    # A table may take more than one sitting; its line names every commit.
    commits = sorted({str(result["env"]["git"]) for group in rows for result in group.results})
    varying = [name for name in varying if name != "commit"]
    if varying:
        raise ValueError(f"the rows of {source.name} were not measured alike: {varying[0]} differs")
    results = [result for group in rows for result in group.results]
    formats = {result["bits"] for result in results}
    seeds = sorted({result["seed"] for result in results})
    facts = {name: text for name, text in shared.items() if name != "seed"}
    facts["commit"] = " and ".join(commits)
    one = "one seed" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    said = (
        f"{f'{formats.pop()}, ' if len(formats) == 1 else ''}{describe(facts)}, {one}; each row's command is in its "
        f"file in `{RESULTS / source.name}`. Each metric is against the model's own 16-bit images, with its 95 % "
        f"bootstrap interval over prompts{'' if len(seeds) == 1 else ' unless marked'}."
    )
    return markdown(replace(table, notes=(said,)))


def _sorted(runs: Sequence[Run], order: str, then: str = "") -> list[Run]:
    """By a metric or the rank; rows alike in it by another setting."""

    def key(run: Run) -> tuple[tuple[bool, float], str]:
        assert run.result is not None  # results are files, and files are finished runs
        metric = run.result["metrics"].get(order)
        settings = run.settings
        number = (False, metric["value"]) if metric else rank_order(float(settings[order] or 0))
        return number, settings.get(then) or ""

    return sorted(runs, key=key)


_METRICS = ("psnr", "ssim", "emoji_perceptual", "emoji_frechet")
BLOCKS = (
    Block("results", "emoji-standard", partial(_rows, order="psnr", metrics=_METRICS)),
    Block("layers", "layers/six_and_a_half_bits.json", _layer_errors),
    Block("methods", "emoji-full", partial(_pivot, order="psnr", columns="bits", metric="psnr")),
    Block("paired", "paired.json", partial(_paired, baseline="svdquant")),
    Block("rank", "rank", partial(_pivot, order="rank", columns="basis", metric="psnr")),
    Block(
        "basis_rotation",
        "basis_rotation",
        partial(_rows, order="psnr", metrics=("psnr", "ssim", "emoji_perceptual")),
    ),
    Block("bits", "bits", partial(_rows, order="psnr", metrics=_METRICS)),
    Block("kernel_images", "kernels", kernel_images),
    Block("bench_layers", "bench/layer_flux.json", benches.layer_speeds),
    Block("bench_layers_pixart", "bench/layer_pixart.json", benches.layer_speeds),
    Block("bench_layers_sana", "bench/layer_sana.json", benches.layer_speeds),
    Block("bench_model", "bench/flux.json", benches.model_speeds),
    Block("bench_model_pixart", "bench/pixart.json", benches.model_speeds),
    Block("bench_model_sana", "bench/sana.json", benches.model_speeds),
    Block("bench_load", "bench/load_flux.json", benches.loading_costs),
    Block("bench_offload", "bench/offload.json", benches.offload_speeds),
    Block("bench_rank", "bench/rank.json", benches.rank_costs),
    Block("bench_quantize", "bench/quantize", benches.quantizing_costs),
)
