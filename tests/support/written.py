"""Which tensors with numbers come into being while something runs."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# Memory that is asked for and never written to is none: modules made on meta are allocated so first.
_EMPTY = {"empty", "empty_strided", "new_empty", "empty_like"}


class Written(TorchDispatchMode):
    """Notes the shapes of all floating-point tensors that operations return, on any device but meta."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in _EMPTY:
            self.shapes |= {
                tuple(tensor.shape)
                for tensor in pytree.tree_leaves(result)
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.is_meta
            }
        return result


def shapes_of(model: nn.Module, chosen: Callable[[str], bool]) -> set[tuple[int, ...]]:
    """Of the weights of the linears `chosen`, without those that other linears have too."""
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    found = {
        flag: {tuple(its.weight.shape) for n, its in linears.items() if chosen(n) is flag}
        for flag in (True, False)
    }
    return found[True] - found[False]


def written_by(run: Callable[[], object]) -> set[tuple[int, ...]]:
    """Shapes of the floating-point tensors that were made."""
    with Written() as mode:
        run()
    return mode.shapes
