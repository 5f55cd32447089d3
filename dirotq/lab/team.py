"""The processes that `accelerate launch` started for one job, which draw its images together.

They need no messages: a part of the images is an entry of the stage cache, so that each process draws its own parts,
and whichever puts them together waits for the locks of those that others still draw, and draws what nobody has begun.
"""

from __future__ import annotations

import torch
from accelerate import PartialState

_PARTS = 4
"""Of a process: so many that one that is faster takes over some of another's."""


class Team:
    """Which of how many processes this one is; one alone where nobody launched more."""

    def __init__(self) -> None:
        self._state = PartialState(cpu=not torch.cuda.is_available())
        self.count: int = self._state.num_processes
        self.leads: bool = self._state.is_main_process

    def device(self, name: str) -> str:
        """What `runtime.device=auto` means here: the GPU that accelerate gave this process."""
        given = self._state.device
        return str(given) if name == "auto" and self.count > 1 and given.type == "cuda" else name

    def parts(self, count: int, batch: int) -> list[slice]:
        """`count` prompts in parts of whole batches, so that images are bitwise those of one process."""
        size = -(-count // (batch * _PARTS * self.count)) * batch
        return [slice(start, start + size) for start in range(0, count, size)]

    def own(self, parts: list[slice]) -> list[slice]:
        """Those of the parts that are this process's to draw."""
        with self._state.split_between_processes(parts) as mine:
            return list(mine)

    def leave(self) -> None:
        """Take leave of the others at the end."""
        if self.count > 1:
            self._state.destroy_process_group()
