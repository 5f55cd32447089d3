"""Repeated blocks of a model: to find them, to lend them a device, to stop a forward at one and to stand in for one."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dirotq.models import auto


class NotStreamedError(ValueError):
    """A model that cannot be run block by block, with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"stream: {reason}; without stream=, whole forwards are run")


class Form:
    """What the block `name` returns, but for the numbers: how tensors lie in it, and what else it holds."""

    def __init__(self, name: str, output: Any) -> None:
        self._name = name
        leaves, self._spec = pytree.tree_flatten(output)
        self._rest = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def tensors(self, output: Any) -> list[Tensor]:
        """Those of another output; raises NotStreamedError for one of another form."""
        other = Form(self._name, output)
        if (other._spec, other._rest) != (self._spec, self._rest):
            raise NotStreamedError(f"block {self._name} returns other things for other records")
        return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]

    def filled(self, tensors: Iterable[Tensor]) -> Any:
        """An output with these."""
        left = iter(tensors)
        leaves = [next(left) if leaf is Tensor else leaf for leaf in self._rest]
        return pytree.tree_unflatten(leaves, self._spec)


class Stop(BaseException):
    """Ends a forward with a block's output; no `except Exception` on the way is to catch it."""

    def __init__(self, output: Any) -> None:
        self.output = output


@contextmanager
def stopping(block: nn.Module) -> Iterator[list[bool]]:
    """Raise `Stop` with the block's output when it has run, and ValueError when its input is on the meta device.

    Yields a list that is empty until the block is reached, and then says whether its input was fit to be run on.
    """
    reached: list[bool] = []

    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves = pytree.tree_leaves((args, kwargs))
        reached.append(not any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in leaves))
        if not reached[-1]:
            raise ValueError("an input has no numbers")

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        raise Stop(output)

    handles = [
        block.register_forward_pre_hook(enter, with_kwargs=True),
        block.register_forward_hook(leave),
    ]
    try:
        yield reached
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def standing_in(block: nn.Module, output: Any) -> Iterator[None]:
    """Let `block` return `output` meanwhile, whatever it is given."""
    own = block.__dict__.get("forward")
    block.__dict__["forward"] = lambda *_, **__: output
    try:
        yield
    finally:
        del block.__dict__["forward"]
        if own is not None:
            block.__dict__["forward"] = own


@contextmanager
def lent(device: torch.device, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Parameters and buffers have copies on `device` for their data meanwhile; their own stay where they are."""
    kept = [(tensor, tensor.data) for tensor in {id(t): t for t in tensors}.values()]
    try:
        with torch.inference_mode(False):
            for tensor, data in kept:
                tensor.data = data.to(device)
        yield
    finally:
        with torch.inference_mode(False):
            for tensor, data in kept:
                tensor.data = data


def tensors_of(*modules: nn.Module, recurse: bool = True) -> Iterator[Tensor]:
    """Parameters and buffers of modules, with `recurse` those of the modules in them, too."""
    for module in modules:
        yield from itertools.chain(module.parameters(recurse), module.buffers(recurse))


def blocks_of(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The repeated blocks, by name, of the lists that hold any of the linears `names`.

    Raises NotStreamedError for a linear that is in no such list, and for blocks with forward hooks.
    """
    blocks: dict[str, nn.Module] = {}
    found: set[str] = set()
    for outer in auto.repeated(model):
        inside = {name for name in names if name.startswith(f"{outer}.")}
        if inside:
            found |= inside
            children = model.get_submodule(outer).named_children()
            blocks.update({f"{outer}.{child}": block for child, block in children})
    for name in names:
        if name not in found:
            raise NotStreamedError(f"layer {name} is in no repeated block")
    for name, block in blocks.items():
        if block._forward_hooks:
            # What stands in for the block would run them on what they returned.
            raise NotStreamedError(f"block {name} has forward hooks")
    return blocks


def index_of(layer: str, blocks: Iterable[str]) -> int:
    """Number of the block that holds a layer."""
    return next(i for i, name in enumerate(blocks) if f"{layer}.".startswith(f"{name}."))
