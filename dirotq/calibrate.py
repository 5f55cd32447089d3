"""Calibration: which linears share an input, and streaming statistics of each distinct input.

Both come from the model's own forward passes. Two linears share an input when they are handed the same tensor, not
when their names say so. Memory is bounded: a K x K second moment and a few sample rows an input, whatever the number
of batches.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Any] | Sequence[Any]
_SAMPLE_ROWS = 512
_log = logging.getLogger(__name__)


@dataclass
class InputStatistics:
    """Statistics of one distinct layer input of width K.

    members: names of the linears that read it, in forward order.
    moment: XᵀX / n [K, K] float64, uncentred. absmax: [K] float32. rows: n, tokens seen.
    sample: [s, K] float32, rows spread evenly over the batches, for error estimates.
    lowest: the least number of all, -inf where it is not known.
    heads: attention heads whose outputs the input is made of, one after the other; 1 where it is none.
    """

    members: tuple[str, ...]
    width: int
    rows: int = 0
    moment: Tensor = field(default_factory=lambda: torch.empty(0))
    absmax: Tensor = field(default_factory=lambda: torch.empty(0))
    sample: Tensor = field(default_factory=lambda: torch.empty(0))
    heads: int = 1
    lowest: float = -math.inf

    @property
    def name(self) -> str:
        """Name of the input: that of the first linear that reads it."""
        return self.members[0]


class _Accumulator:
    """Running sums for one input; the moment is accumulated in float64 from float32 products."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.total = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.absmax = torch.zeros(width, device=device)
        self.lowest = torch.full((), math.inf, device=device)
        self.rows = 0
        self.sample = torch.empty(0, width)
        self._offered, self._every = 0, 1

    def add(self, x: Tensor) -> None:
        x = x.detach().reshape(-1, x.shape[-1]).float()
        self.total += (x.T @ x).double()
        self.absmax = torch.maximum(self.absmax, x.abs().amax(0))
        self.lowest = torch.minimum(self.lowest, x.amin())
        self.rows += x.shape[0]
        # An even stride over the tokens: the first rows alone would be one corner of one image.
        rows = _spread(x, _SAMPLE_ROWS // 8)
        # One in so many of all rows offered is kept, so that no batch counts more than another.
        self.sample = torch.cat(
            [self.sample, rows[-self._offered % self._every :: self._every].cpu()]
        )
        self._offered += rows.shape[0]
        while self.sample.shape[0] > 4 * _SAMPLE_ROWS:
            self.sample = self.sample[::2]
            self._every *= 2

    def finish(self, members: tuple[str, ...]) -> InputStatistics:
        return InputStatistics(
            members=members,
            width=self.total.shape[0],
            rows=self.rows,
            moment=(self.total / self.rows).cpu(),
            absmax=self.absmax.cpu(),
            sample=_spread(self.sample, _SAMPLE_ROWS).clone(),
            lowest=float(self.lowest),
        )


def _spread(x: Tensor, rows: int) -> Tensor:
    """At most `rows` rows of `x`, evenly spaced."""
    count = min(rows, x.shape[0])
    return x[torch.arange(count, device=x.device) * x.shape[0] // max(1, count)]


@contextmanager
def _hooked(
    model: nn.Module, names: Iterable[str], hook: Callable[[str, Tensor], None]
) -> Iterator[None]:
    handles = []
    try:
        for name in names:
            module = model.get_submodule(name)

            def pre_hook(
                _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name
            ) -> None:
                hook(name, args[0] if args else kwargs["input"])

            handles.append(module.register_forward_pre_hook(pre_hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace_inputs(
    model: nn.Module, names: Iterable[str], batch: Batch, *, strict: bool = True
) -> list[tuple[str, ...]]:
    """Groups of `names` that read the same tensor in a forward of `batch`, in forward order.

    All their inputs are alive at once, which is the activations of one forward. Raises ValueError for a linear that the
    forward does not reach; unless `strict`, warns and leaves it out.
    """
    names = list(names)
    seen: dict[str, tuple[Any, ...]] = {}
    alive: list[Tensor] = []  # a freed tensor's memory could come back as another input

    def remember(name: str, x: Tensor) -> None:
        alive.append(x)
        version = 0 if x.is_inference() else x._version
        seen.setdefault(name, (x.data_ptr(), version, x.shape, x.stride(), x.dtype))

    # A caller's inference mode is left: its tensors do not say whether they were changed in place.
    with torch.inference_mode(False), torch.no_grad(), _hooked(model, names, remember):
        call(model, batch)
    unreached = [name for name in names if name not in seen]
    if unreached and strict:
        raise ValueError(
            f"layer {unreached[0]} is not reached by the calibration forward; leave it out of the layout"
        )
    for name in unreached:
        _log.warning(
            "layer %s is not reached by the calibration forward; it is left as it is", name
        )
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, key in seen.items():
        groups.setdefault(key, []).append(name)
    return [tuple(members) for members in groups.values()]


def collect(
    model: nn.Module, names: Iterable[str], batches: Iterable[Batch], *, strict: bool = True
) -> list[InputStatistics]:
    """Statistics of every distinct input of the linears `names`, over all `batches`.

    Raises ValueError when there is no batch, when a linear is not reached (unless not `strict`: it is left out, with a
    warning), and when an input is not finite (with the linear's name).
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError("calibration: no batches, at least one is needed")
    groups = trace_inputs(model, names, first, strict=strict)
    owners = {members[0]: members for members in groups}
    sums: dict[str, _Accumulator] = {}

    def add(name: str, x: Tensor) -> None:
        if name not in sums:
            sums[name] = _Accumulator(x.shape[-1], x.device)
        sums[name].add(x)

    with torch.no_grad(), _hooked(model, owners, add):
        call(model, first)
        for batch in iterator:
            call(model, batch)
    statistics = [sums[name].finish(members) for name, members in owners.items()]
    for entry in statistics:
        if not bool(torch.isfinite(entry.moment).all()):
            raise ValueError(f"layer {entry.name}: its calibration input holds infinities or NaN")
    return statistics


def call(model: nn.Module, batch: Batch) -> Any:
    """Run `model` on a batch: a mapping is passed as keyword arguments, a sequence as positional ones."""
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def fingerprint(statistics: Iterable[InputStatistics]) -> str:
    """Hash of calibration statistics (sha256, 16 hex digits), stored in checkpoints as provenance."""
    digest = hashlib.sha256()
    for entry in statistics:
        digest.update(repr((entry.members, entry.rows)).encode())
        digest.update(entry.moment.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
