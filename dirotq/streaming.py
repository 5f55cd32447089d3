"""Statistics of layer inputs block by block, for models whose weights and moments do not fit the GPU.

Weights stay where they are, on the host. Each block is copied to the device, run over all records on what the blocks
before it returned, its linears quantized while it is there, and its outputs kept for the next one.

How a block's arguments are made of the outputs before it is the model's own business: it runs its whole forward for
every block and record, with stand-ins for the blocks that were done, which return what the real ones did. So what lies
between blocks (embedders, concatenations) is computed as ever, and inputs are bitwise those of a whole forward. Only
the last block's outputs are kept; stand-ins for earlier ones return tensors without numbers, on the meta device. A
model that reads those (skip connections) is refused: one record is run through before anything else is done.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dirotq import calibrate
from dirotq.activations import Outputs, Store
from dirotq.blocks import (
    Form,
    NotStreamedError,
    Stop,
    blocks_of,
    index_of,
    lent,
    standing_in,
    stopping,
    tensors_of,
)
from dirotq.calibrate import Batch, InputStatistics, Members
from dirotq.passes import Calls, fitting, taken

# Between a forward and the same one block by block on a GPU: rounding, not another result.
_TOLERANCE = 1e-2


class Streaming:
    """Statistics by running one block at a time on `device`.

    store: of the outputs between blocks. memory: as in `dirotq.passes.Passes`.
    """

    def __init__(
        self, model: nn.Module, calls: Calls, memory: int | None, device: torch.device, store: Store
    ) -> None:
        self._model = model
        self._calls = calls
        self._memory = memory
        self._device = device
        self._store = store
        # Of the blocks, in the order in which they run.
        self._names: list[str] = []
        self._blocks: list[nn.Module] = []
        self._forms: list[Form] = []

    def groups(self, names: Iterable[str], *, strict: bool) -> list[Members]:
        """The distinct inputs of the linears `names`, in forward order (`calibrate.trace_inputs`).

        Raises NotStreamedError for a model that cannot be run block by block, with the reason.
        """
        self._calls.once_more("each block reads them")
        names = list(names)
        blocks = blocks_of(self._model, names)
        final: list[Tensor] = []
        with self._outside(blocks.values()), self._visiting(blocks, final):
            first = self._moved(self._calls.first)
            groups = calibrate.trace_inputs(self._model, names, first, strict=strict)
        self._check(final)
        return groups

    def statistics(self, groups: Sequence[Members]) -> Generator[InputStatistics, None, None]:
        """Statistics of `groups`, which are in forward order; a caller is to drop each before it takes the next.

        While it holds one, the linears that read the input are on the device.
        """
        of_block: list[list[Members]] = [[] for _ in self._blocks]
        for members in groups:
            of_block[index_of(members[0], self._names)].append(members)
        wanted = [index for index, waiting in enumerate(of_block) if waiting]
        if not wanted:
            return
        done = self._store.newest(before=wanted[0])
        self._store.keep(done)
        with self._outside(self._blocks):
            for index in range(done + 1, wanted[-1] + 1):
                yield from self._of_block(index, of_block[index], more=index < wanted[-1])
                self._store.keep(index)
        self._store.keep(-1)

    def _of_block(
        self, index: int, waiting: Sequence[Members], more: bool
    ) -> Iterator[InputStatistics]:
        """Run a block over all records, for the statistics of its inputs and, with `more`, for its outputs."""
        with lent(self._device, tensors_of(self._blocks[index])):
            while True:
                number = fitting(self._model, waiting, self._device, self._memory)
                part, waiting = waiting[:number], waiting[number:]
                with calibrate.summing(self._model, part) as sums:
                    records = self._run(index, keep=more and not waiting)
                if more and not waiting:
                    self._store.complete(index, records)
                for entry in taken(sums, part):
                    # Linears of other blocks may read the input, too.
                    readers = map(self._model.get_submodule, entry.members)
                    with lent(self._device, tensors_of(*readers)):
                        yield entry
                    del entry
                if not waiting:
                    return

    def _run(self, index: int, *, keep: bool) -> int:
        """Run a block over all records; returns how many there are."""
        records = 0
        for batch in self._calls.read():
            passed = self._store.load(index - 1, records) if index else []
            outputs = self._step(index, batch, passed)
            if keep:
                self._store.save(index, records, outputs)
            records += 1
        return records

    def _step(self, index: int, batch: Batch, passed: Outputs) -> Outputs:
        """Outputs of the blocks up to `index` in the forward of `batch`, from those of the blocks before it."""
        # A block may change its input in place: what is kept is not handed out.
        last = [[tensor.to(self._device, copy=True) for tensor in its] for its in passed[-1:]]
        name, output = self._names[index], None
        with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
            done = zip(self._blocks, self._forms, [*passed[:-1], *last], strict=False)
            for block, form, tensors in done:
                stack.enter_context(standing_in(block, form.filled(tensors)))
            reached = stack.enter_context(stopping(self._blocks[index]))
            try:
                calibrate.call(self._model, self._moved(batch))
            except Stop as stop:
                output = stop.output
            except Exception as error:
                if all(reached) and (reached or len(passed) < 2):
                    raise
                before = self._names[index - 1]
                raise NotStreamedError(
                    f"block {name} needs what blocks before {before} returned, which is not kept"
                ) from error
        if not reached:
            raise NotStreamedError(f"block {name} is not reached by every record")
        tensors = self._forms[index].tensors(output)
        return [*([tensor.to("meta") for tensor in earlier] for earlier in passed), tensors]

    def _check(self, expected: Sequence[Tensor]) -> None:
        """Run one record through, block by block; raises NotStreamedError where that is not the model's forward."""
        outputs: Outputs = []
        with self._outside(self._blocks):
            for index, block in enumerate(self._blocks):
                with lent(self._device, tensors_of(block)):
                    outputs = self._step(index, self._calls.first, outputs)
        for found, tensor in zip(outputs[-1], expected, strict=True):
            error = torch.linalg.vector_norm(found.double() - tensor.double())
            size = torch.linalg.vector_norm(tensor.double())
            # Numbers that are not finite are found, and named, by the statistics.
            if bool(torch.isfinite(size)) and not bool(error <= _TOLERANCE * size):
                raise NotStreamedError(
                    f"{type(self._model).__name__} returns other numbers block by block"
                )

    def _moved(self, batch: Batch) -> Batch:
        whole = dict(batch) if isinstance(batch, Mapping) else tuple(batch)
        moved: Batch = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(self._device), whole)
        return moved

    @contextmanager
    def _outside(self, blocks: Iterable[nn.Module]) -> Iterator[None]:
        """All that stands outside of the blocks is on the device meanwhile."""
        inside = {id(module) for block in blocks for module in block.modules()}
        modules = [module for module in self._model.modules() if id(module) not in inside]
        with lent(self._device, tensors_of(*modules, recurse=False)):
            yield

    @contextmanager
    def _visiting(self, blocks: Mapping[str, nn.Module], final: list[Tensor]) -> Iterator[None]:
        """Note the order of blocks, what they return, and in `final` the last one's tensors.

        Each block is on the device while it runs.
        """
        running = ExitStack()
        inside: list[str] = []

        def enter(name: str) -> None:
            if name in self._names:
                raise NotStreamedError(f"block {name} runs twice in one forward")
            if inside:
                raise NotStreamedError(f"block {name} runs inside of block {inside[0]}")
            inside.append(name)
            running.enter_context(lent(self._device, tensors_of(blocks[name])))

        def leave(output: Any) -> None:
            name = inside.pop()
            running.close()
            form = Form(name, output)
            self._names.append(name)
            self._blocks.append(blocks[name])
            self._forms.append(form)
            final[:] = form.tensors(output)

        with ExitStack() as hooks, running:
            for name, block in blocks.items():
                before = block.register_forward_pre_hook(lambda _b, _a, name=name: enter(name))
                after = block.register_forward_hook(lambda _b, _a, output: leave(output))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            yield
