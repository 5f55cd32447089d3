"""Layouts: one file an architecture, data only."""

from torch import nn

from dirotq.models import auto, pixart
from dirotq.models.layout import Layout

_LAYOUTS = (pixart.LAYOUT,)


def layout_of(model: nn.Module) -> Layout:
    """The layout made for the model's class, or the one found from its structure."""
    for layout in _LAYOUTS:
        if type(model).__name__ in layout.classes:
            return layout
    return auto.layout(model)


__all__ = ["Layout", "layout_of"]
