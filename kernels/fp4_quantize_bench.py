"""Time `fp4_quantize` against its PyTorch reference and against a copy of the same bytes, on a GPU.

python kernels/fp4_quantize_bench.py results.json
"""

from __future__ import annotations

import torch
from dirotq_kernels.benching import median, write
from dirotq_kernels.fp4_quantize import fp4_quantize, fp4_quantize_ref

SHAPES = [(8192, 320), (8192, 1152), (4608, 3072), (4608, 12288), (4608, 15360)]
GROUPS = {"nvfp4": 16, "mxfp4": 32, "fp4h": 32}


def main() -> None:
    """Write medians in microseconds: the kernel, the reference, and a float32 copy, which moves as many bytes."""
    rows = []
    for tokens, width in SHAPES:
        x = torch.randn(tokens, width, device="cuda")
        target = torch.empty_like(x)
        copy = median(lambda x=x, target=target: target.copy_(x))
        for kind, group in GROUPS.items():
            kernel = median(lambda x=x, group=group, kind=kind: fp4_quantize(x, group, kind))
            reference = median(lambda x=x, group=group, kind=kind: fp4_quantize_ref(x, group, kind))
            rows.append(
                {
                    "kind": kind,
                    "group": group,
                    "tokens": tokens,
                    "width": width,
                    "kernel_us": kernel,
                    "reference_us": reference,
                    "copy_us": copy,
                }
            )
    write(
        "nvfp4 (a base for each row), mxfp4 and fp4h, float32 in and out; medians",
        rows,
    )


if __name__ == "__main__":
    main()
