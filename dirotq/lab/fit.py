"""Whether a recipe fits a model, asked before the calibration: after it is late to learn of a bad rank."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dirotq import budget
from dirotq.lab.trial import Input
from dirotq.methods import Ranked
from dirotq.models import layout_of, rewrite
from dirotq.quantize import with_weight_only
from dirotq.recipes import Recipe


def check_widths(model: nn.Module, recipe: Recipe) -> None:
    """Raise ValueError for a rank that some linear's input is too narrow for, and for a pattern that matches none."""
    for width, _, transformed in _linears(model, recipe).values():
        if transformed and recipe.budget is None:
            recipe.method.check_width(width, recipe.bits.act)


def check_budget(model: nn.Module, recipe: Recipe, inputs: Sequence[Input]) -> None:
    """Raise ValueError where the linears of one of the inputs cannot keep to the recipe's budget at any rank."""
    method, fmt, act = recipe.method, recipe.bits.weight, recipe.bits.act
    if recipe.budget is None or fmt is None or not isinstance(method, Ranked):
        return
    linears = _linears(model, recipe)
    checked = set()
    for one in inputs:
        outputs = {name: linears[name][1] for name in one.members}
        shape = (one.width, *outputs.values())
        if shape not in checked and (linears[one.members[0]][2] or act is None):
            checked.add(shape)
            budget.within(method, one.width, outputs, fmt, act, recipe.budget)


def _linears(model: nn.Module, recipe: Recipe) -> dict[str, tuple[int, int, bool]]:
    """Width, outputs and whether activations are quantized, of every linear that the recipe quantizes."""
    if not recipe.method.quantizes:
        return {}
    layout = with_weight_only(layout_of(model), recipe)
    with rewrite.applied(model, layout):
        shapes = {
            name: (model.get_submodule(name).get_parameter("weight").shape, transformed)
            for name, transformed in layout.select(model).items()
        }
    return {name: (shape[1], shape[0], quantized) for name, (shape, quantized) in shapes.items()}
