"""Round to nearest."""

import torch

from dirotq.formats import Integer
from dirotq.rounding import round_to_nearest


def test_no_code_is_nearer() -> None:
    weight = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fmt = Integer(group=8)
    encoded = round_to_nearest(weight, fmt)
    scale, _ = fmt.expand(encoded.grid, 20)
    every = torch.arange(-7, 8).reshape(-1, 1, 1) * scale.double()
    best = (every - weight).abs().amin(0)
    # The grid is made of the weight's float32 values, 2^-24 off.
    torch.testing.assert_close((fmt.decode(encoded) - weight).abs(), best, rtol=0, atol=1e-6)
    assert encoded.codes.dtype == torch.int8
