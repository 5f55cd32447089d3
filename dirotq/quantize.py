"""The one loop over distinct inputs: transform, fold, round, replace."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dirotq import budget, calibrate, graphs, resume
from dirotq.calibrate import InputStatistics
from dirotq.checkpoint import checksum, describe
from dirotq.formats import Format
from dirotq.linear import InputSpec, QuantLinear, build
from dirotq.methods import Method, Ranked
from dirotq.models import Layout, layout_of, rewrite
from dirotq.passes import Batches
from dirotq.quantization_report import LayerReport, Report, snr_db, summary
from dirotq.recipes import Recipe
from dirotq.statistics_source import Means, Source
from dirotq.stopwatch import Stopwatch
from dirotq.transforms import Identity

__all__ = ["LayerReport", "Report", "quantize", "snr_db", "with_weight_only"]

Item = TypeVar("Item")
Progress = Callable[[Sequence[Item]], Iterable[Item]]


def quantize(
    model: nn.Module,
    recipe: Recipe,
    batches: Batches = (),
    *,
    layout: Layout | None = None,
    statistics: Sequence[InputStatistics] | None = None,
    progress: Progress[str] | None = None,
    memory: int | None = None,
    stream: torch.device | str | None = None,
    workdir: Path | str | None = None,
    calibration: str | None = None,
) -> Report:
    """Quantize the linears of `model`, in place, that its layout names; nothing else is touched.

    batches: calibration inputs, keyword dictionaries or argument tuples; a list or a function that returns an iterator
        if they are to be read more than once, which the others below may ask for. Not read when `statistics` are given.
    layout: the one of the model's class when None. progress: wraps the loop over the names of distinct inputs.
    memory: bytes that second moments may take at once; None for what is free on the device. Where all of them do not
        fit, the batches are run through the model again for the rest (`dirotq.passes`).
    stream: device to run the model's repeated blocks on one after the other, while its weights stay where they are
        (`dirotq.streaming`); batches are moved there.
    workdir: folder for what is finished, input by input; started again with the same model, recipe and calibration, a
        run goes on from there (`dirotq.resume`). It can be deleted when the model is saved.
    calibration: identity of the batches for that; a hash of their content when None.
    The result does not depend on the last four. On any error the model is as it was. Raises ValueError for a layer that
    does not fit, by name, and for batches that cannot be read again.
    """
    graphs.refuse(model, "quantize")
    home = next((p.device for p in model.parameters()), None)
    if home is None:
        raise ValueError(
            "quantize: the model has no parameters; are its linears quantized already?"
        )
    device = None if stream is None else torch.device(stream)
    clock = Stopwatch(device or home)
    if not recipe.method.quantizes:
        return Report((), 16.0, 16.0, clock.total())
    layout = with_weight_only(layout or layout_of(model), recipe)
    means = Means(memory, device, None if workdir is None else Path(workdir), calibration)
    with rewrite.applied(model, layout, keep=True) as rewrites:
        selected = layout.select(model)
        source, shelf = means.open(model, recipe, layout, batches, statistics)
        clock.lap("resume")
        job = _Job(model, recipe, layout, selected, home, shelf, clock)
        done = job.finish_all(source, progress)
        layers = job.install(done, rewrites)
    clock.lap("store")
    return summary([row for entry in done for row in entry.rows], layers, clock)


@dataclass(frozen=True)
class _Job:
    """A quantization under way. selected: linears, and whether their activations are quantized. home: of the model."""

    model: nn.Module
    recipe: Recipe
    layout: Layout
    selected: dict[str, bool]
    home: torch.device
    shelf: resume.Shelf
    clock: Stopwatch

    def finish_all(self, source: Source, progress: Progress[str] | None) -> list[resume.Finished]:
        """All distinct inputs, in forward order: those on the shelf, and the others from their statistics."""
        groups = source.groups(self.selected, strict=self.layout.strict)
        self.clock.lap("trace")
        done: dict[str, resume.Finished] = {}
        for members in groups:
            entry = self.shelf.get(members)
            if entry is not None:
                done[members[0]] = self._at_home(entry)
        self.clock.lap("resume")
        names = [members[0] for members in groups]
        waiting = [members for members in groups if members[0] not in done]
        with closing(source.statistics(waiting)) as statistics:
            for name in progress(names) if progress else names:
                if name not in done:
                    # Nothing else refers to them: their memory is free before the next ones are made.
                    done[name] = self._finish(next(statistics))
        return [done[name] for name in names if name in done]

    def install(
        self, done: Sequence[resume.Finished], rewrites: rewrite.Record
    ) -> dict[str, QuantLinear]:
        """Put the quantized linears in place, all of them or none, and say in the model what they are."""
        layers = {name: layer for entry in done for name, layer in entry.layers.items()}
        missing = sorted(set(self.selected) - set(layers))
        if missing and self.layout.strict:
            raise ValueError(f"layer {missing[0]}: the calibration statistics do not cover it")
        if not layers:
            raise ValueError("quantize: no linear of the layout was reached by the batches")
        dtype = next(self.model.parameters()).dtype
        for name, layer in layers.items():
            self.model.set_submodule(name, layer)
        describe(
            self.model,
            self.recipe,
            layers,
            checksums={name: its for entry in done for name, its in entry.checksums.items()},
            calibration=calibrate.fingerprint(entry.statistics for entry in done),
            dtype=dtype,
            rewrites=rewrites,
        )
        return layers

    def _finish(self, inputs: InputStatistics) -> resume.Finished:
        """Quantize the linears that read one input."""
        self.clock.lap("statistics")
        inputs = replace(inputs, heads=self.layout.heads_of(self.model, inputs.name))
        layers, rows = _quantize_input(
            self.model, self.recipe, inputs, _agree(inputs, self.selected), self.clock
        )
        self.clock.lap("report")
        checksums = {name: checksum(layer) for name, layer in layers.items()}
        entry = resume.Finished(layers, checksums, tuple(rows), calibrate.digest(inputs))
        entry = self.shelf.put(inputs.members, self._at_home(entry))
        self.clock.lap("store")
        return entry

    def _at_home(self, entry: resume.Finished) -> resume.Finished:
        for layer in entry.layers.values():
            layer.to(self.home)
        return entry


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
    model: nn.Module, recipe: Recipe, inputs: InputStatistics, quantize_acts: bool, clock: Stopwatch
) -> tuple[dict[str, QuantLinear], list[LayerReport]]:
    """Quantize the linears that read one input, all rows together: they share its transform and its Hessian."""
    linears = {name: model.get_submodule(name) for name in inputs.members}
    weights = [_weight(name, linear, inputs) for name, linear in linears.items()]
    stacked = torch.cat(weights)
    # Where the weights are: what a method makes of it, decompositions above all, takes a CPU minutes for a wide input.
    moment = inputs.moment.to(stacked.device)
    # One sample for all reports: what layers share of it is dropped when the last one has read it.
    inputs = replace(inputs, moment=moment, sample=inputs.sample.to(stacked.device))
    fmt, act = recipe.bits.weight, recipe.bits.act if quantize_acts else None
    rows_of = {name: w.shape[0] for name, w in zip(linears, weights, strict=True)}
    # Weight-only linears have nothing to protect or smooth: the authors of all methods leave their inputs alone.
    plain = recipe.bits.act is not None and act is None
    method = recipe.method if plain else _method(recipe, inputs, rows_of, act)
    transform = Identity(inputs.width) if plain else method.transform(inputs, weights, fmt, act)
    act, shift = method.activation(inputs, act)
    transform = transform.to(stacked.device)
    low, high = transform.fold(stacked)
    fallback = False
    protect = method.protect_format if transform.high and fmt is not None else None
    spec = InputSpec(inputs.members, transform.to_dict(), fmt, act, protect, shift)
    layers = build(spec, rows_of, transform)
    clock.lap("transform")
    encoded = None
    if fmt is not None:
        needs = method.rounding == "gptq" or method.scale_search
        low_moment = transform.low_moment(moment) if needs else None
        encoded, fallback = method.round(low, low_moment, fmt, float(moment.diagonal().mean()))
    clock.lap("rounding")
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
