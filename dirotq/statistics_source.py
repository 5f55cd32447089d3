"""Where quantizing takes its statistics from: given ones, whole forwards, or blocks one after the other."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from dirotq import activations, calibrate, digests, resume
from dirotq.calibrate import InputStatistics, Members
from dirotq.models import Layout
from dirotq.passes import Batches, Calls, Passes
from dirotq.recipes import Recipe
from dirotq.streaming import Streaming


class Source(Protocol):
    """Statistics of distinct inputs."""

    def groups(self, names: Iterable[str], *, strict: bool) -> list[Members]:
        """The distinct inputs of the linears `names`, in forward order."""

    def statistics(self, groups: Sequence[Members]) -> Generator[InputStatistics, None, None]:
        """Statistics of some of them, in this order; a caller is to drop each before it takes the next."""


class Given:
    """Statistics that were collected before."""

    def __init__(self, statistics: Sequence[InputStatistics]) -> None:
        self._statistics = statistics

    def groups(self, names: Iterable[str], *, strict: bool) -> list[Members]:
        return [entry.members for entry in self._statistics]

    def statistics(self, groups: Sequence[Members]) -> Generator[InputStatistics, None, None]:
        return (entry for entry in self._statistics if entry.members in groups)


@dataclass(frozen=True)
class Means:
    """Memory, device and folder of a quantization, as `dirotq.quantize` describes them."""

    memory: int | None = None
    stream: torch.device | None = None
    workdir: Path | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        if self.memory is not None and self.memory <= 0:
            raise ValueError(f"memory={self.memory}, allowed are positive numbers of bytes")

    def open(
        self,
        model: nn.Module,
        recipe: Recipe,
        layout: Layout,
        batches: Batches,
        statistics: Sequence[InputStatistics] | None,
    ) -> tuple[Source, resume.Shelf]:
        """The source of statistics, and the shelf of what is finished."""
        if statistics is not None:
            for key in ("memory", "stream"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}={getattr(self, key)} has no use beside statistics=")
            given = calibrate.fingerprint(calibrate.digest(its, whole=True) for its in statistics)
            return Given(statistics), self._shelf(model, recipe, layout, self.calibration or given)
        calls = Calls(batches)
        identity = self.calibration
        if self.workdir is not None and identity is None:
            calls.once_more("workdir= goes by a hash of their content; calibration= would do")
            identity = digests.of_batches(calls.read())
        shelf = self._shelf(model, recipe, layout, identity or "")
        if self.stream is None:
            return Passes(model, calls, self.memory), shelf
        folder = shelf.folder
        store = activations.Files(folder / "outputs") if folder else activations.Memory()
        return Streaming(model, calls, self.memory, self.stream, store), shelf

    def _shelf(
        self, model: nn.Module, recipe: Recipe, layout: Layout, calibration: str
    ) -> resume.Shelf:
        if self.workdir is None:
            return resume.Shelf(None)
        device = self.stream or next(model.parameters()).device
        run = resume.run_of(model, recipe, layout, calibration, device)
        return resume.Shelf(self.workdir / run)
