"""Launching a kernel with little of Python between a call and the GPU.

Triton sorts out the arguments of each launch, some 25 microseconds of Python, and its `cdiv` takes another 12 for a
division. A quantized linear is four launches, and a GPU is done with them in less. So what was compiled is kept here by
all that Triton would look at, and launched as it is.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton.runtime.jit import JITFunction

_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def start(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """`kernel[grid](*args, **constants)`, compiled once for arguments that are alike.

    args: the first ones, in order: a tensor on the current device, then tensors, numbers and None. constants: all
    others by name, and Triton's options.
    Whole numbers count as alike when they are equal, so they are to be few: shapes, not counters.
    """
    if not isinstance(kernel, JITFunction):
        kernel[grid](*args, **constants)  # Triton's interpreter
        return
    key = (
        id(kernel),  # modules hold them, and they hash all of their source
        args[0].device,
        *[(arg.dtype, arg.data_ptr() % 16) if isinstance(arg, Tensor) else arg for arg in args],
        *constants.items(),
    )
    found = _compiled.get(key)
    if found is None:
        compiled = kernel[grid](*args, **constants)
        names = kernel.arg_names[len(args) :]
        _compiled[key] = compiled, tuple(constants[name] for name in names)
        return
    compiled, rest = found
    compiled[(*grid, 1, 1)[:3]](*args, *rest)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_above(n: int) -> int:
    """The least power of two that is not below `n`, which is positive."""
    return 1 << (n - 1).bit_length()
