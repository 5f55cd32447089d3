"""Randomized Hadamard transform of any width (QuaRot, arXiv 2404.00456; QuIP#, arXiv 2402.04396)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dirotq.transforms.base import Transform
from dirotq.transforms.orthogonal import random_orthogonal
from dirotq.transforms.paley import construct, constructed, factor


class Hadamard(Transform):
    """online(x) = (x * signs) H, fold(W) = (W * signs) H; H = Q x H_1 x ... x H_n / sqrt(orders), a Kronecker product.

    The H_i are Hadamard matrices of ±1, constructed from their `orders` (`paley.construct`) and not stored. Together
    they make up the width where they can (72 = 2 · 36, 5600 = 28 · 200, 12288 = 16 · 24 · 32), and H is then exactly
    orthogonal with all its entries ±1/sqrt(K). One factor is applied after the other, which costs the sum of
    the orders in multiply-adds a coordinate; H is never formed.

    Where no Hadamard matrix of the width can be constructed (4 does not divide it, or its primes are not Paley's), the
    smallest factor that is left over, m, becomes Q [m, m]: a random orthogonal matrix (Haar, from `generator`), stored
    as `mixing` in bfloat16. The weight is then folded with the inverse of the STORED matrix, as with `Dense`, so the
    product is exact although Q is orthogonal to some 2^-8 only. An odd width is Q alone: K² operations and numbers.

    signs: int8 [K], ±1. orders: None for those `paley.factor` chooses; a checkpoint names its own.
    generator: of signs and Q; None leaves them (all 1, and the identity) to be loaded.
    Raises ValueError for orders that cannot be constructed and for a product of orders that does not divide the width.
    """

    kind = "hadamard"
    signs: Tensor
    mixing: Tensor | None

    def __init__(
        self,
        width: int,
        high: int = 0,
        orders: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if high:
            raise ValueError(
                f"the hadamard transform protects nothing, but {high} coordinates were asked for"
            )
        super().__init__(width)
        self.orders = factor(width) if orders is None else tuple(orders)
        if min(self.orders, default=1) < 1 or width % math.prod(self.orders):
            raise ValueError(
                f"hadamard transform of width {width}: orders={list(self.orders)}, "
                "allowed are orders whose product divides the width"
            )
        for order in self.orders:
            construct(order)
        left = width // math.prod(self.orders)
        signs, mixing = torch.ones(width), torch.eye(left)
        if generator is not None:
            signs = torch.randint(0, 2, (width,), generator=generator) * 2 - 1
            mixing = random_orthogonal(left, generator) if left > 1 else mixing
        self.register_buffer("signs", signs.to(torch.int8))
        # LAPACK's matrix is column-major; a loaded one is not, and its products would be rounded in another order.
        stored = mixing.to(torch.bfloat16).contiguous() if left > 1 else None
        self.register_buffer("mixing", stored)

    def online(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._apply_factors(x, self.mixing), None

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        inverse = None if self.mixing is None else torch.linalg.inv(self.mixing.double()).T
        return self._apply_factors(weight.double(), inverse), None

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "orders": list(self.orders)}

    def _apply_factors(self, x: Tensor, mixing: Tensor | None) -> Tensor:
        # The factors keep their ±1, exact in every dtype; scaling first keeps float16 from overflowing.
        x = x * self.signs.to(x.dtype) * math.prod(self.orders) ** -0.5
        factors = [] if mixing is None else [mixing.to(device=x.device, dtype=x.dtype)]
        for matrix in [*factors, *(constructed(order, x.dtype, x.device) for order in self.orders)]:
            x = _rotate_leading(x, matrix)
        return x


def _rotate_leading(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the leading axis of the last dimension [m * rest] by `matrix` [m, m] and put it last, [rest * m].

    Once every axis has had its turn they are in order again.
    """
    parts = x.unflatten(-1, (matrix.shape[0], x.shape[-1] // matrix.shape[0]))
    rotated: Tensor = (parts.mT @ matrix).flatten(-2)
    return rotated
