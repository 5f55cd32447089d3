"""Which kind of work a GPU kernel does, by its name, and how the time of a piece of work divides into kinds."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from experiments.bench.timing import Call

# The first that matches: what inductor fuses is named after all its operators, products and attention included, and
# cuBLAS' and cuDNN's attention kernels have `gemm` in their names, too.
_KINDS = (
    ("elementwise", r"^triton_(poi|red|per|for)_"),
    ("attention", r"flash|fmha|attention|sdpa|softmax"),
    ("gemm", r"gemm|gemv|nvjet|cutlass|xmma|cublas|splitk|triton_tem|_mm_"),
    (
        "elementwise",
        r"elementwise|vectorized|reduce|norm|copy|cat_?array|mem(cpy|set)|fill|index",
    ),
)  # fmt: skip
# Of this library's kernels the module says it.
_MODULES = {
    "rotate_project": "rotate_quantize",
    "rotate_emit": "rotate_quantize",
    "hadamard": "rotate_quantize",
    "quantize_rows": "rotate_quantize",
    "fp4_quantize": "rotate_quantize",
    "group_quantize": "rotate_quantize",
    "unpack_e4m3": "unpack",
    "decode": "unpack",
    "weight_only": "gemm",
    "four_bit_mma": "gemm",
    "split_sums": "gemm",
    "fp8_persistent": "gemm",
}
KINDS = (
    "gemm",
    "attention",
    "rotate_quantize",
    "unpack",
    "elementwise",
    "other",
)
_GPU_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")


def kind_of(kernel: str) -> str:
    """One of KINDS."""
    own = _own_kernels()
    if kernel in own:
        return own[kernel]
    for kind, pattern in _KINDS:
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "other"


def breakdown(run: Call) -> dict[str, Any] | None:
    """Milliseconds of one run's kernels by kind, their number, and the longest of them; None where no GPU is seen."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        run()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return divided(events)


def divided(events: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """`breakdown` of a trace's events; None when there is no kernel among them."""
    totals: dict[str, float] = {}
    by_name: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") in _GPU_CATEGORIES:
            by_name.setdefault(event["name"], []).append(event["dur"] / 1e3)
    for name, times in by_name.items():
        kind = kind_of(name)
        totals[kind] = totals.get(kind, 0.0) + sum(times)
    if not by_name:
        return None
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:20]
    return {
        "ms": {kind: round(totals[kind], 4) for kind in KINDS if kind in totals},
        "kernels": sum(len(times) for times in by_name.values()),
        "longest": [
            {"kernel": name[:120], "kind": kind_of(name), "ms": round(sum(t), 4), "calls": len(t)}
            for name, t in longest
        ],
    }


@cache
def _own_kernels() -> dict[str, str]:
    """Names of this library's kernels -> kind."""
    if importlib.util.find_spec("triton") is None:
        return {}
    import dirotq_kernels

    found: dict[str, str] = {}
    present = {module.name for module in pkgutil.iter_modules(dirotq_kernels.__path__)}
    for name, kind in _MODULES.items():
        if name not in present:
            continue
        module = importlib.import_module(f"dirotq_kernels.{name}")
        for value in vars(module).values():
            function: Any = getattr(value, "fn", None)
            if function is not None and function.__module__ == module.__name__:
                found[function.__name__] = kind
    return found
