"""By how much the stored tensors of a compact transform may lengthen a vector."""

from __future__ import annotations

from typing import Any

import torch

# For the float64 arithmetic below.
_MARGIN = 2.0**-30


def transform_slack(compact: Any) -> float:
    """The s of |low(x)|² + |high(x)|² <= (1 + s) |x|² for a `dirotq.transforms.Compact`; s >= 0.

    With the tensors as they are stored the transform x -> x T is orthogonal but for their rounding, and s is the
    largest eigenvalue of T Tᵀ - I. Signs and Hadamard matrix drop out of T Tᵀ, and what is left of the difference lives
    on the columns of U, of Cᵀ and on the last r axes: on an orthonormal basis of these, 3 r vectors, it is exact.
    """
    subspace, correction = compact.subspace.double(), compact.correction.double()
    low, high = correction.shape[1], compact.high
    columns = subspace.new_zeros(compact.width, 3 * high)
    columns[:, :high] = subspace
    columns[low:, high : 2 * high].fill_diagonal_(1.0)
    columns[:low, 2 * high :] = correction.T
    basis = torch.linalg.qr(columns)[0].T.contiguous()
    moved = torch.cat(compact.online(basis), dim=1)
    excess = moved @ moved.T - basis @ basis.T
    return max(float(torch.linalg.eigvalsh(excess)[-1]), 0.0) + _MARGIN
