"""Rounding problems, their error, and GPTQ written out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dirotq.formats import Format, Grid


@dataclass
class Problem:
    weight: Tensor
    moment: Tensor

    def errors(self, decoded: Tensor) -> Tensor:
        """e H eᵀ of every row, float64."""
        error = self.weight.double() - decoded.double()
        return ((error @ self.moment.double()) * error).sum(1)

    def slack(self, decoded: Tensor) -> Tensor:
        """What rounding can change in `errors`: its terms' sizes times 1e-12, some thousand units of float64."""
        error = (self.weight.double() - decoded.double()).abs()
        return 1e-12 * ((error @ self.moment.double().abs()) * error).sum(1)


def problem(seed: int, rows: int = 5, width: int = 24, samples: int = 96) -> Problem:
    """Correlated inputs; with fewer samples than the width the moment is singular."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=g, dtype=torch.float64)
    x = torch.randn(samples, width, generator=g, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, width, generator=g, dtype=torch.float64)
    return Problem(weight.float(), x.T @ x / samples)


def textbook(
    case: Problem, fmt: Format, damping: float, grid: Grid | None = None
) -> tuple[Tensor, float]:
    """Optimal brain quantization, one column at a time, in float64: the inverse of the Hessian of the columns that are
    left is updated explicitly. Codes [N, K], and the smallest distance, in steps, of any value to a tie (of integers).
    """
    weight, moment = case.weight, case.moment.double()
    width = weight.shape[1]
    inverse = torch.linalg.inv(moment + damping * torch.eye(width, dtype=torch.float64))
    step, zero = fmt.expand(grid or fmt.grid(weight), width)
    left = weight.double().clone()
    codes = torch.zeros(weight.shape, dtype=fmt.code_dtype)
    margin = 1.0
    todo = sorted(range(width), key=lambda j: -float(moment[j, j]))
    while todo:
        j = todo.pop(0)
        column_zero = None if zero is None else zero[:, j]
        codes[:, j] = fmt.codes(left[:, j], step[:, j], column_zero)
        steps = left[:, j] / step[:, j].double() + (0 if column_zero is None else column_zero)
        inside = steps[(steps - codes[:, j]).abs() < 0.75]
        if len(inside):
            margin = min(margin, float((inside - inside.floor() - 0.5).abs().min()))
        error = left[:, j] - fmt.values(codes[:, j], step[:, j], column_zero).double()
        left[:, todo] -= torch.outer(error / inverse[j, j], inverse[j, todo])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, margin


def better_rows(case: Problem, fmt: Format, codes: Tensor, grid: Grid | None = None) -> Tensor:
    """`codes`, but the nearest ones in the rows where these have less error."""
    grid = grid or fmt.grid(case.weight)
    nearest = fmt.encode(case.weight, grid)
    chosen = [
        codes[n]
        if case.errors(decode(fmt, codes, grid))[n] <= case.errors(fmt.decode(nearest))[n]
        else nearest.codes[n]
        for n in range(len(codes))
    ]
    return torch.stack(chosen)


def decode(fmt: Format, codes: Tensor, grid: Grid) -> Tensor:
    """Values of `codes` on `grid`, one by one: no detour over groups."""
    return fmt.values(codes, *fmt.expand(grid, codes.shape[-1]))
