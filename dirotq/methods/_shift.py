"""SVDQuant's shift (arXiv 2411.05007): unsigned codes for an input bounded from below, such as a GELU's output."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from dirotq.calibrate import InputStatistics
from dirotq.formats import Format, Integer

# A GELU's least value, -0.16997, gives the authors' constant: 11 / 64 = 0.171875.
_PARTS = 64
# What the shift has to bring in squared error. It brings a factor of 4 where the bound is far smaller than the largest
# values (15 steps instead of 7 over the same extent), and below 1 where the input goes about as far down as up.
_GAIN = 2.0


def shifted(inputs: InputStatistics, act: Format | None) -> tuple[Format | None, float]:
    """The unsigned form of `act` and the shift that makes the input non-negative; `act` and 0 where that is no gain.

    The shift is minus the least number that calibration saw, rounded up to a 64th. It is taken when the sample, not
    transformed, then has at most half the squared error that signed codes have. Symmetric 4-bit integers have an
    unsigned form here; 8-bit ones have none, as in the authors' configurations.
    """
    if not isinstance(act, Integer) or not act.symmetric or act.bits != 4:
        return act, 0.0
    if not math.isfinite(inputs.lowest):
        return act, 0.0
    unsigned, sample = replace(act, unsigned=True), inputs.sample
    shift = max(0.0, math.ceil(-inputs.lowest * _PARTS) / _PARTS)
    error = _squared(unsigned.quantize(sample + shift) - shift - sample)
    if _GAIN * error >= _squared(act.quantize(sample) - sample):
        return act, 0.0
    return unsigned, shift


def _squared(error: Tensor) -> float:
    return float(torch.linalg.vector_norm(error, dtype=torch.float64).square())
