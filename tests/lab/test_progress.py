"""An interrupt that got lost stops the next step."""

import os
import signal
from collections.abc import Iterator

import pytest

from dirotq.lab import progress


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    progress.watch_interrupts()
    yield
    signal.signal(signal.SIGINT, before)
    progress._interrupted.clear()


def lose_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_bar_stops_at_the_next_step() -> None:
    with progress.bar("label", 3) as tick:
        tick()
        lose_an_interrupt()
        with pytest.raises(KeyboardInterrupt):
            tick()


def test_track_stops_at_the_next_item() -> None:
    items = iter(progress.track([1, 2, 3], "label"))
    assert next(items) == 1
    lose_an_interrupt()
    with pytest.raises(KeyboardInterrupt):
        next(items)
