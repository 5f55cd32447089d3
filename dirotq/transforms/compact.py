"""DiRotQ's split at O(K r) operations: a block reflector that separates a subspace, then a block Hadamard.

For orthonormal columns U [K, r], aligned so that their last r rows S are symmetric positive semidefinite (polar
decomposition, which changes the basis of the subspace but not the subspace), and E the last r columns of the identity,
Q = I - V T Vᵀ with V = U + E and T = (I + S)⁻¹ is orthogonal, symmetric, and maps the subspace onto the last r
coordinates: Q U = -E. It is the block form of a Householder reflector (Schreiber and Parlett, SIAM J. Numer. Anal. 25,
1988). A dense rotation that separates the same subspace costs K² operations a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dirotq.transforms.base import Transform
from dirotq.transforms.hadamard import block_hadamard
from dirotq.transforms.orthogonal import polar

# Larger ones are aligned by some ten inversions, which take a GPU far less time than one SVD takes anybody.
_LARGEST_SVD = 1024


class Compact(Transform):
    """high = -x U, low = (x_low - (x U + x_high) C) D H, with D random signs and H a block Hadamard of size `block`.

    Tensors: `subspace` [K, r] (U), `correction` [r, low] (C = T U_lowᵀ), `signs` int8 [low]. With bits=16 the first two
    are bfloat16; with bits=8 they are int8 codes over `subspace_scales` and `correction_scales`, bfloat16 [r], one for
    each protected coordinate. As with `Dense`, the weight is folded with the exact inverse of the map that the STORED
    tensors define: coarser tensors let a little of the subspace leak into the low part, and cost nothing else.
    """

    kind = "compact"
    subspace: Tensor
    correction: Tensor
    subspace_scales: Tensor
    correction_scales: Tensor
    signs: Tensor

    def __init__(
        self,
        width: int,
        high: int,
        block: int = 64,
        subspace: Tensor | None = None,
        signs: Tensor | None = None,
        bits: int = 16,
    ) -> None:
        """subspace: orthonormal columns [K, r], any dtype; signs: ±1 [low]. None leaves the tensors to be loaded."""
        super().__init__(width, high)
        if bits not in (8, 16):
            raise ValueError(f"compact transform: bits={bits}, allowed are 8 and 16")
        if not high:
            raise ValueError("the compact transform needs at least one protected coordinate")
        self.block = block
        aligned = torch.zeros(width, high) if subspace is None else _align(subspace.double(), high)
        correction = torch.zeros(high, self.low_width) if subspace is None else _correction(aligned)
        chosen = torch.ones(self.low_width) if signs is None else signs
        self.bits = bits
        self._register("subspace", aligned, 0)
        self._register("correction", correction, 1)
        self.register_buffer("signs", chosen.to(torch.int8))

    def online(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        subspace, correction = self._tensors(x.dtype)
        projected = x @ subspace
        reflected = projected + x[..., self.low_width :]
        low = x[..., : self.low_width] - reflected @ correction
        return block_hadamard(low * self.signs.to(x.dtype), self.block), -projected

    def fold(self, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        # With low and high known, x_high solves an r x r system whose matrix is I but for the rounding of the tensors.
        low, weight = self.low_width, weight.double()
        subspace, correction = self._tensors(torch.float64)
        inner = correction @ subspace[:low]
        corrected = weight[:, :low] @ correction.T
        solved = torch.linalg.solve((inner + subspace[low:]), (corrected + weight[:, low:]).T).T
        folded_low = weight[:, :low] - solved @ subspace[:low].T
        folded_high = solved @ inner.T - solved - corrected
        return block_hadamard(folded_low * self.signs.double(), self.block), folded_high

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "block": self.block, "bits": self.bits}

    def _register(self, name: str, values: Tensor, dim: int) -> None:
        """Store a matrix, with bits=8 as codes over the scales of what remains when `dim` is reduced."""
        # Row-major, as a checkpoint holds it: other strides may be summed in another order.
        if self.bits == 16:
            self.register_buffer(name, values.to(torch.bfloat16).contiguous())
            return
        # A bfloat16 times a code of 8 bits is exact in float32: every dtype sees the same map.
        scales = (values.abs().amax(dim, keepdim=True) / 127).to(torch.bfloat16)
        scales = torch.where(scales == 0, torch.ones_like(scales), scales)
        codes = (values / scales.double()).round().clamp(-127, 127)
        self.register_buffer(name, codes.to(torch.int8).contiguous())
        self.register_buffer(f"{name}_scales", scales.flatten())

    def _tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Subspace [K, r] and correction [r, low] as stored, in a dtype to compute with."""
        subspace, correction = self.subspace.to(dtype), self.correction.to(dtype)
        if self.bits == 16:
            return subspace, correction
        scales = self.subspace_scales.to(dtype), self.correction_scales.to(dtype)
        return subspace * scales[0], correction * scales[1][:, None]


def _align(subspace: Tensor, high: int) -> Tensor:
    """The same subspace in the basis whose last rows are symmetric positive semidefinite."""
    corner = subspace[-high:]
    turn = polar(corner.T) if high > _LARGEST_SVD else None
    if turn is not None:
        return subspace @ turn
    # On the CPU: GPUs are slow at a single SVD.
    left, _, right = (part.to(subspace.device) for part in torch.linalg.svd(corner.cpu()))
    aligned: Tensor = subspace @ right.T @ left.T
    return aligned


def _correction(aligned: Tensor) -> Tensor:
    """T U_lowᵀ [r, low]."""
    high = aligned.shape[1]
    identity = torch.eye(high, dtype=aligned.dtype, device=aligned.device)
    correction: Tensor = torch.linalg.solve(identity + aligned[-high:], aligned[:-high].T)
    return correction
