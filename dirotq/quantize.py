"""The one loop over distinct inputs: transform, fold, round, replace."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dirotq import budget, calibrate
from dirotq.calibrate import Batch, InputStatistics
from dirotq.checkpoint import describe
from dirotq.formats import Format
from dirotq.linear import InputSpec, QuantLinear, build
from dirotq.methods import Method, Ranked
from dirotq.models import Layout, layout_of, rewrite
from dirotq.recipes import Recipe
from dirotq.transforms import Identity

Item = TypeVar("Item")
Progress = Callable[[Sequence[Item]], Iterable[Item]]


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
    """layers: in forward order. weight_bits, act_bits: effective bits a value over all quantized linears."""

    layers: tuple[LayerReport, ...]
    weight_bits: float
    act_bits: float
    seconds: float


def quantize(
    model: nn.Module,
    recipe: Recipe,
    batches: Iterable[Batch] = (),
    *,
    layout: Layout | None = None,
    statistics: Sequence[InputStatistics] | None = None,
    progress: Progress[InputStatistics] | None = None,
) -> Report:
    """Quantize the linears of `model`, in place, that its layout names; nothing else is touched.

    batches: calibration inputs, keyword dictionaries or argument tuples; not read when `statistics` are given.
    layout: the one of the model's class when None. progress: wraps the loop over distinct inputs.
    On any error the model is as it was. Raises ValueError for a layer that does not fit, by name.
    """
    start = time.perf_counter()
    if not recipe.method.quantizes:
        return Report((), 16.0, 16.0, time.perf_counter() - start)
    layout = with_weight_only(layout or layout_of(model), recipe)
    with rewrite.applied(model, layout, keep=True) as rewrites:
        selected = layout.select(model)
        if statistics is None:
            statistics = calibrate.collect(model, selected, batches, strict=layout.strict)
        replacements: dict[str, QuantLinear] = {}
        reports: list[LayerReport] = []
        for inputs in progress(statistics) if progress else statistics:
            inputs = replace(inputs, heads=layout.heads_of(model, inputs.name))
            layers, rows = _quantize_input(
                model, recipe, inputs, quantize_acts=_agree(inputs, selected)
            )
            replacements.update(layers)
            reports.extend(rows)
        missing = sorted(set(selected) - set(replacements))
        if missing and layout.strict:
            raise ValueError(f"layer {missing[0]}: the calibration statistics do not cover it")
        dtype = next(model.parameters()).dtype
        for name, layer in replacements.items():
            model.set_submodule(name, layer)
        calibration = calibrate.fingerprint(statistics)
        describe(
            model, recipe, replacements, calibration=calibration, dtype=dtype, rewrites=rewrites
        )
    return _summary(reports, replacements, time.perf_counter() - start)


def with_weight_only(layout: Layout, recipe: Recipe) -> Layout:
    """The layout with the recipe's patterns of linears whose activations stay at 16 bits."""
    if not recipe.weight_only:
        return layout
    return replace(layout, weight_only=layout.weight_only + recipe.weight_only)


def _agree(inputs: InputStatistics, selected: dict[str, bool]) -> bool:
    for name in inputs.members:
        if name not in selected:
            raise ValueError(f"layer {name}: has calibration statistics, but is not in the layout")
    choices = {selected[name] for name in inputs.members}
    if len(choices) > 1:
        raise ValueError(
            f"layers {', '.join(inputs.members)} share an input, but not all are weight-only"
        )
    return choices.pop()


def _quantize_input(
    model: nn.Module, recipe: Recipe, inputs: InputStatistics, quantize_acts: bool
) -> tuple[dict[str, QuantLinear], list[LayerReport]]:
    """Quantize the linears that read one input, all rows together: they share its transform and its Hessian."""
    linears = {name: model.get_submodule(name) for name in inputs.members}
    weights = [_weight(name, linear, inputs) for name, linear in linears.items()]
    stacked = torch.cat(weights)
    fmt, act = recipe.bits.weight, recipe.bits.act if quantize_acts else None
    rows_of = {name: w.shape[0] for name, w in zip(linears, weights, strict=True)}
    # Weight-only linears have nothing to protect or smooth: the authors of all methods leave their inputs alone.
    plain = recipe.bits.act is not None and act is None
    method = recipe.method if plain else _method(recipe, inputs, rows_of, act)
    transform = Identity(inputs.width) if plain else method.transform(inputs, weights, fmt, act)
    act, shift = method.activation(inputs, act)
    transform = transform.to(stacked.device)
    moment = inputs.moment.to(stacked.device)
    low, high = transform.fold(stacked)
    fallback = False
    protect = method.protect_format if transform.high and fmt is not None else None
    spec = InputSpec(inputs.members, transform.to_dict(), fmt, act, protect, shift)
    layers = build(spec, rows_of, transform)
    encoded = None
    if fmt is not None:
        needs = method.rounding == "gptq" or method.scale_search
        low_moment = transform.low_moment(moment) if needs else None
        encoded, fallback = method.round(low, low_moment, fmt, float(moment.diagonal().mean()))
    row = 0
    for (name, layer), weight in zip(layers.items(), weights, strict=True):
        rows = slice(row, row + weight.shape[0])
        row = rows.stop
        part = low[rows].to(weight.dtype) if encoded is None else encoded.rows(rows)
        bias = linears[name].bias
        layer.store(
            part, None if high is None else high[rows], bias if isinstance(bias, Tensor) else None
        )
    shared = transform.storage_bits() / len(layers)
    reports = [
        _report(name, layer, inputs, low_rows, weight, fallback, shared)
        for (name, layer), weight, low_rows in zip(
            layers.items(), weights, low.split([w.shape[0] for w in weights]), strict=True
        )
    ]
    return layers, reports


def _method(
    recipe: Recipe, inputs: InputStatistics, out_features: dict[str, int], act: Format | None
) -> Method:
    """The recipe's method, at the rank that its budget leaves for this input."""
    method, fmt = recipe.method, recipe.bits.weight
    if recipe.budget is None or fmt is None or not isinstance(method, Ranked):
        return method
    return budget.within(method, inputs.width, out_features, fmt, act, recipe.budget)


def _weight(name: str, linear: nn.Module, inputs: InputStatistics) -> Tensor:
    if not isinstance(linear, nn.Linear):
        raise ValueError(
            f"layer {name} is a {type(linear).__name__}; only unquantized Linear layers can be quantized"
        )
    weight = linear.weight.detach()
    if weight.shape[1] != inputs.width:
        raise ValueError(
            f"layer {name} has {weight.shape[1]} input features, its statistics {inputs.width}"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ValueError(f"layer {name}: its weight holds infinities or NaN")
    return weight


def _report(
    name: str,
    layer: QuantLinear,
    inputs: InputStatistics,
    low: Tensor,
    weight: Tensor,
    fallback: bool,
    shared_bits: float,
) -> LayerReport:
    sample = inputs.sample.to(weight.device)
    low_input = layer.input.transform.online(sample)[0]
    used_input = layer.input.compute(sample)[0]
    bias = layer.bias
    reference = F.linear(sample, weight.float(), None if bias is None else bias.float())
    own = layer.storage_bits() - (layer.input.transform.storage_bits() if layer.spec else 0)
    return LayerReport(
        name=name,
        input=inputs.name,
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        rank=layer.input.transform.high,
        effective_bits=(own + shared_bits) / weight.numel(),
        weight_snr_db=snr_db(low, layer.low_weight()),
        act_snr_db=snr_db(low_input, used_input),
        output_snr_db=snr_db(reference, layer(sample)),
        fallback=fallback,
    )


def _summary(reports: list[LayerReport], layers: dict[str, QuantLinear], seconds: float) -> Report:
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
    return Report(tuple(reports), stored / weights, act_bits / values, seconds)


def snr_db(signal: Tensor, approximation: Tensor) -> float:
    """10 log10 of the signal's energy over that of the error, computed in float64; inf when they are equal."""
    noise = (signal.double() - approximation.double()).square().sum().item()
    energy = signal.double().square().sum().item()
    if noise == 0:
        return math.inf
    return 10 * math.log10(energy / noise) if energy else -math.inf
