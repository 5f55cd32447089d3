"""Hadamard matrices by construction, and how a width is factored into their orders.

Sylvester's doubling gives the powers of two. For a prime q and S, the quadratic residues of q bordered by ones
(R. E. A. C. Paley, J. Math. Phys. 12, 1933): I + S has order q + 1 when q = 3 mod 4, and the Kronecker product
S x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]] has order 2 (q + 1) when q = 1 mod 4. Kronecker products of these are
Hadamard matrices too; they are applied factor by factor, and never formed.
"""

from __future__ import annotations

from functools import cache, lru_cache
from math import isqrt

import torch
from torch import Tensor

from dirotq.transforms.hadamard import hadamard

# A pass over memory costs about as much as this many multiply-adds a coordinate (float32 on an H100: some 80).
_PASS = 128


@cache
def construct(order: int) -> Tensor:
    """Hadamard matrix [order, order] of ±1, int8, on the CPU; H Hᵀ = order · I. Shared: not to be changed in place.

    Raises ValueError unless the order is a power of two or one of Paley's for a prime q.
    """
    if not _constructible(order):
        raise ValueError(
            f"hadamard: order={order}, allowed are 2^a, q + 1 (primes q = 3 mod 4) and 2 (q + 1) (q = 1 mod 4)"
        )
    # What is kept must serve callers in other contexts: no inference tensor, the CPU named against default devices.
    with torch.inference_mode(False), torch.device("cpu"):
        if _is_power_of_two(order):
            return hadamard(order).sign().to(torch.int8)
        if _is_first(order):
            return _bordered(order - 1) + torch.eye(order, dtype=torch.int8)
        bordered = _bordered(order // 2 - 1)
        identity = torch.eye(order // 2, dtype=torch.int8)
        symmetric = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
        turned = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
        return torch.kron(bordered, symmetric) + torch.kron(identity, turned)


@lru_cache(maxsize=64)
def constructed(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`construct(order)` in a dtype, on a device. Shared: not to be changed in place."""
    with torch.inference_mode(False):
        return construct(order).to(dtype).to(device)


@cache
def factor(width: int) -> tuple[int, ...]:
    """Orders, ascending, whose product divides `width` and is as large as can be constructed.

    Of all such factorings the one that is cheapest to apply: one pass and `order` multiply-adds a coordinate for each.
    The quotient is 1 for every multiple of 4 that Paley's primes reach; it is the odd part of an odd multiple of 2.
    Raises ValueError unless the width is positive.
    """
    if width < 1:
        raise ValueError(f"hadamard: width={width}, allowed are positive integers")
    for left in _divisors(width):
        cheapest = _cheapest(width // left)
        if cheapest is not None:
            return cheapest[1]
    raise AssertionError("the width itself is a divisor, and 1 is factored")


@cache
def _cheapest(product: int) -> tuple[int, tuple[int, ...]] | None:
    """Cost and orders of the cheapest factoring of `product`, None if there is none."""
    if product == 1:
        return 0, ()
    found = []
    for order in _divisors(product)[1:]:
        rest = _cheapest(product // order) if _constructible(order) else None
        if rest is not None:
            found.append((rest[0] + order + _PASS, tuple(sorted((order, *rest[1])))))
    return min(found, default=None)


def _bordered(prime: int) -> Tensor:
    """S [q + 1, q + 1], int8: zero diagonal, otherwise ±1; S Sᵀ = q I, skew when q = 3 mod 4, else symmetric."""
    residues = torch.full((prime,), -1, dtype=torch.int8)
    residues[torch.arange(prime) ** 2 % prime] = 1
    residues[0] = 0
    steps = torch.arange(prime)
    bordered = torch.ones(prime + 1, prime + 1, dtype=torch.int8)
    bordered[1:, 1:] = residues[(steps[:, None] - steps) % prime]
    bordered[0, 0] = 0
    bordered[1:, 0] = -1 if prime % 4 == 3 else 1
    return bordered


def _constructible(order: int) -> bool:
    return _is_power_of_two(order) or _is_first(order) or _is_second(order)


def _is_power_of_two(order: int) -> bool:
    return order > 0 and not order & (order - 1)


def _is_first(order: int) -> bool:
    return order % 4 == 0 and _is_prime(order - 1)


def _is_second(order: int) -> bool:
    return order % 4 == 0 and order // 2 % 4 == 2 and _is_prime(order // 2 - 1)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % step for step in range(2, isqrt(number) + 1))


def _divisors(number: int) -> list[int]:
    """Ascending."""
    small = [step for step in range(1, isqrt(number) + 1) if number % step == 0]
    return small + [number // step for step in reversed(small) if step * step != number]
