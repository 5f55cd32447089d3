"""What a transform is: a linear map of a layer's input, applied online, and its inverse, folded into the weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Transform(nn.Module, ABC):
    """Splits a layer's input into a low part, to be quantized, and a high part, kept at higher precision.

    With `low, high = online(x)` and `w_low, w_high = fold(w)`, `low @ w_low.T + high @ w_high.T == x @ w.T`.

    width: K, the layer's input width. high: number r of protected coordinates; 0 for none.
    """

    kind: ClassVar[str]

    def __init__(self, width: int, high: int = 0) -> None:
        super().__init__()
        if not 0 <= high < width:
            raise ValueError(
                f"transform of width {width}: {high} protected coordinates, allowed are 0 to {width - 1}"
            )
        self.width = width
        self.high = high

    @abstractmethod
    def online(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split `x` [..., K] into low [..., low] and high [..., r] (None when r = 0), in the dtype of `x`."""

    @abstractmethod
    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split `weight` [N, K] into low and high parts that undo `online`; computed and returned in float64."""

    @property
    def low_width(self) -> int:
        """Width of the low part."""
        return self.width - self.high

    def low_moment(self, moment: Tensor) -> Tensor:
        """Second moment of the low part [low, low], float64, from that of the input [K, K].

        `online` is linear, low(x) = x A, so the moment is Aᵀ H A: `online` applied to the rows, then to the columns.
        """
        rows = self.online(moment.double())[0]
        return self.online(rows.T.contiguous())[0]

    def storage_bits(self) -> int:
        """Bits of the tensors that `online` needs."""
        return sum(t.numel() * t.element_size() * 8 for t in self.state_dict().values())

    def to_dict(self) -> dict[str, Any]:
        """JSON fields from which `dirotq.transforms.from_dict` rebuilds the (empty) transform."""
        return {"kind": self.kind, "width": self.width, "high": self.high}


class Identity(Transform):
    """Leaves the input as it is."""

    kind = "identity"

    def __init__(self, width: int, high: int = 0) -> None:
        if high:
            raise ValueError(
                f"the identity transform protects nothing, but {high} coordinates were asked for"
            )
        super().__init__(width)

    def online(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return x, None

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        return weight.double(), None

    def low_moment(self, moment: Tensor) -> Tensor:
        return moment.double()


class Dense(Transform):
    """Multiplies the input by a K x K matrix; the last r coordinates are the high part (arXiv 2605.16732).

    basis: [K, K], invertible, stored in bfloat16. The weight is folded with the inverse of the STORED matrix,
    so rounding the basis costs no accuracy: the product is exact for any invertible matrix.
    """

    kind = "dense"
    basis: Tensor

    def __init__(self, width: int, high: int, basis: Tensor | None = None) -> None:
        super().__init__(width, high)
        if basis is not None and basis.shape != (width, width):
            raise ValueError(
                f"dense transform: basis of shape {tuple(basis.shape)}, expected ({width}, {width})"
            )
        stored = torch.empty(width, width) if basis is None else basis
        # Row-major, as a checkpoint holds it: other strides may be summed in another order.
        self.register_buffer("basis", stored.to(torch.bfloat16).contiguous())

    def online(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        z = x @ self.basis.to(x.dtype)
        if not self.high:
            return z, None
        return z[..., : self.low_width], z[..., self.low_width :]

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        folded = torch.linalg.solve(self.basis.double(), weight.double().T).T
        if not self.high:
            return folded, None
        return folded[:, : self.low_width], folded[:, self.low_width :]
