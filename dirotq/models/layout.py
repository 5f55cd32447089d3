"""A layout says, as data, which linears of an architecture are quantized. What shares an input is found by tracing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Layout:
    """Patterns (regular expressions, matched against whole module names) of the linears to quantize.

    classes: names of the model classes it is for. quantize: weights and activations.
    weight_only: weights only, the input stays as it is.
    strict: whether a named linear that a forward does not reach is an error; otherwise it is left as it is.
    """

    name: str
    classes: tuple[str, ...]
    quantize: tuple[str, ...]
    weight_only: tuple[str, ...] = ()
    strict: bool = True

    def select(self, model: nn.Module) -> dict[str, bool]:
        """Names of the linears to quantize -> whether their activations are quantized too, in module order.

        Raises ValueError when a pattern matches nothing and when one matches a module that is not a linear.
        """
        modules = dict(model.named_modules())
        selected: dict[str, bool] = {}
        for patterns, quantize_acts in ((self.quantize, True), (self.weight_only, False)):
            for pattern in patterns:
                matched = [name for name in modules if re.fullmatch(pattern, name)]
                if not matched:
                    raise ValueError(
                        f"layout {self.name}: no layer of {type(model).__name__} matches {pattern!r}"
                    )
                for name in matched:
                    if not isinstance(modules[name], nn.Linear):
                        kind = type(modules[name]).__name__
                        raise ValueError(
                            f"layout {self.name}: {name} is a {kind}, only Linear layers are quantized"
                        )
                    selected[name] = quantize_acts
        return {name: selected[name] for name in modules if name in selected}
