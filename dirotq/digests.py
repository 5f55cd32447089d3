"""Hashes of tensors by content, the same on every device."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_THREADS = 8
_PIECE = 1 << 24  # bytes that come to the host at once from another device


def add_tensor(content: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    """Let name, dtype, shape and bytes of a tensor count; what is on the host is read where it lies."""
    content.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    for piece in flat.split(flat.numel() if flat.is_cpu else _PIECE):
        content.update(piece.cpu().numpy().data)


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """BLAKE2b of tensors by name, 16 hex digits; their order does not count."""
    content = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        add_tensor(content, name, tensor)
    return content.hexdigest()


def of_each(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    """`of_tensors` of each group, by name. Hashed side by side."""
    with _pool() as pool:
        return dict(zip(groups, pool.map(of_tensors, groups.values()), strict=True))


def of_weights(model: nn.Module) -> str:
    """BLAKE2b of all parameters and buffers, by name; 32 hex digits. Hashed side by side: a gigabyte takes a second."""

    def one(item: tuple[str, Tensor]) -> str:
        content = hashlib.blake2b(digest_size=16)
        add_tensor(content, *item)
        return content.hexdigest()

    tensors = [*model.named_parameters(), *model.named_buffers()]
    with _pool() as pool:
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


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))
