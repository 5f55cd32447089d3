"""Two codes a byte: every byte, both ways."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dirotq.formats import pack_nibbles, unpack_nibbles


def test_every_byte_unpacks_and_packs_back() -> None:
    packed = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    codes = unpack_nibbles(packed, 32)
    assert codes.dtype == torch.int8
    expected = [[(b & 15) - 16 * (b & 15 > 7), (b >> 4) - 16 * (b >> 4 > 7)] for b in range(256)]
    assert codes.reshape(256, 2).tolist() == expected
    assert torch.equal(pack_nibbles(codes), packed)


def test_every_pair_of_codes_has_its_byte() -> None:
    codes = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).to(torch.int8)
    packed = pack_nibbles(codes)
    assert packed.dtype == torch.uint8
    assert packed.flatten().tolist() == [
        (low & 15) | (high & 15) << 4 for low, high in codes.tolist()
    ]
    assert torch.equal(unpack_nibbles(packed, 2), codes)


@pytest.mark.parametrize("width", [1, 2, 7, 8, 33], ids=lambda width: f"K{width}")
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_round_trip_at_odd_widths(width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (3, width), generator=generator, dtype=torch.int8)
    packed = pack_nibbles(codes)
    assert packed.shape == (3, -(-width // 2))
    assert torch.equal(unpack_nibbles(packed, width), codes)
    if width % 2:
        assert int((packed[:, -1] >> 4).max()) == 0
