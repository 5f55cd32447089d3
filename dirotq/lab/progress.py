"""Progress bars with remaining time, for everything that takes over two seconds, and stopping at their steps."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_DELAY_SECONDS = 2.0
_LABEL_WIDTH = 22
_interrupted = threading.Event()


def watch_interrupts() -> None:
    """Make Ctrl-C stop the next step even if the interrupt itself gets lost.

    Python drops a KeyboardInterrupt that is raised in a destructor or in a callback from C, and torch runs both all
    the time; the loop would go on.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        _interrupted.set()
        raise KeyboardInterrupt

    _interrupted.clear()
    signal.signal(signal.SIGINT, interrupt)


def _check() -> None:
    if _interrupted.is_set():
        raise KeyboardInterrupt


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar of `total` steps on stderr; yields the function to call after each step."""
    with _tqdm(None, label, total) as shown:

        def tick() -> None:
            _check()
            shown.update()

        yield tick


def track(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Iterate over `items` under a bar."""
    for item in _tqdm(items, label, len(items)):
        _check()
        yield item


def _tqdm(items: Iterable[Item] | None, label: str, total: int) -> Any:
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        desc=label.ljust(_LABEL_WIDTH),
        total=total,
        delay=_DELAY_SECONDS,
        mininterval=0.2 if terminal else 10.0,  # a log file keeps every refresh as a line
        dynamic_ncols=terminal,
        leave=True,
        bar_format="{desc} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} "
        "[{elapsed} gone, {remaining} left]",
    )
