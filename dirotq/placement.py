"""Tensors of a file put into a model, part of which may be on the meta device, where tensors have no numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def destination(model: nn.Module, device: torch.device | str | None) -> torch.device:
    """Where a model is to be: `device`, or where its parameters are; the CPU where all are on meta.

    Raises ValueError for device=meta.
    """
    if device is None:
        found = (parameter.device for parameter in model.parameters() if not parameter.is_meta)
        return next(found, torch.device("cpu"))
    chosen = torch.device(device)
    if chosen.type == "meta":
        raise ValueError("device=meta, allowed are devices whose tensors have numbers")
    return chosen


def unheld(model: nn.Module) -> list[str]:
    """Names of the tensors on meta that are not in the model's `state_dict`, and so in no file."""
    found = {
        f"{owner}.{leaf}".removeprefix(".")
        for owner, module in model.named_modules()
        # Some models keep tables of positions as plain attributes.
        for leaf, tensor in (*module._buffers.items(), *vars(module).items())
        if isinstance(tensor, Tensor) and tensor.is_meta
    }
    return sorted(found - model.state_dict().keys())


def fill(model: nn.Module, tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Give the model the `tensors` of its `state_dict`: copies on `device` where it is on meta.

    Other tensors of the model keep their memory. One is copied after the other, so that beside a file that is mapped
    into memory no more than the result is needed. When one does not fit the device the model is as it was.
    """
    own = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    copies: dict[Tensor, Tensor] = {}
    placed: dict[str, Tensor] = {}
    for name, tensor in own:
        if not tensor.is_meta:
            continue
        if tensor not in copies:
            # On the CPU too: what is mapped changes with its file.
            copy = tensors[name].to(device, copy=True)
            trained = isinstance(tensor, nn.Parameter)
            copies[tensor] = nn.Parameter(copy, tensor.requires_grad) if trained else copy
        placed[name] = copies[tensor]  # tied parameters stay one
    model.load_state_dict(placed, strict=False, assign=True)
    rest = {name: tensor for name, tensor in tensors.items() if name not in placed}
    model.load_state_dict(rest, strict=False)
