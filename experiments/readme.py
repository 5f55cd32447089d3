"""Write README's result tables from the committed JSON files, or check that they are not stale.

python -m experiments.readme [--check]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dirotq.lab.results import Metric, Result, read_result

README = Path("README.md")
RESULTS = Path("experiments/results/emoji-standard")
LAYERS = Path("experiments/results/layers/six_and_a_half_bits.json")
BEGIN, END = "<!-- {}: begin -->\n", "<!-- {}: end -->\n"
COLUMNS = (
    ("PSNR dB ↑", "psnr", 2),
    ("SSIM ↑", "ssim", 3),
    ("emoji_perceptual ↓", "emoji_perceptual", 4),
    ("emoji_frechet ↓", "emoji_frechet", 3),
)


def main() -> None:
    """Rewrite the blocks between the markers; with --check, exit with status 1 if that would change them."""
    text = README.read_text(encoding="utf-8")
    wanted = with_tables(text)
    if "--check" in sys.argv[1:]:
        if text != wanted:
            sys.exit("README.md: the result tables do not agree with experiments/results")
    else:
        README.write_text(wanted, encoding="utf-8")


def with_tables(text: str) -> str:
    """README with the tables made anew."""
    for name, content in (("results", table()), ("layers", layer_table())):
        before, _, rest = text.partition(BEGIN.format(name))
        _, _, after = rest.partition(END.format(name))
        text = before + BEGIN.format(name) + content + END.format(name) + after
    return text


def layer_table() -> str:
    """Markdown table of layer errors, worst first, and where they were measured."""
    content = json.loads(LAYERS.read_text(encoding="utf-8"))
    lines = ["| recipe | bits W / A | error |", "|---|---|---|"]
    for row in sorted(content["rows"], key=lambda row: -row["error"]):
        bits = f"{row['weight_bits']:.2f} / {row['activation_bits']:.2f}"
        lines.append(f"| `{row['recipe']}` | {bits} | {row['error']:.4f} |")
    env, unseen = content["env"], content["unseen"]
    lines += [
        "",
        f"Mean over {content['rows'][0]['layers']} layers of the relative error of the output on {unseen['rows']} rows "
        f"of inputs from {unseen['prompts']} prompts that calibration did not see; w4a4_int4, trained weights, "
        f"simulated numerics, one seed, {env['device']}, commit {env['git']} (`{LAYERS}`).",
    ]
    return "\n".join(lines) + "\n"


def table() -> str:
    """Markdown table of every result of the folder, worst first, and where it was measured."""
    results = [read_result(path) for path in sorted(RESULTS.glob("*.json"))]
    results.sort(key=lambda result: result["metrics"]["psnr"]["value"])
    head = ["method", "rounding", "bits W / A", *(name for name, _, _ in COLUMNS)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(_row(result)) + " |" for result in results]
    return "\n".join(lines) + "\n\n" + _origin(results) + "\n"


def _row(result: Result) -> list[str]:
    bits = result["effective_bits"]
    metrics = result["metrics"]
    shown = [_cell(metrics[name], digits) for _, name, digits in COLUMNS]
    return [
        _label(result),
        str(result["rounding"]),
        f"{bits['weight']:.2f} / {bits['activation']:.2f}",
        *shown,
    ]


def _label(result: Result) -> str:
    """The method, and those of its settings that tell rows apart."""
    settings = {
        "{} rotation": result["rotation"],
        "{} basis": result["basis"] if result["basis"] != "pca" else None,
        "rank {}": result["rank"],
        "{} protected": result.get("protect") if result.get("protect") != "bf16" else None,
        "at most {:g} bits": result.get("budget"),
    }
    said = [text.format(value) for text, value in settings.items() if value]
    further = [
        f"`{word}`"
        for word in result.get("command", "").split()
        if word.startswith(("method.", "scale_search="))
    ]
    return ", ".join([result["method"], *said, *further])


def _cell(metric: Metric, digits: int) -> str:
    value, low, high = metric["value"], metric["ci_low"], metric["ci_high"]
    if low is None or high is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _origin(results: list[Result]) -> str:
    """Where the rows were measured; raises ValueError unless they agree on it."""
    shared = {
        (
            result["bits"],
            result["weights"],
            result["numerics"],
            result["prompts"]["n"],
            result["prompts"]["set"],
            result["env"]["device"],
            result["env"]["versions"]["torch"],
            result["env"]["git"],
        )
        for result in results
    }
    if len(shared) > 1:
        raise ValueError(
            f"{RESULTS}: the results were not measured alike: {sorted(map(str, shared))}"
        )
    bits, weights, numerics, n, prompts, device, version, commit = shared.pop()
    return (
        f"{bits}, {weights} weights, {numerics} numerics, N = {n} prompts ({prompts}), one seed, {device}, "
        f"torch {version}, commit {commit}; each row's command is in its file in `{RESULTS}`. Each metric is "
        "against the model's own 16-bit images, with its 95 % bootstrap interval over prompts."
    )


if __name__ == "__main__":
    main()
