"""Progress bars with remaining time, for everything that takes over two seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_DELAY_SECONDS = 2.0
_LABEL_WIDTH = 22


@contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar of `total` steps on stderr; yields the function to call after each step."""
    with _tqdm(None, label, total) as shown:
        yield lambda: shown.update() and None


def track(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Iterate over `items` under a bar."""
    yield from _tqdm(items, label, len(items))


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
