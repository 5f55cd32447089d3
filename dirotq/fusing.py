"""Activations that the kernel behind them applies itself: one pass over the widest tensor of a block less.

A layout names them (`Layout.activations`). One that is applied elsewhere is bypassed in place; parameters keep their
names.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from dirotq.models.layout import Layout


class Bypassed(nn.Module):
    """Stands for an activation; where that has a projection before it, it is the projection alone."""

    original: nn.Module

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        # Not registered: it has no parameters of its own.
        object.__setattr__(self, "original", original)
        self.proj = getattr(original, "proj", None)

    def forward(self, x: Tensor) -> Tensor:
        """`x` as it is, or projected."""
        return x if self.proj is None else self.proj(x)


def kind_of(module: nn.Module) -> str | None:
    """Name, for kernels, of what a module applies last; None for what they do not have."""
    if isinstance(module, Bypassed):
        return kind_of(module.original)
    # PyTorch's, and diffusers' projection with one.
    if type(module).__name__ == "GELU" and getattr(module, "approximate", None) == "tanh":
        return "gelu_tanh"
    return None


def find(model: nn.Module, layout: Layout, names: Collection[str]) -> dict[str, tuple[str, str]]:
    """Of the linears `names`, those with an activation before them that kernels have: its module's name, its kind."""
    found: dict[str, tuple[str, str]] = {}
    for name in names:
        place = layout.activation_of(name)
        kind = kind_of(model.get_submodule(place)) if place else None
        if place and kind:
            found[name] = (place, kind)
    return found


def bypass(model: nn.Module, places: Collection[str]) -> None:
    """Bypass the activations `places`, and no others."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Bypassed):
            if module.proj is not None:
                # It may have been replaced meanwhile.
                module.original.proj = module.proj
            model.set_submodule(name, module.original)
    for place in places:
        model.set_submodule(place, Bypassed(model.get_submodule(place)))
