"""Kernels are compiled once for arguments that are alike, and launched with all of them in the kernel's order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from dirotq_kernels import launching
from dirotq_kernels.launching import ceil_div, power_above, start
from hypothesis import given
from hypothesis import strategies as st

COMPILED, LAUNCHED = "compiled", "launched"


class Kernel:
    """Stands for a `JITFunction` of (x, y, n, A, B); notes what is done."""

    arg_names = ("x", "y", "n", "A", "B")

    def __init__(self) -> None:
        self.done: list[tuple[str, Any, tuple[Any, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., "Compiled"]:
        def run(*args: Any, **constants: Any) -> Compiled:
            self.done.append((COMPILED, grid, args))
            return Compiled(self.done)

        return run


class Compiled:
    def __init__(self, done: list[tuple[str, Any, tuple[Any, ...]]]) -> None:
        self.done = done

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *args: self.done.append((LAUNCHED, grid, args))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    monkeypatch.setattr(launching, "JITFunction", Kernel)
    monkeypatch.setattr(launching, "_compiled", {})
    return Kernel()


def test_what_is_alike_is_compiled_once(kernel: Kernel) -> None:
    for grid in ((3,), (4, 5)):
        x = torch.zeros(16)
        start(kernel, grid, x, None, 7, B="b", A=2, num_warps=4)
    (first, second) = kernel.done
    assert first[:2] == (COMPILED, (3,))
    assert second[:2] == (LAUNCHED, (4, 5, 1))
    assert second[2][0] is x
    # In the order of the kernel's arguments, without Triton's options.
    assert second[2][1:] == (None, 7, 2, "b")


@pytest.mark.parametrize(
    ("args", "constants"),
    [
        ((torch.zeros(16).half(), None, 7), {}),  # dtype
        ((torch.zeros(17)[1:], None, 7), {}),  # alignment
        ((torch.zeros(16), torch.zeros(1), 7), {}),  # a tensor instead of none
        ((torch.zeros(16), None, 8), {}),
        ((torch.zeros(16), None, 7), {"A": 3}),
        ((torch.zeros(16), None, 7), {"num_warps": 8}),
    ],
)
def test_what_is_not_is_compiled_anew(
    args: tuple[Any, ...], constants: dict[str, Any], kernel: Kernel
) -> None:
    settings = {"A": 2, "B": "b", "num_warps": 4}
    start(kernel, (1,), torch.zeros(16), None, 7, **settings)
    start(kernel, (1,), *args, **settings | constants)
    assert [step for step, *_ in kernel.done] == [COMPILED, COMPILED]


def test_kernels_are_told_apart(kernel: Kernel) -> None:
    other = Kernel()
    for each in (kernel, other, kernel, other):
        start(each, (1,), torch.zeros(16), None, 7, A=2, B=3)
    for each in (kernel, other):
        assert [step for step, *_ in each.done] == [COMPILED, LAUNCHED]


class Elsewhere:
    """Stands for a tensor of a second GPU."""

    device = torch.device("cuda", 1)


def test_a_kernel_runs_where_its_tensors_are(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = [0]

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        current.append(wanted.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    at: list[int] = []
    monkeypatch.setattr(Kernel, "__getitem__", lambda *_: lambda *_a, **_c: at.append(current[-1]))
    start(kernel, (1,), Elsewhere(), None, 7, A=2, B=3)
    assert at == [1]
    assert current == [0]


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_divisions_are_rounded_up(a: int, b: int) -> None:
    assert (ceil_div(a, b) - 1) * b < a <= ceil_div(a, b) * b


@given(st.integers(1, 10**9))
def test_powers(n: int) -> None:
    power = power_above(n)
    assert power & (power - 1) == 0
    assert power // 2 < n <= power
