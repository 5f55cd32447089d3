"""README's tables of speed and memory, made of the JSON of `experiments.bench`. Slower rows are in them as they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_KINDS = ("gemm", "attention", "rotate_quantize", "unpack", "elementwise", "other")
_GB = 1e9
OTHER_GPUS = (
    "GPUs with 4-bit tensor cores would multiply 4-bit operands directly: INT4 on Ada and before, FP4 on Blackwell. "
    "Nothing was measured there."
)


def layer_speeds(source: Path) -> str:
    """A row a shape, a column a precision; then what the passes of the FP8 products take alone."""
    content = _read(source)
    rows = _measured(content)
    way = "graph" if any("graph" in layer for row in rows for layer in row["layers"]) else "eager"
    names = list(dict.fromkeys(layer["layer"] for row in rows for layer in row["layers"]))
    lines = _head(["M x K x N", *names])
    for row in rows:
        found = {layer["layer"]: layer for layer in row["layers"]}
        cells = [_speed(found.get(name), way) for name in names]
        lines.append(_line([_shape(row), *cells]))
    rotated = ", `:hadamard` with a randomized Hadamard" if ":hadamard" in "".join(names) else ""
    below = [
        "Milliseconds a call and speed against bf16"
        + (", in CUDA graphs" if way == "graph" else ", launched by Python")
        + "; alternatives measured in turn. `:RANK` is with DiRotQ's compact transform and so many protected "
        f"coordinates (a share of the width below 1){rotated}.",
        *_errors(rows),
        OTHER_GPUS,
    ]
    below += [*_failures(content), "", _origin(content, source)]
    return "\n".join([*lines, "", *_parts(rows, way), *below]) + "\n"


def _parts(rows: Iterable[Row], way: str) -> list[str]:
    """A table of the passes, empty without any."""
    # bf16, too: launched by Python it can be quicker than in a graph.
    found = [
        (row, layer, row["parts"].get(layer["layer"], {}))
        for row in rows
        for layer in row["layers"]
        if len(row["parts"].get(layer["layer"], ())) > 1
        or (layer["layer"] == "bf16" and any(len(its) > 1 for its in row["parts"].values()))
    ]
    passes = list(dict.fromkeys(part for _, _, its in found for part in its))
    if not found:
        return []
    lines = _head(["M x K x N", "layer", *passes, "whole", "by Python", "bound"])
    for row, layer, its in found:
        cells = [_ms(its[part]["median_ms"]) if part in its else "-" for part in passes]
        bound = "-" if layer["bound_ms"] is None else _ms(layer["bound_ms"])
        whole = [_ms(layer[key]["median_ms"]) for key in (way, "eager")]
        lines.append(_line([_shape(row), f"`{layer['layer']}`", *cells, *whole, bound]))
    note = (
        "Milliseconds: each pass alone, the layer whole, and launched by Python one call after the other. Bound: bytes "
        "of the passes beside the product at the speed of a copy, and the product at the best rate measured, which "
        "other shapes can pass."
    )
    return [*lines, "", note, ""]


def _errors(rows: Iterable[Row]) -> list[str]:
    worst: dict[str, float] = {}
    for row in rows:
        for layer in row["layers"]:
            worst[layer["layer"]] = max(worst.get(layer["layer"], 0.0), layer["error"])
    said = ", ".join(f"`{name}` {1e3 * error:.2f}" for name, error in worst.items())
    return [
        "Relative error of a layer's outputs together against the float64 product of the same decoded operands, at the "
        f"worst of the shapes, in thousandths: {said}."
    ]


def model_speeds(source: Path) -> str:
    """A row for each precision and way to run it, by the size and number of images, the largest and fewest first."""
    content = _read(source)
    rows = sorted(_measured(content), key=lambda row: (-row["size"], row["batch"]))
    base = {
        (row["run"], row["size"], row["batch"]): row for row in rows if row["precision"] == "bf16"
    }
    several = len({(row["size"], row["batch"]) for row in rows}) > 1
    kinds = [
        kind
        for kind in _KINDS
        if any(kind in (row.get("kinds") or {}).get("ms", {}) for row in rows)
    ]
    titles = ["linears", "run", *(["pixels, batch"] if several else []), "ms", "10 % to 90 %"]
    titles += ["speed", "peak GB", "weights GB", *(kind.replace("_", " ") for kind in kinds)]
    lines = _head(titles)
    for row in rows:
        beside = base.get((row["run"], row["size"], row["batch"]))
        speed = f"{beside['median_ms'] / row['median_ms']:.2f}x" if beside else "-"
        times = (row.get("kinds") or {}).get("ms")
        cells = [f"`{row['precision']}`", row["run"]]
        cells += [f"{row['size']}, {row['batch']}"] if several else []
        cells += [f"{row['median_ms']:.1f}", f"{row['p10_ms']:.1f} to {row['p90_ms']:.1f}", speed]
        cells += [_gigabytes(row.get("peak_bytes")), _gigabytes(row["weight_bytes"])]
        cells += ["-" if times is None else f"{times.get(kind, 0.0):.1f}" for kind in kinds]
        lines.append(_line(cells))
    note = (
        "One forward of the transformer; speed against bf16 run in the same way; peak: most memory allocated during a "
        "forward, the model included."
        + (" The last columns divide one forward's kernels, in milliseconds." if kinds else "")
    )
    return "\n".join([*lines, "", note, *_failures(content), "", _origin(content, source)]) + "\n"


def offload_speeds(source: Path) -> str:
    """A row for each model and where its weights are."""
    content = _read(source)
    lines = _head(["linears", "weights", "GPU memory allowed", "ms", "peak GB", "weights GB"])
    for row in content["rows"]:
        if "failed" in row:
            lines.append(_line([f"`{row['name']}`", "-", "-", _short(row["failed"]), "-", "-"]))
            continue
        budget = "all" if row["budget_bytes"] is None else f"{row['budget_bytes'] / _GB:.0f} GB"
        sizes = [_gigabytes(row.get("peak_bytes")), _gigabytes(row["weight_bytes"])]
        cells = [f"`{row['precision']}`", row["mode"], budget, f"{row['median_ms']:.0f}", *sizes]
        lines.append(_line(cells))
    note = (
        "One forward of the transformer. resident: on the GPU; captured: there, replaying a CUDA graph; stream: "
        "diffusers' group offloading, which fetches the next block from pinned host memory meanwhile; sequential: "
        "accelerate's, module by module."
    )
    return "\n".join([*lines, "", note, "", _origin(content, source)]) + "\n"


def rank_costs(source: Path) -> str:
    """A row a rank: the layer and the block."""
    content = _read(source)
    rows = {"block" if row["name"] == "block" else "layer": row for row in _measured(content)}
    both = {kind: {one["layer"]: one for one in row["layers"]} for kind, row in rows.items()}
    names = list(dict.fromkeys(name for found in both.values() for name in found))
    lines = _head(["linears", "layer ms", "layer MB", "block ms", "block MB", "block peak MB"])
    for name in names:
        layer, block = (both.get(kind, {}).get(name) for kind in ("layer", "block"))
        cells = [_graph_or_eager(layer), _megabytes(layer, "weight_bytes"), _graph_or_eager(block)]
        cells += [_megabytes(block, "weight_bytes"), _megabytes(block, "peak_bytes")]
        lines.append(_line([f"`{name}`", *cells]))
    facts = []
    if "layer" in rows:
        facts.append(f"the layer {_shape(rows['layer'])} (M x K x N)")
    if "block" in rows:
        facts.append(f"the block `{rows['block']['block']}` at {rows['block']['tokens']} tokens")
    note = f"Milliseconds of {', and of '.join(facts)}. `:RANK` is the number of protected coordinates."
    return "\n".join([*lines, "", note, *_failures(content), "", _origin(content, source)]) + "\n"


def quantizing_costs(source: Path) -> str:
    """A row for each recipe of a document, or of all in a folder: seconds by stage, and memory."""
    sources = sorted(source.glob("*.json")) if source.is_dir() else [source]
    contents = [_read(each) for each in sources]
    rows = [row for content in contents for row in _measured(content)]
    stages = list(dict.fromkeys(stage for row in rows for stage in row.get("stages", {})))
    lines = _head(["recipe", "minutes", *stages, "saving", "GPU GB", "host GB", "checkpoint GB"])
    for row in rows:
        last = row["seconds_quantize"] if row["finished"] else row["seconds_so_far"]
        spent = last + sum(row.get("earlier_seconds", []))
        minutes = f"{spent / 60:.1f}"
        if not row["finished"]:
            minutes += f", {row['inputs_finished']} of {row['inputs']} inputs"
        cells = [
            f"{row['stages'][stage]:.0f}" if stage in row.get("stages", {}) else "-"
            for stage in stages
        ]
        cells.append(f"{row['save_seconds']:.0f}" if "save_seconds" in row else "-")
        cells += [
            _gigabytes(row.get(key)) for key in ("peak_bytes", "host_bytes", "checkpoint_bytes")
        ]
        lines.append(_line([f"`{row['name']}`", minutes, *cells]))
    taken = {(content["settings"]["records"], content["settings"]["size"]) for content in contents}
    if len(taken) > 1:
        raise ValueError(f"records and sizes of {source} are not alike: {sorted(taken)}")
    ((records, size),) = taken
    note = (
        f"{records} records at {size}² pixels. Stages in seconds, of the last part where a run was made in several; "
        "minutes are without saving."
    )
    failures = [line for content in contents for line in _failures(content)]
    each = zip(contents, sources, strict=True)
    origins = [line for content, path in each for line in ("", _origin(content, path))]
    return "\n".join([*lines, "", note, *failures, *origins]) + "\n"


def loading_costs(source: Path) -> str:
    """A row for each way to load a packed model: seconds, and memory beside what 16 bits would take."""
    content = _read(source)
    titles = ["linears", "by", "seconds", "GPU peak GB", "host GB", "file GB", "16-bit GB"]
    keys = ("peak_bytes", "host_bytes", "file_bytes", "bf16_bytes")
    lines = _head(titles)
    for row in _measured(content):
        sizes = [_gigabytes(row.get(key), 2) for key in keys]
        way = "dirotq.load" if row["way"] == "load" else "from_pretrained(device_map=)"
        cells = [f"`{row['precision']}`", f"`{way}`", f"{row['load_seconds']:.1f}", *sizes]
        lines.append(_line(cells))
    note = (
        "A new process, from nothing to the model on the device; the file, just written, is in the system's memory. "
        "GPU: most memory allocated. Host: growth of the process's own memory at its most, without the mapped file."
    )
    return "\n".join([*lines, "", note, *_failures(content), "", _origin(content, source)]) + "\n"


def _read(source: Path) -> Row:
    content: Row = json.loads(source.read_text(encoding="utf-8"))
    return content


def _measured(content: Row) -> list[Row]:
    return [row for row in content["rows"] if "failed" not in row]


def _failures(content: Row) -> list[str]:
    """What could not be measured or was left out, with the reason."""
    rows = content["rows"]
    reasons = {row["name"]: row["failed"] for row in rows if "failed" in row}
    reasons |= {
        f"{row['name']} {name}": why
        for row in rows
        for name, why in row.get("failed_layers", {}).items()
    }
    said = [f"`{name}`: {_short(why)}" for name, why in (reasons | content["left_out"]).items()]
    return ["", f"Not measured: {'; '.join(said)}."] if said else []


def _origin(content: Row, source: Path) -> str:
    env = content["env"]
    versions = ", ".join(
        f"{name} {env['versions'][name]}"
        for name in ("torch", "triton", "diffusers", "torchao")
        if env["versions"].get(name)
    )
    # Of rows before a file was continued, then its own.
    commits = dict.fromkeys(str(of.get("git") or env["git"]) for of in [*content["rows"], env])
    return (
        f"{env['device']}, {versions}, commit {' and '.join(commits)}, {content['weights']} weights "
        f"(`experiments/results/{_place(source)}`: `{content['command']}`)."
    )


def _place(source: Path) -> str:
    """Path under the folder of results, where it is in one."""
    *_, inside = source.as_posix().rpartition("/results/")
    return inside if inside != source.as_posix() else source.name


def _speed(layer: Row | None, way: str) -> str:
    if layer is None:
        return "-"
    time = _ms(layer[way]["median_ms"])
    speed = layer.get(f"speed_{way}")
    return time if layer["layer"] == "bf16" or speed is None else f"{time}, {speed:.2f}x"


def _graph_or_eager(row: Row | None) -> str:
    if row is None:
        return "-"
    way = "graph" if "graph" in row else "eager"
    return _ms(row[way]["median_ms"])


def _shape(row: Row) -> str:
    return f"{row['m']} x {row['k']} x {row['n']}"


def _ms(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}"


def _gigabytes(value: int | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value / _GB:.{digits}f}"


def _megabytes(row: Row | None, key: str) -> str:
    return "-" if row is None or row.get(key) is None else f"{row[key] / 1e6:.1f}"


def _short(message: str) -> str:
    """The first sentence, without what would end a table's cell."""
    return message.split(". ")[0].replace("|", "/")


def _head(titles: Sequence[str]) -> list[str]:
    return [_line(titles), "|" + "|".join(["---", *["---:"] * (len(titles) - 1)]) + "|"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
