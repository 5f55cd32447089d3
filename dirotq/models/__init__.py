"""Layouts: one file an architecture, data only."""

from torch import nn

from dirotq.models import auto, flux, pixart, rewrite, sana
from dirotq.models.layout import Layout

_LAYOUTS = (flux.LAYOUT, pixart.LAYOUT, sana.LAYOUT)


def layout_of(model: nn.Module) -> Layout:
    """The layout made for the model's class, or the one found from its structure."""
    for layout in _LAYOUTS:
        if type(model).__name__ in layout.classes:
            return layout
    return auto.layout(model)


def coverage(model: nn.Module, layout: Layout | None = None) -> dict[str, str]:
    """What `layout` (the model's own when None) does with every linear and 1x1 convolution of an unquantized model.

    Name -> "quantized", "weight-only" or "kept", in module order, under the names that the layout's rewriting gives.
    Raises ValueError as `Layout.select` does.
    """
    layout = layout or layout_of(model)
    with rewrite.applied(model, layout):
        selected = layout.select(model)
        kinds = {True: "quantized", False: "weight-only", None: "kept"}
        return {
            name: kinds[selected.get(name)]
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) or rewrite.is_pointwise(module)
        }


__all__ = ["Layout", "coverage", "layout_of", "rewrite"]
