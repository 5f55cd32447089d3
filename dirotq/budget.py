"""The largest rank whose stored bits stay under a budget."""

from __future__ import annotations

from dataclasses import replace

import torch

from dirotq.formats import Format
from dirotq.linear import InputSpec, build
from dirotq.methods import Ranked


def within(
    method: Ranked,
    width: int,
    out_features: dict[str, int],
    fmt: Format,
    act: Format | None,
    budget: float,
) -> Ranked:
    """`method` with the largest integer rank at which the linears of one input keep to `budget` bits a weight.

    width: of the input. out_features: of the linears that read it, by name. The bits are those of the tensors that
    would be stored, biases apart, counted on empty ones.
    Raises ValueError, with the first linear's name, when one protected coordinate is too much already.
    """
    fewest, most = 0, width
    while most - fewest > 1:
        middle = (fewest + most) // 2
        if effective_bits(replace(method, rank=middle), width, out_features, fmt, act) <= budget:
            fewest = middle
        else:
            most = middle
    if not fewest:
        least = effective_bits(replace(method, rank=1), width, out_features, fmt, act)
        raise ValueError(
            f"budget={budget:g}: layer {next(iter(out_features))} needs {least:.2f} bits a weight at rank 1"
        )
    return replace(method, rank=fewest)


def effective_bits(
    method: Ranked, width: int, out_features: dict[str, int], fmt: Format, act: Format | None
) -> float:
    """Stored bits a weight of the linears of one input, its transform included and their biases not."""
    with torch.device("meta"):
        transform = method.blank(width, act)
        spec = InputSpec(tuple(out_features), transform.to_dict(), fmt, act, method.protect_format)
        layers = build(spec, out_features, transform)
        for layer in layers.values():
            layer.allocate(None, torch.bfloat16)
    stored = sum(layer.storage_bits() for layer in layers.values())
    return stored / (width * sum(out_features.values()))
