"""The distinct inputs of a model that its layout names, and their statistics, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dirotq.calibrate import InputStatistics, Members
from dirotq.models import layout_of, rewrite
from dirotq.passes import Batches, Calls, Passes


@contextmanager
def collecting(
    model: nn.Module, batches: Batches
) -> Iterator[tuple[list[Members], Iterator[InputStatistics]]]:
    """The linears that read each input, in forward order, and their statistics, in as few passes as memory allows.

    The statistics are on the model's device; each is to be dropped before the next is taken. Meanwhile the model is
    rewritten as for quantizing it. Errors are those of `dirotq.quantize`.
    """
    layout = layout_of(model)
    with rewrite.applied(model, layout):
        source = Passes(model, Calls(batches), memory=None)
        groups = source.groups(layout.select(model), strict=layout.strict)
        yield groups, source.statistics(groups)
