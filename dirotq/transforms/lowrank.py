"""SVDQuant's split (arXiv 2411.05007): a smoothed input of full width, and a low-rank branch beside it."""

from __future__ import annotations

import torch
from torch import Tensor

from dirotq.transforms.base import Transform


class LowRank(Transform):
    """low = x / s, of the whole width; high = (x / s) D. The weight folds to W s - up Dᵀ and `up`.

    Tensors: `scales` bfloat16 [K] (s), `down` bfloat16 [K, r] (D). Folding uses the STORED tensors, and `up` as a layer
    stores it, in bfloat16: what is subtracted is what the branch adds, so that rounding the factors costs no accuracy.
    `up` bfloat16 [N, r] is the protected weight of the linears the transform was made for. It is a plain attribute,
    because a layer stores it as its own `high`: a loaded transform has none, and cannot fold.
    """

    kind = "lowrank"
    scales: Tensor
    down: Tensor

    def __init__(
        self,
        width: int,
        high: int,
        scales: Tensor | None = None,
        down: Tensor | None = None,
        up: Tensor | None = None,
    ) -> None:
        """scales: [K], positive; down: [K, r]; up: [N, r]; any dtype. None leaves the tensors to be loaded.

        Raises ValueError when r is 0 or not below K, for other shapes, and for scales that are not positive and finite
        in bfloat16.
        """
        super().__init__(width, high)
        if not high:
            raise ValueError("the low-rank transform needs a branch of at least one column")
        if scales is None:
            scales = torch.ones(width)
        elif not bool((torch.isfinite(scales.bfloat16()) & (scales.bfloat16() > 0)).all()):
            raise ValueError("low-rank transform: scales must be positive and finite in bfloat16")
        down = torch.zeros(width, high) if down is None else down
        for name, shape, wanted in (
            ("scales", scales.shape, (width,)),
            ("down", down.shape, (width, high)),
            ("up", up.shape[1:] if up is not None else (high,), (high,)),
        ):
            if shape != wanted:
                raise ValueError(
                    f"low-rank transform: {name} of shape {tuple(shape)}, expected {wanted}"
                )
        self.register_buffer("scales", scales.to(torch.bfloat16))
        # Row-major, as a checkpoint holds it: other strides may be summed in another order.
        self.register_buffer("down", down.to(torch.bfloat16).contiguous())
        self.up = None if up is None else up.detach().bfloat16()

    @property
    def low_width(self) -> int:
        return self.width

    def online(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        smoothed = x / self.scales.to(x.dtype)
        return smoothed, smoothed @ self.down.to(x.dtype)

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """As declared; raises RuntimeError without `up`, ValueError for a weight of other rows than `up`."""
        if self.up is None:
            raise RuntimeError("this low-rank transform has no up factor: it was loaded, not made")
        if weight.shape[0] != self.up.shape[0]:
            raise ValueError(
                f"low-rank transform made for {self.up.shape[0]} output rows, given {weight.shape[0]}"
            )
        up = self.up.to(weight.device, torch.float64)
        return weight.double() * self.scales.double() - up @ self.down.double().T, up
