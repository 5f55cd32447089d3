"""Torch operators with little between a call and its kernels.

`torch.library.custom_op` spends some 30 microseconds of Python a call on gradients and on looking for outputs that
share memory with inputs. A layer is several operators, and a GPU is done with each of them in less: a model that is not
a CUDA graph would wait for Python. Operators here have no gradients, and their outputs are new.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("dirotq", "FRAGMENT")


def operator(function: Callable[..., Any], name: str | None = None) -> Any:
    """Define `function` as the operator `dirotq::<name>`, for CPU and CUDA; its annotations are the schema.

    name: the function's own by default. Operators that are made of others call functions, not operators.
    """
    name = name or function.__name__
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, function, key)
    return getattr(torch.ops.dirotq, name).default


def fake_of(overload: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what says an operator's shapes and dtypes to compilers."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        torch.library.register_fake(overload.name(), function, lib=_LIBRARY)
        return function

    return register
