"""Time `group_quantize` against its PyTorch reference and against a copy of the same bytes, on a GPU.

python kernels/group_quantize_bench.py results.json
"""

from __future__ import annotations

import torch
from dirotq_kernels.benching import median, write
from dirotq_kernels.group_quantize import group_quantize, group_quantize_ref

SHAPES = [(8192, 320), (8192, 1152), (4608, 3072), (4608, 12288)]


def main() -> None:
    """Write medians in microseconds: the kernel, the reference, and a float32 copy, which moves as many bytes."""
    rows = []
    for tokens, width in SHAPES:
        x = torch.randn(tokens, width, device="cuda")
        target = torch.empty_like(x)
        kernel = median(lambda x=x: group_quantize(x, 64, 4, False))
        reference = median(lambda x=x: group_quantize_ref(x, 64, 4, False))
        copy = median(lambda x=x, target=target: target.copy_(x))
        rows.append(
            {
                "tokens": tokens,
                "width": width,
                "kernel_us": kernel,
                "reference_us": reference,
                "copy_us": copy,
            }
        )
    write(
        "int4 asymmetric, group 64, float32 in and out; medians",
        rows,
    )


if __name__ == "__main__":
    main()
