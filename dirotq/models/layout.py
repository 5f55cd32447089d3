"""A layout says, as data, which linears of an architecture are quantized. What shares an input is found by tracing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

Width = int | Literal["out_features"]


@dataclass(frozen=True)
class Layout:
    """Patterns (regular expressions, matched against whole module names) of the linears to quantize.

    classes: names of the model classes it is for. quantize: weights and activations.
    weight_only: weights only, the input stays as it is.
    strict: whether a named linear that a forward does not reach is an error; otherwise it is left as it is.
    splits: (pattern, widths) of linears that read concatenated inputs: the widths of all parts but the last, which
    takes the rest; "out_features" is the linear's own. pointwise: 1x1 convolutions. Both are rewritten first
    (`dirotq.models.rewrite`), and the other patterns see the names that this gives: `NAME.parts.0`, `NAME.linear`.
    optional: those of the patterns that some variants of the model have no layer for.
    heads: (pattern, attention) of linears that read attention's output: where the module with `heads` is, with the
    groups of the pattern filled in.
    """

    name: str
    classes: tuple[str, ...]
    quantize: tuple[str, ...]
    weight_only: tuple[str, ...] = ()
    strict: bool = True
    splits: tuple[tuple[str, tuple[Width, ...]], ...] = ()
    pointwise: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    heads: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        split = tuple(pattern for pattern, _ in self.splits)
        known = {*self.quantize, *self.weight_only, *split, *self.pointwise}
        for pattern in self.optional:
            if pattern not in known:
                raise ValueError(
                    f"layout {self.name}: optional={pattern!r}, allowed are its own patterns"
                )

    def select(self, model: nn.Module) -> dict[str, bool]:
        """Names of the linears to quantize -> whether their activations are quantized too, in module order.

        Raises ValueError when a pattern that is not optional matches nothing and when one matches a module that is
        not a linear.
        """
        modules = dict(model.named_modules())
        selected: dict[str, bool] = {}
        for patterns, quantize_acts in ((self.quantize, True), (self.weight_only, False)):
            for pattern in patterns:
                for name in self.matching(model, pattern):
                    if not isinstance(modules[name], nn.Linear):
                        kind = type(modules[name]).__name__
                        raise ValueError(
                            f"layout {self.name}: {name} is a {kind}, only Linear layers are quantized"
                        )
                    selected[name] = quantize_acts
        return {name: selected[name] for name in modules if name in selected}

    def matching(self, model: nn.Module, pattern: str) -> list[str]:
        """Names that match; raises ValueError when there are none, unless the pattern is optional."""
        whole = re.compile(pattern)
        matched = [name for name, _ in model.named_modules() if whole.fullmatch(name)]
        if not matched and pattern not in self.optional:
            raise ValueError(
                f"layout {self.name}: no layer of {type(model).__name__} matches {pattern!r}"
            )
        return matched

    def heads_of(self, model: nn.Module, name: str) -> int:
        """Attention heads whose outputs the linear `name` reads side by side; 1 where it reads something else."""
        for pattern, attention in self.heads:
            found = re.fullmatch(pattern, name)
            if found:
                return int(model.get_submodule(found.expand(attention)).heads)  # type: ignore[arg-type]
        return 1
