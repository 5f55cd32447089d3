"""Any module: the linears and 1x1 convolutions of its repeated blocks, or all linears where it has no such blocks.

Repeated blocks are the modules of one class in a `ModuleList`. What stands outside them embeds, modulates globally or
projects out, and is kept. Inside, a name with `norm`, `mod` or `adaLN` is a modulation, which reads one vector an
image: only its weight is quantized, as FLUX's. Anything with `emb`, `guidance` or `caption` in its name is kept.
Cross-attention's key and value, which the layouts made for a class keep, are quantized: no name tells them apart.
"""

from __future__ import annotations

import re

from torch import nn

from dirotq.models.layout import Layout
from dirotq.models.rewrite import is_pointwise

_KEPT = re.compile(r"(^|[._])(\w*embed\w*|emb|guidance|caption)([._]|$)", re.IGNORECASE)
_MODULATION = re.compile(r"norm|ada_?ln|modulat|(^|[._])mod([._]|$)", re.IGNORECASE)


def layout(model: nn.Module) -> Layout:
    """Layout of `model`, from its structure; raises ValueError when it has no linear layer to quantize."""
    blocks = tuple(f"{name}." for name in repeated(model))
    modules = {name: module for name, module in model.named_modules() if not _KEPT.search(name)}
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    inside = [name for name in linears if name.startswith(blocks)]
    pointwise = [
        name for name, module in modules.items() if is_pointwise(module) and name.startswith(blocks)
    ]
    chosen = inside if inside or pointwise else linears
    if not chosen and not pointwise:
        raise ValueError(f"{type(model).__name__} has no Linear layer to quantize")
    modulations = [name for name in chosen if name in inside and _MODULATION.search(name)]
    return Layout(
        "auto",
        (type(model).__name__,),
        quantize=tuple(
            [re.escape(name) for name in chosen if name not in modulations]
            + [re.escape(name) + r"\.linear" for name in pointwise]
        ),
        weight_only=tuple(re.escape(name) for name in modulations),
        # torch's own attention and encoder layers hold linears that they never call.
        strict=False,
        pointwise=tuple(re.escape(name) for name in pointwise),
    )


def repeated(model: nn.Module) -> list[str]:
    """Names of the outermost lists of like modules, unlike [Linear, Dropout] at the end of diffusers' attention."""
    found: list[str] = []
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.ModuleList)
            and len({type(item) for item in module}) == 1
            and not name.startswith(tuple(f"{outer}." for outer in found))
        ):
            found.append(name)
    return found
