"""How long the stages of a piece of work take, and what memory they need on a GPU."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Seconds of stages that follow one another: `lap` gives the time since the last lap to a stage.

    On a GPU each lap waits for it, and the peak is counted from here on (`torch.cuda.reset_peak_memory_stats`).
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._cuda = device if device.type == "cuda" else None
        if self._cuda:
            torch.cuda.init()  # a model on the host may be the first to use it
            torch.cuda.reset_peak_memory_stats(self._cuda)
        self._start = self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        if self._cuda:
            torch.cuda.synchronize(self._cuda)
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def peak_bytes(self) -> int:
        """Most memory that was allocated on the GPU at once; 0 for another device."""
        return torch.cuda.max_memory_allocated(self._cuda) if self._cuda else 0
