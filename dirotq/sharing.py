"""What several layers need of one tensor, computed once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from dirotq.storage import FixedDtype


class Shared(FixedDtype, ABC):
    """A module whose result is kept until `readers` have read it for the same tensor, and dropped then."""

    def __init__(self, readers: int) -> None:
        super().__init__()
        self.readers = readers
        self._kept: tuple[Tensor, int, Any] | None = None
        self._left = 0

    def forward(self, x: Tensor) -> Any:
        """`compute(x)`, or what it gave a reader before this one."""
        compiling = torch.compiler.is_compiling()
        if self.readers == 1 or (not compiling and x.is_inference()):
            # Inference tensors do not say whether they were changed in place since the last reader saw them.
            return self.compute(x)
        # A compiled graph knows.
        version = 0 if compiling else x._version
        if self._kept is not None and self._kept[0] is x and self._kept[1] == version:
            result = self._kept[2]
            self._left -= 1
            if not self._left:
                self._kept = None
            return result
        result = self.compute(x)
        self._left = self.readers - 1
        self._kept = (x, version, result)
        return result

    @abstractmethod
    def compute(self, x: Tensor) -> Any:
        """What is shared."""
