"""Time `second_moment_` against a float32 product in PyTorch, and measure its error, on a GPU.

python kernels/second_moment_bench.py results.json [shapes]

With `shapes`, block shapes of every width are timed and printed; the launcher's table, `_tile`, is set from that.
"""

from __future__ import annotations

import sys

import torch
from dirotq_kernels import second_moment as module
from dirotq_kernels.benching import copy_speed, median, say, write
from dirotq_kernels.second_moment import mirror_, second_moment_

ROWS = 4608
WIDTHS = (1152, 3072, 4608, 12288, 15360)
TILES = (
    (64, 64, 64, 4, 4), (128, 64, 64, 4, 3), (128, 64, 64, 4, 4), (128, 128, 64, 8, 3),
    (128, 128, 32, 8, 4), (128, 128, 64, 4, 3), (256, 128, 64, 8, 3), (256, 128, 64, 8, 4),
)  # fmt: skip


def main() -> None:
    """Write medians in microseconds, beside the two bounds: the products at cuBLAS' rate, and the total's bytes."""
    if "shapes" in sys.argv:
        _shapes()
    rate, speed = _rate(), copy_speed()
    rows = [_row(width, dtype, rate, speed) for dtype in module._TERMS for width in WIDTHS]
    write(
        f"{ROWS} rows, float64 totals; medians; errors over sqrt(S_ii S_jj) of 8 columns",
        rows,
        bf16_tflops=round(rate / 1e12, 1),
        copy_bytes_per_second=speed,
    )


def _row(width: int, dtype: torch.dtype, rate: float, speed: float) -> dict[str, object]:
    x = torch.randn(ROWS, width, device="cuda").to(dtype)
    total = torch.zeros(width, width, dtype=torch.float64, device="cuda")
    second_moment_(total, x)
    sizes = x.double().square().sum(0).sqrt()
    expected = x.double().T @ x[:, :8].double()
    # Below its first 8 rows these columns are computed whole.
    error = ((total[:, :8] - expected).abs() / (sizes[:, None] * sizes[:8]))[8:]
    kernel = median(lambda: second_moment_(total, x))
    mirror = median(lambda: mirror_(total))
    torch_time = median(lambda: total.add_((x.float().T @ x.float()).double()))
    products = module._TERMS[dtype] * (module._TERMS[dtype] + 1) // 2
    row = {
        "dtype": str(dtype),
        "width": width,
        "kernel_us": kernel,
        "bound_us": round(1e6 * max(
            products * ROWS * width * (width + 1) / rate, 8 * width * (width + 1) / speed
        ), 2),
        "mirror_us": mirror,
        "mirror_bound_us": round(8e6 * width * (width - 1) / speed, 2),
        "float32_product_us": torch_time,
        "error_max": float(error.max()),
        "error_rms": float(error.square().mean().sqrt()),
    }  # fmt: skip
    say(row)
    return row


def _shapes() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for width in WIDTHS:
            x = torch.randn(ROWS, width, device="cuda").to(dtype)
            total = torch.zeros(width, width, dtype=torch.float64, device="cuda")
            for tile in TILES:
                time = median(lambda x=x, total=total, tile=tile: module._launch(total, x, *tile))
                print(dtype, width, tile, time, flush=True)  # noqa: T201


def _rate() -> float:
    """Operations a second of a large bfloat16 product."""
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    return 2 * 8192.0**3 / (1e-6 * median(lambda: a @ a))


if __name__ == "__main__":
    main()
