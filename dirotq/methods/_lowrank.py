"""Numerics of SVDQuant: truncated SVDs, the squared output error of a layer on sample rows, and the refinement loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dirotq.formats import Format

Factorize = Callable[[Tensor], tuple[Tensor, Tensor]]
# Columns of a Krylov block beyond the rank: they let the last wanted directions converge as fast as the first.
OVERSAMPLING = 8
# A further block that adds less than this share of the captured energy is the last one; what is still missing then is
# less in turn. So small, because the refinement amplifies what is seen in the bfloat16 of the factors.
_GAIN = 1e-9
# Trained weights need 6 to 11.
_BLOCKS = 8
# Least over largest diagonal number of a Cholesky factor by which columns are made orthogonal.
_EVEN = 1e-5


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """up [N, r] = U S and down [K, r] = V of the leading r singular triplets of `matrix` [N, K]; float32.

    By the eigenvectors of the smaller Gram matrix, in float64: it squares the condition number, which costs the small
    singular values their digits, but only the leading ones are used.
    """
    tall = _tall(matrix)
    vectors = torch.linalg.eigh(tall.T @ tall)[1]
    return _factors(matrix, vectors[:, -rank:].flip(-1))


def randomized_svd(matrix: Tensor, rank: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """`truncated_svd` by block Krylov iteration (Musco and Musco, arXiv 1504.05477, algorithm 2) from a random `start`.

    start: [min(N, K), l], l >= r. Blocks are added, and orthogonalized against all before them, until another one
    captures no more: O(N K l) operations a block, in float64. `truncated_svd` does the work where it is no more: for
    widths below 16 l, and for spectra so flat that half of all directions are not enough.
    """
    tall, size = _tall(matrix), start.shape[1]
    room = tall.shape[1] // (2 * size)
    if room < _BLOCKS:
        return truncated_svd(matrix, rank)
    basis = torch.linalg.qr(tall.T @ (tall @ start.to(tall)))[0]
    image, before = tall @ basis, 0.0
    for _ in range(room):
        gram = image.T @ image
        # The vectors are wanted but once, and take several times as long.
        captured = float(torch.linalg.eigvalsh(gram)[-rank:].sum())
        if captured - before <= _GAIN * captured:
            vectors = torch.linalg.eigh(gram)[1]
            return _factors(matrix, basis @ vectors[:, -rank:].flip(-1))
        before, block = captured, _orthonormal(tall.T @ image[:, -size:], basis)
        basis, image = torch.cat([basis, block], dim=1), torch.cat([image, tall @ block], dim=1)
    return truncated_svd(matrix, rank)


def _orthonormal(block: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal columns that, with those of `basis`, span what `block` adds to them.

    Projected out twice, which is enough (Giraud et al., 2005): what the first time leaves of a block that adds nothing
    is rounding, and its reflections are orthogonal to the basis after the second. By Cholesky factors where these are
    precise enough: on a GPU, reflections wait for one another.
    """
    for _ in range(2):
        block = block - basis @ (basis.T @ block)
        root, failed = torch.linalg.cholesky_ex(block.T @ block)
        sizes = root.diagonal()
        # Columns come out orthogonal to the square of that ratio over 2^-53, and to 2^-53 the second time.
        if bool((failed == 0) & (sizes.amin() > _EVEN * sizes.amax())):
            block = torch.linalg.solve_triangular(root.T, block, upper=True, left=False)
        else:
            block = torch.linalg.qr(block)[0]
    return block


def _tall(matrix: Tensor) -> Tensor:
    """`matrix` in float64, transposed where it has more columns than rows."""
    return (matrix.T if matrix.shape[0] < matrix.shape[1] else matrix).double()


def _factors(matrix: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The factors from the singular vectors [min(N, K), r] on the shorter side."""
    image = _tall(matrix) @ vectors
    if matrix.shape[0] >= matrix.shape[1]:
        return image.float(), vectors.float()
    # A floor keeps the division finite where the rank is lower; the product of the factors does not depend on it.
    sizes = image.norm(dim=0).clamp_min(1e-15)
    return (vectors * sizes).float(), (image / sizes).float()


@dataclass(frozen=True)
class Branch:
    """A choice for one input: scales [K], down [K, r], up [N, r], float32 holding bfloat16 values, and its error."""

    scales: Tensor
    down: Tensor
    up: Tensor
    error: float


@dataclass(frozen=True)
class Objective:
    """Squared output error over sample rows, of the layer as it will be computed but with weights rounded to nearest.

    sample: [S, K], weight: [N, K] of all linears that read the input, output: sample @ weight.T; float32 on one device.
    fmt, act: formats of the residual weight and of the smoothed input; act None leaves the input unrounded.
    shift: of the input, as in `dirotq.linear.InputSpec`.
    """

    sample: Tensor
    weight: Tensor
    output: Tensor
    fmt: Format
    act: Format | None
    shift: float = 0.0

    def search(self, candidates: list[Tensor], factorize: Factorize) -> tuple[Tensor, list[float]]:
        """The best of `candidates` (scales [K]) beside a plain SVD, the later one of equals, and every one's error."""
        errors = [self.refine(scales, factorize, iterations=1).error for scales in candidates]
        best = 0
        for index, error in enumerate(errors):
            if error <= errors[best]:
                best = index
        return candidates[best], errors

    def refine(
        self, scales: Tensor, factorize: Factorize, iterations: int, patience: int = 1
    ) -> Branch:
        """Alternate L <- leading singular part of W s - Q and Q <- rounded W s - L, from Q = 0; the best L found.

        Stops when that many iterations (`patience`) in a row were worse than the best one before them. One iteration is
        the plain SVD of W s.
        """
        smoothed, x = self.weight * scales, self.sample / scales
        shift = self.shift / scales
        low = x if self.act is None else self.act.quantize(x + shift) - shift
        rounded = torch.zeros_like(smoothed)
        best: Branch | None = None
        worse = 0
        for _ in range(iterations):
            up, down = (factor.bfloat16().float() for factor in factorize(smoothed - rounded))
            rounded = self.fmt.quantize(torch.addmm(smoothed, up, down.T, alpha=-1))
            high = x @ down
            if self.act is not None:
                high = high.bfloat16().float()
            missing = torch.addmm(self.output, high, up.T, alpha=-1).addmm_(
                low, rounded.T, alpha=-1
            )
            error = float(torch.linalg.vector_norm(missing, dtype=torch.float64).square())
            # So written that an error that is not a number counts as worse.
            if best is not None and not error <= best.error:
                worse += 1
                if worse == patience:
                    break
                continue
            best, worse = Branch(scales, down, up, error), 0
        assert best is not None, "at least one iteration"
        return best
