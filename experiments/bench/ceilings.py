"""What the device at hand can do at best, measured: bytes of a copy, operations of a large product."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from experiments.bench.timing import Timed, in_turn

# Square, and FLUX.1's widest at 1024²: which is quickest depends on the tiles that the library chooses.
SHAPES = ((8192, 8192, 8192), (4608, 12288, 12288), (4608, 3072, 21504))
_COPY_BYTES = 1 << 30
_REPETITIONS = 20


def measure(
    device: torch.device,
    shapes: tuple[tuple[int, int, int], ...] = SHAPES,
    copy_bytes: int = _COPY_BYTES,
) -> dict[str, Any]:
    """Bytes a second of a copy (read and written) and operations a second of the best product of each kind.

    FP8 is None where the device has no product of FP8 operands with a scale a row.
    """
    source = torch.ones(copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    timed = Timed(partial(target.copy_, source))
    copy = in_turn({"copy": timed}, _REPETITIONS, device)["copy"]
    del source, target, timed
    found = {"bf16": 0.0, "fp8": 0.0}
    for m, k, n in shapes:
        runs = _products(m, k, n, device)
        for kind, sample in in_turn(runs, _REPETITIONS, device).items():
            found[kind] = max(found[kind], 2e3 * m * k * n / sample["median_ms"])
    return {
        "copy_bytes_per_s": round(2e3 * copy_bytes / copy["median_ms"]),
        "bf16_flops_per_s": round(found["bf16"]),
        "fp8_flops_per_s": round(found["fp8"]) or None,
        "shapes_mkn": [list(shape) for shape in shapes],
    }


def _products(m: int, k: int, n: int, device: torch.device) -> dict[str, Timed]:
    a = torch.randn(m, k, dtype=torch.bfloat16, device=device)
    b = torch.randn(n, k, dtype=torch.bfloat16, device=device)
    runs = {"bf16": Timed(lambda: a @ b.T)}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        ones = torch.ones(m, 1, device=device), torch.ones(1, n, device=device)
        runs["fp8"] = Timed(
            lambda: torch._scaled_mm(a8, b8.T, *ones, out_dtype=torch.bfloat16, use_fast_accum=True)
        )
    return runs
