"""What the benchmarks beside the kernels share: medians, the speed of a copy, and the document they write. GPU only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from dirotq_kernels.launching import ceil_div

_COLD = 1 << 28  # bytes, several times what an H100 caches


def copies(nbytes: int) -> int:
    """How many inputs of so many bytes are to take turns, so that none is in a cache when its turn comes again."""
    return max(2, ceil_div(_COLD, nbytes))


def median(run: Callable[[], Any]) -> float:
    """Median microseconds of a call."""
    return round(1000 * float(triton.testing.do_bench(run, return_mode="median")), 2)


def timed(calls: Sequence[Callable[[], Any]]) -> float:
    """Median microseconds of one of `calls`, which all do the same with other inputs, inside a CUDA graph."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    milliseconds = triton.testing.do_bench(graph.replay, warmup=50, rep=200, return_mode="median")
    del kept
    return round(1000 * float(milliseconds) / len(calls), 2)


def copy_speed() -> float:
    """Bytes a second, read and written, of a copy of a gigabyte."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (1e-6 * median(lambda: target.copy_(source)))


def write(what: str, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write the document to the file that the first argument of the command names.

    Its commit is the checkout's, or where there is none DIROTQ_COMMIT of the environment.
    """
    document = {
        "command": _command(),
        "git": os.environ.get("DIROTQ_COMMIT") or _commit(),
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__},
        "what": what,
        **more,
        "rows": rows,
    }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")


def _command() -> str:
    """How this was called, without the folders that only this machine has."""
    script, *words = sys.argv
    given = [Path(word).name if Path(word).is_absolute() else word for word in words]
    return " ".join(["python", f"kernels/{Path(script).name}", *given])


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def say(row: dict[str, Any]) -> None:
    """Print a row as soon as it is measured."""
    sys.stdout.write(f"{row}\n")
    sys.stdout.flush()
