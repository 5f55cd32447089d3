"""What happens to a metric whose package or weights are not here: it is left out, with the reason."""

from collections.abc import Iterator
from contextlib import contextmanager


class UnavailableError(Exception):
    """A metric cannot be taken here; the message is the reason, in one line."""


@contextmanager
def required(what: str) -> Iterator[None]:
    """Turn a failure to import or load ``what`` into an :class:`UnavailableError` that names it.

    Packages are imported and weights downloaded inside. A RuntimeError is how PyTorch says that a file of weights is
    damaged and that a package does not fit it.
    """
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UnavailableError(f"{what} cannot be had: {reason}") from error
