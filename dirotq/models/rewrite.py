"""Linears in disguise, made ordinary ones: one that reads concatenated inputs, and a 1x1 convolution.

What is concatenated differs in scale and structure (in FLUX an attention output and a feed-forward's hidden layer), so
each part is to have its own statistics, transform and groups; SVDQuant (arXiv 2411.05007) splits the same layer.
Rewriting changes names, so a checkpoint records it and loading repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

from torch import Tensor, nn

from dirotq.models.layout import Layout, Width

Record = dict[str, list[Any]]  # name -> ["split", [widths]] or ["pointwise"], JSON as it is


class SplitLinear(nn.Module):
    """A linear whose input is a concatenation: the sum of `parts`, each of which reads its piece of the input.

    widths: of the pieces, last dimension, in order. The last part holds the bias.
    """

    def __init__(self, parts: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.widths = tuple(part.in_features for part in parts)
        self.parts = nn.ModuleList(parts)

    @classmethod
    def of(cls, linear: nn.Linear, widths: Sequence[int]) -> Self:
        """Split `linear`, weight [N, K], into pieces of `widths`, which sum to K and share its memory."""
        last = len(widths) - 1
        return cls(
            [
                _linear(weight, linear.bias if index == last else None, linear)
                for index, weight in enumerate(linear.weight.detach().split(list(widths), dim=1))
            ]
        )

    def forward(self, input: Tensor) -> Tensor:
        """`input` [..., K] -> [..., N]. In 16 bits each part is rounded before the sum."""
        first, *others = input.split(self.widths, dim=-1)
        total: Tensor = self.parts[0](first)
        for part, piece in zip(self.parts[1:], others, strict=True):
            total = total + part(piece)
        return total


class PointwiseLinear(nn.Module):
    """A 1x1 convolution as a linear over the channels."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        """The linear of `conv` [N, K, 1, 1], which shares its memory."""
        return cls(_linear(conv.weight.detach().flatten(1), conv.bias, conv))

    def forward(self, input: Tensor) -> Tensor:
        """`input` [..., K, H, W] -> [..., N, H, W], channels last in memory."""
        output: Tensor = self.linear(input.movedim(-3, -1))
        return output.movedim(-1, -3)


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is a convolution that mixes the channels of one pixel and does nothing else."""
    return (
        isinstance(module, nn.Conv2d)
        and (module.kernel_size, module.stride) == ((1, 1), (1, 1))
        and module.padding in ((0, 0), "same", "valid")
        and module.groups == 1
    )


def apply(model: nn.Module, layout: Layout) -> Record:
    """Rewrite, in place, what `layout` names; returns what was done.

    Raises ValueError for a layer that cannot be rewritten; the layers before it then are, see `undo`.
    """
    record: Record = {}
    for pattern, widths in layout.splits:
        for name in layout.matching(model, pattern):
            record[name] = ["split", _widths(name, model.get_submodule(name), widths)]
    for pattern in layout.pointwise:
        record.update({name: ["pointwise"] for name in layout.matching(model, pattern)})
    redo(model, record)
    return record


def redo(model: nn.Module, record: Mapping[str, Sequence[Any]]) -> None:
    """Repeat, in place, what `apply` recorded on another instance of the architecture.

    Raises ValueError for an unknown name or kind and for a layer that it does not fit; the layers before it then are
    rewritten, see `undo`.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"rewrites is a {type(record).__name__}, allowed is a mapping")
    for name, entry in record.items():
        try:
            module = model.get_submodule(name)
        except AttributeError:
            raise ValueError(f"rewrites: {type(model).__name__} has no layer {name!r}") from None
        match entry:
            case ["split", [*widths]]:
                new: nn.Module = SplitLinear.of(*_splittable(name, module, widths))
            case ["pointwise"]:
                if not (isinstance(module, nn.Conv2d) and is_pointwise(module)):
                    raise ValueError(f"layer {name} is no 1x1 convolution: {module}")
                new = PointwiseLinear.of(module)
            case _:
                raise ValueError(
                    f"rewrites: {name}={entry!r}, allowed are ['split', [widths]] and ['pointwise']"
                )
        model.set_submodule(name, new.train(module.training))


def undo(model: nn.Module, originals: Mapping[str, nn.Module]) -> None:
    """Put the `originals`, `dict(model.named_modules())` of an earlier moment, back wherever they were replaced."""
    for name, module in originals.items():
        if name and model.get_submodule(name) is not module:
            model.set_submodule(name, module)


@contextmanager
def applied(model: nn.Module, layout: Layout, *, keep: bool = False) -> Iterator[Record]:
    """`apply` for the time of a `with` block; with `keep` for good, unless the block raises."""
    originals = dict(model.named_modules())
    try:
        yield apply(model, layout)
    except BaseException:
        undo(model, originals)
        raise
    if not keep:
        undo(model, originals)


def _widths(name: str, module: nn.Module, widths: Sequence[Width]) -> list[int]:
    """The widths of all parts, from a layout's of all but the last."""
    linear = _linear_layer(name, module)
    known = [linear.out_features if width == "out_features" else width for width in widths]
    return [*known, linear.in_features - sum(known)]


def _splittable(
    name: str, module: nn.Module, widths: Sequence[Any]
) -> tuple[nn.Linear, Sequence[int]]:
    linear = _linear_layer(name, module)
    if not all(type(width) is int and width > 0 for width in widths) or (
        sum(widths) != linear.in_features
    ):
        raise ValueError(
            f"layer {name} cannot be split into widths {list(widths)}: allowed are positive integers"
            f" that sum to {linear.in_features}"
        )
    return linear, widths


def _linear_layer(name: str, module: nn.Module) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise ValueError(
            f"layer {name} is a {type(module).__name__}, only Linear layers can be split"
        )
    return module


def _linear(weight: Tensor, bias: Tensor | None, like: nn.Linear | nn.Conv2d) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=like.weight.requires_grad)
    if isinstance(bias, nn.Parameter):
        linear.bias = bias
    return linear
