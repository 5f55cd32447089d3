"""Hashes of tensors by content, the same on every device."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_THREADS = 8


def add_tensor(content: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    """Let name, dtype, shape and bytes of a tensor count."""
    content.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
    flat = tensor.detach().contiguous().cpu().flatten()
    content.update(flat.view(torch.uint8).numpy().data)


def of_weights(model: nn.Module) -> str:
    """BLAKE2b of all parameters and buffers, by name; 32 hex digits. Hashed side by side: a gigabyte takes a second."""

    def one(item: tuple[str, Tensor]) -> str:
        content = hashlib.blake2b(digest_size=16)
        add_tensor(content, *item)
        return content.hexdigest()

    tensors = [*model.named_parameters(), *model.named_buffers()]
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return of_text(" ".join(pool.map(one, tensors)))


def of_batches(batches: Iterable[Any]) -> str:
    """BLAKE2b of calibration batches, 32 hex digits: their tensors, and what else they hold as `repr` writes it."""
    content = hashlib.blake2b(digest_size=16)
    for batch in batches:
        leaves, form = pytree.tree_flatten(batch)
        content.update(repr(form).encode())
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                add_tensor(content, "", leaf)
            else:
                content.update(repr(leaf).encode())
    return content.hexdigest()


def of_text(text: str) -> str:
    """BLAKE2b of a text, 32 hex digits."""
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
