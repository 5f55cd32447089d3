"""The block reflector separates the subspace exactly, and folding inverts what is stored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dirotq.transforms import Compact, block_hadamard, compact, hadamard
from dirotq.transforms.hadamard import blocks


def subspace(width: int, high: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(width, high, dtype=torch.float64, generator=generator)
    return torch.linalg.qr(gaussian)[0]


def signs(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def exact(transform: Compact, columns: torch.Tensor) -> Compact:
    """The transform with its tensors in float64, unrounded."""
    fresh = Compact(transform.width, transform.high, transform.block, columns, transform.signs)
    left, _, right = torch.linalg.svd(columns[-fresh.high :])
    aligned = columns @ right.T @ left.T
    identity = torch.eye(fresh.high, dtype=torch.float64)
    fresh.subspace = aligned
    fresh.correction = torch.linalg.solve(
        identity + aligned[-fresh.high :], aligned[: -fresh.high].T
    )
    return fresh


@pytest.mark.parametrize("dead", [False, True])
def test_large_subspaces_are_aligned_alike(dead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Newton's iteration instead of an SVD; a channel without input makes it singular, and takes the SVD."""
    columns = subspace(300, 60)
    if dead:
        columns[-1] = 0.0
        columns = torch.linalg.qr(columns)[0]
        columns[-1] = 0.0
    expected = compact._align(columns, 60)
    monkeypatch.setattr(compact, "_LARGEST_SVD", 59)
    found = compact._align(columns, 60)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    assert torch.equal(found, expected) == dead


@pytest.mark.parametrize("bits", [8, 16])
@settings(max_examples=25, deadline=None)
@given(width=st.integers(2, 90), data=st.data())
def test_low_and_high_parts_add_up_to_the_product(
    bits: int, width: int, data: st.DataObject
) -> None:
    high = data.draw(st.integers(1, width - 1))
    transform = Compact(width, high, 16, subspace(width, high), signs(width - high), bits)
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(7, width, dtype=torch.float64, generator=generator)
    w = torch.randn(5, width, dtype=torch.float64, generator=generator)
    (low, kept), (w_low, w_kept) = transform.online(x), transform.fold(w)
    # Float64 arithmetic with a well-conditioned r x r solve; the stored tensors cost nothing.
    torch.testing.assert_close(low @ w_low.T + kept @ w_kept.T, x @ w.T, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("width", "high"), [(320, 64), (1280, 40), (72, 9), (64, 1)])
def test_unrounded_map_is_orthogonal_and_separates_the_subspace(width: int, high: int) -> None:
    columns = subspace(width, high)
    transform = exact(Compact(width, high, 64, columns, signs(width - high)), columns)
    low, kept = transform.online(torch.eye(width, dtype=torch.float64))
    matrix = torch.cat([low, kept], dim=1)
    identity = torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(matrix.T @ matrix, identity, rtol=0, atol=1e-12)
    inside = columns.T
    assert float(transform.online(inside)[0].abs().max()) < 1e-12
    torch.testing.assert_close(
        transform.online(inside)[1].norm(), inside.norm(), rtol=1e-12, atol=0
    )


def test_bfloat16_storage_leaks_little_of_the_subspace() -> None:
    columns = subspace(320, 64)
    transform = Compact(320, 64, 64, columns, signs(256))
    leaked = transform.online(columns.T)[0].norm() / columns.norm()
    assert float(leaked) < 2**-8  # rounding to bfloat16 changes an entry by 2^-9 of itself at most


def test_eight_bits_store_half_and_leak_little_more() -> None:
    columns = subspace(320, 64)
    transform = Compact(320, 64, 64, columns, signs(256), bits=8)
    assert transform.storage_bits() == 8 * 64 * (320 + 256) + 16 * 2 * 64 + 8 * 256
    leaked = transform.online(columns.T)[0].norm() / columns.norm()
    # A column's entries are rounded to 1/127 of the largest, some 3.5 times their root mean square: uniform errors of
    # 3.5 / 127 / sqrt(12) = 2^-7 of it, in U and in C.
    assert 2**-9 < float(leaked) < 2**-6
    single = transform.float().online(columns.T.float())[0]
    double = transform.online(columns.T)[0]
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_other_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="bits=4, allowed are 8 and 16"):
        Compact(16, 4, bits=4)


def test_storage_is_two_k_r_numbers_and_signs() -> None:
    transform = Compact(320, 64, 64, subspace(320, 64), signs(256))
    assert transform.storage_bits() == 16 * 64 * (320 + 256) + 8 * 256


def test_nothing_protected_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one protected coordinate"):
        Compact(64, 0)


@pytest.mark.parametrize("size", [1, 2, 16, 128])
def test_hadamard_is_orthogonal_and_symmetric(size: int) -> None:
    matrix = hadamard(size)
    torch.testing.assert_close(
        matrix @ matrix, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-13
    )
    assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize("size", [0, 3, 12, -2])
def test_sizes_that_are_no_power_of_two_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size={size}"):
        hadamard(size)


@settings(max_examples=50, deadline=None)
@given(width=st.integers(1, 300), power=st.integers(0, 7))
def test_blocks_cover_the_width_and_the_product_is_its_own_inverse(width: int, power: int) -> None:
    assert sum(block * count for block, count in blocks(width, 1 << power)) == width
    x = torch.randn(3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(width))
    twice = block_hadamard(block_hadamard(x, 1 << power), 1 << power)
    torch.testing.assert_close(twice, x, rtol=0, atol=1e-12)


def test_the_kept_matrix_serves_every_context() -> None:
    hadamard.cache_clear()
    with torch.inference_mode(), torch.device("meta"):
        first = hadamard(4, torch.float32)
    assert first.device.type == "cpu"
    assert not first.is_inference()
    assert hadamard(4, torch.float32) is first
    other = hadamard(4, torch.bfloat16)
    assert other.dtype == torch.bfloat16
    x = torch.randn(2, 12, requires_grad=True)
    block_hadamard(x, 4).sum().backward()  # an inference tensor could not be saved for it
    assert x.grad is not None
