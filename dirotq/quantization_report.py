"""What quantizing a model reports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from dirotq.linear import QuantLinear
from dirotq.stopwatch import Stopwatch


@dataclass(frozen=True)
class LayerReport:
    """One quantized linear. SNRs are in dB: of the weight, of the quantized activation, and of the output on sample
    inputs. effective_bits: stored bits a weight, the input's transform shared evenly among the linears that read it.
    """

    name: str
    input: str
    in_features: int
    out_features: int
    rank: int
    effective_bits: float
    weight_snr_db: float
    act_snr_db: float
    output_snr_db: float
    fallback: bool


@dataclass(frozen=True)
class Report:
    """layers: in forward order. weight_bits, act_bits: effective bits a value over all quantized linears.

    stages: seconds of "resume" (hashes, and what an earlier run finished), "trace", "statistics", "transform",
    "rounding", "report" and "store"; those that there were. peak_bytes: most memory allocated on the GPU at once.
    """

    layers: tuple[LayerReport, ...]
    weight_bits: float
    act_bits: float
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)
    peak_bytes: int = 0


def snr_db(signal: Tensor, approximation: Tensor) -> float:
    """10 log10 of the signal's energy over that of the error, computed in float64; inf when they are equal."""
    noise = (signal.double() - approximation.double()).square().sum().item()
    energy = signal.double().square().sum().item()
    if noise == 0:
        return math.inf
    return 10 * math.log10(energy / noise) if energy else -math.inf


def summary(reports: list[LayerReport], layers: dict[str, QuantLinear], clock: Stopwatch) -> Report:
    """The report of a whole model, from those of its layers."""
    weights = sum(r.in_features * r.out_features for r in reports)
    stored = sum(r.effective_bits * r.in_features * r.out_features for r in reports)
    owners = [layer for layer in layers.values() if layer.spec is not None]
    values = sum(layer.in_features for layer in owners)
    act_bits = 0.0
    for layer in owners:
        low, high = layer.input.transform.low_width, layer.input.transform.high
        act, protect = layer.input.act, layer.input.protect
        act_bits += low * (act.bits_per_value(low) if act else 16.0)
        act_bits += high * (protect.bits_per_value(high) if protect and act else 16.0)
    return Report(
        layers=tuple(reports),
        weight_bits=stored / weights,
        act_bits=act_bits / values,
        seconds=clock.total(),
        stages=clock.seconds,
        peak_bytes=clock.peak_bytes(),
    )
