"""Principal and joint subspaces against the full eigendecomposition."""

import pytest
import torch
from torch import Tensor

from dirotq.transforms import joint_subspace, top_subspace
from dirotq.transforms import subspace as module
from dirotq.transforms.orthogonal import polar

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def moment(width: int, decay: float, seed: int = 0) -> Tensor:
    """A second moment whose eigenvalues fall as k^-decay, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]
    values = torch.arange(1, width + 1, dtype=torch.float64) ** -decay
    return (basis * values) @ basis.T


@pytest.mark.parametrize("decay", [0.3, 1.0, 2.0, 4.0])
def test_energy_is_that_of_the_leading_eigenvectors(decay: float) -> None:
    matrix, rank = moment(1024, decay), 48
    found = top_subspace(matrix, rank, torch.Generator().manual_seed(1))
    assert found.shape == (1024, rank)
    torch.testing.assert_close(found.T @ found, torch.eye(rank).double(), rtol=0, atol=1e-10)
    best = torch.linalg.eigvalsh(matrix)[-rank:].sum()
    captured = (found.T @ matrix @ found).trace()
    left = matrix.trace() - best
    # Iteration stops when a round gains a thousandth of what is left; some ten times that may still be missing.
    assert float(best - captured) <= 1e-2 * float(left)
    energies = (found.T @ matrix @ found).diagonal()
    assert bool((energies.diff() > -1e-9 * float(best)).all())  # ascending


def test_wide_moments_are_iterated_up_to_a_sixth(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the width and the oversampling, the default rank; without a full `eigh`, on the moment's device."""
    matrix, rank = moment(1024, 1.0).to(DEVICE), 128
    expected = top_subspace(matrix, rank, torch.Generator().manual_seed(1))
    monkeypatch.setattr(module, "_WIDE", 1024)
    monkeypatch.setattr(module, "eigenbasis", None)
    found = top_subspace(matrix, rank, torch.Generator().manual_seed(1))
    assert found.device == matrix.device
    identity = torch.eye(rank, device=DEVICE).double()
    torch.testing.assert_close(found.T @ found, identity, rtol=0, atol=1e-10)
    best, captured = ((part.T @ matrix @ part).trace() for part in (expected, found))
    assert float(best - captured) <= 1e-2 * float(matrix.trace() - best)


def test_narrow_moments_are_solved_in_full() -> None:
    matrix = moment(96, 1.0)
    found = top_subspace(matrix, 7, torch.Generator().manual_seed(1))
    vectors = torch.linalg.eigh(matrix)[1][:, -7:]
    torch.testing.assert_close(found @ found.T, vectors @ vectors.T, rtol=0, atol=1e-9)


def test_joint_subspace_is_no_worse_than_the_principal_one() -> None:
    generator = torch.Generator().manual_seed(3)
    matrix = moment(64, 1.0)
    weight = torch.randn(40, 64, generator=generator).double() * torch.logspace(0, 1, 64)

    def product(subspace: Tensor) -> float:
        outside = torch.eye(64).double() - subspace @ subspace.T
        return float((outside @ matrix).trace() * (outside @ weight.T @ weight).trace())

    # The weight may be elsewhere; what is found is where the moment is.
    joint = joint_subspace(matrix.to(DEVICE), weight, 6, generator).cpu()
    principal = top_subspace(matrix, 6, generator)
    assert product(joint) < 0.95 * product(principal)
    torch.testing.assert_close(joint.T @ joint, torch.eye(6).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("steepness", [0.0, 3.0, 10.0], ids=str)
def test_polar_factor(steepness: float) -> None:
    generator = torch.Generator().manual_seed(5)
    left, right = (
        torch.linalg.qr(torch.randn(40, 40, generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    sizes = torch.logspace(0, -steepness, 40, dtype=torch.float64)
    found = polar(((left * sizes) @ right.T).to(DEVICE))
    assert found is not None
    torch.testing.assert_close(found.cpu().T @ found.cpu(), torch.eye(40).double())
    # A factor is as certain as its matrix, which is rounded, is far from singular.
    torch.testing.assert_close(found.cpu(), left @ right.T, rtol=0, atol=1e-13 * 10**steepness)


def test_singular_matrices_have_no_polar_factor() -> None:
    assert polar(torch.zeros(3, 3).double()) is None
    assert polar(torch.diag(torch.tensor([1.0, 0.0, 2.0])).double()) is None
