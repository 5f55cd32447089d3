"""A model's forward as a CUDA graph: the GPU launches the kernels, and Python is no longer waited for.

A forward of a 4-bit transformer is thousands of short kernels, and the GPU is done with one before Python has launched
the next. A graph is recorded once for arguments of the same shapes and replayed: the same kernels, so the same numbers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# What is compiled or chosen at a first call must not be recorded.
_WARM_UP = 3
_PLAIN = (bool, int, float, complex, str, torch.dtype, torch.device, type(None))
_HOOKS = {"_hf_hook": "accelerate", "_diffusers_hook": "diffusers"}


def capture(model: nn.Module, most: int = 4) -> None:
    """Let calls of `model`, in place, replay CUDA graphs; for inference, and to be called after `set_backend`.

    The first call with arguments of new shapes, dtypes or values (of those that are no tensors) records a graph, the
    least recently used of more than `most` is dropped. Arguments are copied, and results are the caller's own. A graph
    keeps the memory of a forward's activations, and of the weights. These may change their numbers, but not which
    tensors they are: parameters that moved are noticed by the next call, whatever else is exchanged needs `release`,
    and after new numbers for quantized linears `set_backend` is to be called again. Blocks may be compiled first
    (`model.compile_repeated_blocks(fullgraph=True)`), the whole model may not.

    Raises ValueError for a model that is not on one GPU, is moved by hooks, is compiled as a whole or captured already;
    a call raises it for a tensor elsewhere, and TypeError for arguments or results of an unknown class.
    """
    if most < 1:
        raise ValueError(f"most={most}, allowed are positive integers")
    if isinstance(model.__dict__.get("forward"), Captured):
        raise ValueError("capture: the model is captured already; dirotq.release(model) undoes it")
    if model._compiled_call_impl is not None or hasattr(model, "_orig_mod"):
        raise ValueError(
            "capture: the model is compiled as a whole, allowed are compiled blocks "
            "(model.compile_repeated_blocks(fullgraph=True))"
        )
    for name, module in model.named_modules():
        for attribute, library in _HOOKS.items():
            if getattr(module, attribute, None) is not None:
                raise ValueError(
                    f"capture: {name or 'the model'} has hooks of {library}, as offloading puts them; allowed is a "
                    "model that stays on its GPU"
                )
    model.forward = Captured(model, _device_of(model), most)


def release(model: nn.Module) -> None:
    """Undo `capture` and free the graphs; nothing happens to a model that is not captured."""
    captured = model.__dict__.get("forward")
    if isinstance(captured, Captured):
        captured.restore()


def forget(model: nn.Module) -> None:
    """Drop the graphs of `model` and its parts, which record anew: what computes them has changed."""
    for module in model.modules():
        captured = module.__dict__.get("forward")
        if isinstance(captured, Captured):
            captured.clear()


def refuse(model: nn.Module, what: str) -> None:
    """Raise ValueError where the model or a part of it is captured: a replay runs no hooks, and other weights."""
    for name, module in model.named_modules():
        if isinstance(module.__dict__.get("forward"), Captured):
            raise ValueError(
                f"{what}: {name or 'the model'} is captured; allowed after dirotq.release"
            )


def record(run: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """A replay of what `run` does on a GPU, and what it returned: tensors that each replay writes anew."""
    with torch.cuda.device(device):
        _free_workspaces()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        _free_workspaces()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run()
        _free_workspaces()
    return graph.replay, outputs


def _free_workspaces() -> None:
    """Give back what cuBLAS works in, which PyTorch keeps for every stream that it ever ran on: 32 MiB each on an H100.

    What was allocated while a graph was recorded stays the graph's own.
    """
    torch._C._cuda_clearCublasWorkspaces()


@dataclass(frozen=True)
class _Recording:
    """A graph, the tensors that it reads and those that it writes."""

    replay: Callable[[], None]
    inputs: list[Tensor]
    outputs: Any


class Captured:
    """The forward of a model by graphs, in place of its own."""

    def __init__(self, model: nn.Module, device: torch.device, most: int) -> None:
        self._model = model
        self._device = device
        self._most = most
        self._own = model.__dict__.get("forward")  # None where it is the class's
        self._forward = model.forward
        update_wrapper(self, model.forward)  # its signature, which pipelines may look at
        self._recordings: OrderedDict[Hashable, _Recording] = OrderedDict()
        # Kept, so that no graph reads memory that is another tensor's by now.
        self._weights: list[Tensor] = []
        self._places: list[int] = []

    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own forward returns, in new tensors."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = (str(structure), _surroundings(), *map(self._alike, leaves))
        if self._places != _places(self._weights):
            self.clear()
        found = self._recordings.get(key)
        if found is None:
            found = self._recorded(leaves, structure)
            self._recordings[key] = found
            if len(self._recordings) > self._most:
                self._recordings.popitem(last=False)
        self._recordings.move_to_end(key)
        for mine, given in zip(found.inputs, tensors, strict=True):
            mine.copy_(given)
        found.replay()
        return pytree.tree_map_only(Tensor, Tensor.clone, found.outputs)

    def clear(self) -> None:
        """Drop all graphs."""
        self._recordings.clear()
        self._weights, self._places = [], []

    def restore(self) -> None:
        """Give the model its own forward back."""
        self.clear()
        del self._model.__dict__["forward"]
        if self._own is not None:
            self._model.forward = self._own

    def _recorded(self, leaves: list[Any], structure: pytree.TreeSpec) -> _Recording:
        if not self._recordings:
            self._weights = [*self._model.parameters(), *self._model.buffers()]
            self._places = _places(self._weights)
        held = [
            torch.empty_like(leaf).copy_(leaf) if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ]
        args, kwargs = pytree.tree_unflatten(held, structure)
        replay, outputs = record(lambda: self._forward(*args, **kwargs), self._device)
        for leaf in pytree.tree_leaves(outputs):
            if not isinstance(leaf, (Tensor, *_PLAIN)):
                raise TypeError(f"capture: the model returns a {type(leaf).__name__}, {_ALLOWED}")
        return _Recording(replay, [leaf for leaf in held if isinstance(leaf, Tensor)], outputs)

    def _alike(self, leaf: Any) -> Hashable:
        """What two arguments of one graph have in common."""
        if isinstance(leaf, Tensor):
            if leaf.device != self._device:
                raise ValueError(
                    f"capture: an argument of shape {list(leaf.shape)} is on {leaf.device}, allowed is {self._device}"
                )
            return leaf.shape, leaf.stride(), leaf.dtype
        if not isinstance(leaf, _PLAIN):
            raise TypeError(f"capture: an argument is a {type(leaf).__name__}, {_ALLOWED}")
        return type(leaf), leaf


_ALLOWED = "allowed are tensors, numbers, strings and None, also in tuples, lists and dictionaries"


def _device_of(model: nn.Module) -> torch.device:
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if len(devices) != 1 or next(iter(devices)).type != "cuda":
        names = ", ".join(sorted(map(str, devices))) or "no device"
        raise ValueError(f"capture: the model is on {names}, allowed is one GPU")
    return devices.pop()


def _surroundings() -> Hashable:
    """What a forward depends on beside its arguments."""
    return torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")


def _places(tensors: Iterable[Tensor]) -> list[int]:
    # Subclasses that wrap other tensors have no memory of their own.
    plain = (Tensor, nn.Parameter)
    return [tensor.data_ptr() if type(tensor) in plain else 0 for tensor in tensors]
