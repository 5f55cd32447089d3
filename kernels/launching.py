"""Launching a kernel with little of Python between a call and the GPU.

Triton sorts out the arguments of each launch, some 25 microseconds of Python, and its `cdiv` takes another 12 for a
division. A quantized linear is four launches, and a GPU is done with them in less. So what was compiled is kept here by
all that Triton would look at, and launched as it is, on the device of its tensors, where Triton takes the current one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}


def start(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """`kernel[grid](*args, **constants)`, compiled once for arguments that are alike.

    args: the first ones, in order: a tensor, then more of its device, numbers and None. constants: all others by name,
    and Triton's options.
    Whole numbers count as alike when they are equal, so they are to be few: shapes, not counters.
    """
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            return start(kernel, grid, *args, **constants)
    if not isinstance(kernel, JITFunction):
        return kernel[grid](*args, **constants)  # Triton's interpreter
    key = (
        id(kernel),  # modules hold them, and they hash all of their source
        device,
        *[(arg.dtype, arg.data_ptr() % 16) if isinstance(arg, Tensor) else arg for arg in args],
        *constants.items(),
    )
    found = _compiled.get(key)
    if found is None:
        compiled = kernel[grid](*args, **constants)
        names = kernel.arg_names[len(args) :]
        _compiled[key] = compiled, tuple(constants[name] for name in names)
    else:
        compiled, rest = found
        compiled[(*grid, 1, 1)[:3]](*args, *rest)
    return None


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def power_above(n: int) -> int:
    """The least power of two that is not below `n`, which is positive."""
    return 1 << (n - 1).bit_length()


def in_rows(x: Tensor) -> Tensor:
    """`x` [..., K] as [M, K] whose rows may lie apart, each in one piece: a part of a wider tensor is not copied."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()
