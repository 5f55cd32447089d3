"""What the three trainings share: a wall-clock budget, a log, and states to resume from."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW, Optimizer


class Budget:
    """A number of seconds to train for; what an earlier leg used is part of it."""

    def __init__(self, seconds: float, used: float = 0.0) -> None:
        """Start the clock."""
        self.seconds = seconds
        self._start = time.monotonic() - used

    @property
    def used(self) -> float:
        """Seconds used so far, earlier legs included."""
        return time.monotonic() - self._start

    @property
    def progress(self) -> float:
        """The fraction used, at most 1."""
        return min(1.0, self.used / self.seconds)


def learning_rate(peak: float, progress: float, step: int, warmup: int = 200) -> float:
    """A cosine to zero over the budget, after a warm-up over the first steps of this leg."""
    return peak * min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all parameters this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def adamw(
    parameters: Iterable[Tensor], betas: tuple[float, float], weight_decay: float = 0.01
) -> AdamW:
    """AdamW without decay for vectors (biases and norms)."""
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=0.0, betas=betas, fused=every[0].is_cuda)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it is never seen half-written."""
    partial = path.with_name(path.name + ".part")
    partial.write_text(text)
    os.replace(partial, path)


class Log:
    """Rows of numbers with facts about the run, kept as one JSON file."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Continue the file if it exists (a resumed run), else start it."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        earlier = json.loads(path.read_text()) if path.exists() else {"rows": []}
        command = shlex.join(["python", *sys.orig_argv[1:]])
        self.content: dict[str, Any] = {**earlier, "command": command, **facts}
        self.content["rows"] = self.content.pop("rows")  # the long part last

    def add(self, **row: float) -> None:
        """Append a row, save, and print it."""
        rounded = {key: float(f"{value:.6g}") for key, value in row.items()}
        self.content["rows"].append(rounded)
        self.save()
        print(" ".join(f"{key} {value:g}" for key, value in rounded.items()), flush=True)

    def save(self, **facts: Any) -> None:
        """Save, with further facts."""
        self.content.update(facts)
        write_atomically(self._path, json.dumps(self.content, indent=1) + "\n")


def device_name() -> str:
    """The name of what computes."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


@dataclass(frozen=True)
class Counters:
    """How far a run is: optimizer steps, seconds used, chunks taken from the stream."""

    step: int = 0
    used: float = 0.0
    position: int = 0


def save_state(
    path: Path, tensors: Mapping[str, Tensor], optimizer: AdamW, counters: Counters
) -> None:
    """Save named tensors, the optimizer, random states and counters in one safetensors file."""
    saved = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        saved["random/cuda"] = torch.cuda.get_rng_state()
    for key, value in tensors.items():
        # Clones, because safetensors refuses tensors that share memory.
        saved[f"tensor/{key}"] = value.detach().cpu().clone().contiguous()
    for index, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            saved[f"optimizer/{index}/{key}"] = value.detach().cpu().contiguous()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    save_file(saved, partial, metadata={"counters": json.dumps(asdict(counters))})
    os.replace(partial, path)


def read_counters(path: Path) -> Counters:
    """The counters of a state; zeros where there is none."""
    if not path.exists():
        return Counters()
    with safe_open(path, framework="pt") as file:
        return Counters(**json.loads(file.metadata()["counters"]))


@torch.no_grad()
def load_state(path: Path, tensors: Mapping[str, Tensor], optimizer: AdamW) -> None:
    """Restore what :func:`save_state` saved, the tensors in place."""
    moments: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  it is no mapping
            kind, _, rest = key.partition("/")
            value = file.get_tensor(key)
            if kind == "tensor":
                tensors[rest].copy_(value)
            elif kind == "optimizer":
                index, _, leaf = rest.partition("/")
                moments.setdefault(int(index), {})[leaf] = value
            elif rest == "cpu":
                torch.set_rng_state(value)
            elif torch.cuda.is_available():
                torch.cuda.set_rng_state(value)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
