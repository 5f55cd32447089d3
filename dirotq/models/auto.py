"""Any module: the linears of its repeated blocks, or all linears where it has no such blocks.

A diffusion transformer keeps its blocks in `ModuleList`s; what stands outside them embeds, modulates globally or
projects out, and is kept.
"""

from __future__ import annotations

import re

from torch import nn

from dirotq.models.layout import Layout


def layout(model: nn.Module) -> Layout:
    """Layout of `model`, from its structure; raises ValueError when it has no linear layer."""
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise ValueError(f"{type(model).__name__} has no Linear layer to quantize")
    lists = [
        name + "." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)
    ]
    blocks = [name for name in linears if name.startswith(tuple(lists))] if lists else []
    names = blocks or linears
    patterns = tuple(re.escape(name) for name in names)
    # torch's own attention and encoder layers hold linears that they never call.
    return Layout("auto", (type(model).__name__,), patterns, strict=False)
