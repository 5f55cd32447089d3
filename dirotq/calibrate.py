"""Calibration: which linears share an input, and streaming statistics of each distinct input.

Both come from the model's own forward passes. Two linears share an input when they are handed the same tensor, not
when their names say so. Memory is bounded: a K x K second moment and a few sample rows an input, whatever the number
of batches. `dirotq.passes` and `dirotq.streaming` take them a few inputs, or a block, at a time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

Batch = Mapping[str, Any] | Sequence[Any]
Members = tuple[str, ...]
_SAMPLE_ROWS = 512
_HAS_TRITON = importlib.util.find_spec("triton") is not None
NO_BATCHES = "calibration: no batches, at least one is needed"
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

    members: Members
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


class Accumulator:
    """Running sums for one input; the moment is accumulated in float64 from float32 products, on the input's device."""

    def __init__(self, width: int, device: torch.device) -> None:
        self.total = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.absmax = torch.zeros(width, device=device)
        self.lowest = torch.full((), math.inf, device=device)
        self.rows = 0
        self._sample: list[Tensor] = []
        self._sampled, self._offered, self._every = 0, 0, 1
        self._by_kernel = device.type == "cuda" and _HAS_TRITON

    def add(self, x: Tensor) -> None:
        x = x.detach().reshape(-1, x.shape[-1])
        if x.dtype == torch.float64:
            x = x.float()
        self._add_moment(x)
        # Of the numbers as they are: these are exact in every dtype, and a wide input is not copied.
        self.absmax = torch.maximum(self.absmax, x.abs().amax(0).float())
        self.lowest = torch.minimum(self.lowest, x.amin().float())
        self.rows += x.shape[0]
        # An even stride over the tokens: the first rows alone would be one corner of one image.
        rows = _spread(x, _SAMPLE_ROWS // 8).float()
        # One in so many of all rows offered is kept, so that no batch counts more than another.
        kept = rows[-self._offered % self._every :: self._every].cpu()
        self._sample.append(kept)
        self._sampled += kept.shape[0]
        self._offered += rows.shape[0]
        while self._sampled > 4 * _SAMPLE_ROWS:
            # In one piece only here: of FLUX's widest input it is 100 MB.
            self._sample = [torch.cat(self._sample)[::2].clone()]
            self._sampled = self._sample[0].shape[0]
            self._every *= 2

    def _add_moment(self, x: Tensor) -> None:
        if self._by_kernel:
            from dirotq_kernels.second_moment import second_moment_

            second_moment_(self.total, x)
        else:
            x = x.float()
            self.total += x.T @ x

    def finish(self, members: Members) -> InputStatistics:
        """The statistics, whose moment is the sum's own memory. Raises ValueError where they are not finite."""
        if self._by_kernel:
            from dirotq_kernels.second_moment import mirror_

            mirror_(self.total)
        if not bool(torch.isfinite(self.total).all()):
            raise ValueError(f"layer {members[0]}: its calibration input holds infinities or NaN")
        return InputStatistics(
            members=members,
            width=self.total.shape[0],
            rows=self.rows,
            moment=self.total.div_(self.rows),
            absmax=self.absmax.cpu(),
            sample=_spread(torch.cat(self._sample), _SAMPLE_ROWS),
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
) -> list[Members]:
    """Groups of `names` that read the same tensor in a forward of `batch`, in forward order.

    Raises ValueError for a linear that the forward does not reach; unless `strict`, warns and leaves it out.
    """
    names = list(names)
    seen: dict[str, tuple[Any, ...]] = {}
    # A freed tensor's memory could come back as another input: a reference keeps a storage's number, not its memory.
    storages: list[StorageWeakRef] = []

    def remember(name: str, x: Tensor) -> None:
        storage = StorageWeakRef(x.untyped_storage())
        storages.append(storage)
        version = 0 if x.is_inference() else x._version
        place = (storage.cdata, x.storage_offset(), version)
        seen.setdefault(name, (*place, x.shape, x.stride(), x.dtype))

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


@contextmanager
def summing(model: nn.Module, groups: Iterable[Members]) -> Iterator[dict[Members, Accumulator]]:
    """Sum up the inputs of `groups` of linears, each at its first member, in every forward meanwhile; no gradients."""
    owners = {members[0]: members for members in groups}
    sums: dict[Members, Accumulator] = {}

    def add(name: str, x: Tensor) -> None:
        members = owners[name]
        if members not in sums:
            sums[members] = Accumulator(x.shape[-1], x.device)
        sums[members].add(x)

    with torch.no_grad(), _hooked(model, owners, add):
        yield sums


def collect(
    model: nn.Module, names: Iterable[str], batches: Iterable[Batch], *, strict: bool = True
) -> list[InputStatistics]:
    """Statistics of every distinct input of the linears `names`, over all `batches`, on the CPU in the end.

    Raises ValueError when there is no batch, when a linear is not reached (unless not `strict`: it is left out, with a
    warning), and when an input is not finite (with the linear's name).
    """
    iterator = iter(batches)
    first = next(iterator, None)
    if first is None:
        raise ValueError(NO_BATCHES)
    groups = trace_inputs(model, names, first, strict=strict)
    with summing(model, groups) as sums:
        call(model, first)
        for batch in iterator:
            call(model, batch)
    found = (sums.pop(members).finish(members) for members in groups)
    return [replace(entry, moment=entry.moment.cpu()) for entry in found]


def call(model: nn.Module, batch: Batch) -> Any:
    """Run `model` on a batch: a mapping is passed as keyword arguments, a sequence as positional ones."""
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


def digest(entry: InputStatistics, whole: bool = False) -> str:
    """Hash of one input's statistics (sha256, 16 hex digits); of its moment the diagonal, or the WHOLE of it.

    The diagonal tells batches apart, in no time; moments that were worked on may share it.
    """
    content = hashlib.sha256(repr((entry.members, entry.rows, entry.lowest)).encode())
    moment = entry.moment if whole else entry.moment.diagonal()
    for tensor in (moment, entry.absmax, entry.sample):
        content.update(tensor.contiguous().cpu().numpy().tobytes())
    return content.hexdigest()[:16]


def fingerprint(digests: Iterable[str]) -> str:
    """Hash of the `digest`s of all inputs, in order (16 hex digits), stored in checkpoints as provenance."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:16]
