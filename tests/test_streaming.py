"""One block at a time: the same inputs as in whole forwards, and a clear word where that cannot be."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dirotq
from dirotq.activations import Memory
from dirotq.blocks import blocks_of, lent, tensors_of
from dirotq.models import auto
from dirotq.passes import Calls
from dirotq.streaming import Streaming
from tests.support.plain import Mlp, Residual, Stack, bytes_of, outlier_rows

BATCHES = [(outlier_rows(rows, 48, seed=seed),) for seed, rows in enumerate((40, 7, 64))]
RTN = dirotq.recipe("method=rtn")


def both(make: Callable[[], nn.Module], batches: list[tuple[Tensor]] = BATCHES) -> nn.Module:
    """A model that was streamed, and is bitwise what it is after whole forwards."""
    model, expected = make(), make()
    dirotq.quantize(expected, RTN, batches)
    dirotq.quantize(model, RTN, batches, stream="cpu")
    assert bytes_of(model.state_dict()) == bytes_of(expected.state_dict())
    return model


class Concatenated(Stack):
    """What comes before is joined and cut again between blocks, and one of them is told how much there is of it."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2)
        for block in self.blocks:
            x = block(torch.cat([first, second]))
            first, second = x[: len(first)], x[len(first) :]
        return self.head(torch.cat([first, second]))


class InPlace(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(0.1 * Mlp.forward(self, x))


def in_place() -> Stack:
    model = Stack()
    model.blocks = nn.ModuleList(InPlace(seed=index) for index in range(3))
    return model


class Cross(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.query, self.key = Mlp(seed=seed).gate, Mlp(seed=seed + 10).gate

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return x + torch.tanh(self.query(x) * self.key(context))[:, : x.shape[1]]


class Beside(nn.Module):
    """All blocks read one tensor that is made before them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Cross(index) for index in range(3))

    def forward(self, x: Tensor) -> Tensor:
        context = torch.tanh(x)
        for block in self.blocks:
            x = block(x, context)
        return x


@pytest.mark.parametrize("make", [Stack, Concatenated, in_place])
def test_inputs_are_bitwise_those_of_a_whole_forward(make: Callable[[], nn.Module]) -> None:
    both(make)


class Growing(Stack):
    """The residual lies outside of the blocks: it is made of all that they returned."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Looping(Stack):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks[0](super().forward(x) @ self.head.weight))


class Remembering(Stack):
    """Goes on from where the last forward ended."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x) if self.last is None else self.last
        for block in self.blocks:
            self.last = y = block(y)
        return self.head(y)


class Choosing(Stack):
    """Short records take another way."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks if len(x) > 10 else [self.blocks[0]]:
            x = block(x)
        return self.head(x)


class Wavering(Residual):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if len(x) > 10 else (y, 0)


def wavering() -> Stack:
    model = Stack()
    model.blocks = nn.ModuleList(Wavering(seed=index) for index in range(3))
    return model


def hooked() -> Stack:
    model = Stack()
    model.blocks[1].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Growing, "block blocks.2 needs what blocks before blocks.1 returned, which is not kept"),
        (Looping, "block blocks.0 runs twice in one forward"),
        (Remembering, "Remembering returns other numbers block by block"),
        (Choosing, "block blocks.1 is not reached by every record"),
        (wavering, "block blocks.0 returns other things for other records"),
        (hooked, "block blocks.1 has forward hooks"),
        (Mlp, "layer gate is in no repeated block"),
    ],
)
def test_what_cannot_be_streamed_is_refused(make: Callable[[], nn.Module], message: str) -> None:
    model = make()
    before = bytes_of(model.state_dict())
    modules, places = dict(model.named_modules()), [p.data_ptr() for p in model.parameters()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(ValueError, match=f"stream: {message}; without stream=, whole forwards"):
        dirotq.quantize(model, RTN, BATCHES, stream="cpu")
    assert bytes_of(model.state_dict()) == before
    assert dict(model.named_modules()) == modules
    assert [p.data_ptr() for p in model.parameters()] == places
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_errors_of_the_model_are_its_own() -> None:
    batches = [BATCHES[0], (torch.zeros(4, 7),)]
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        dirotq.quantize(Stack(), RTN, batches, stream="cpu")
    spoiled = [BATCHES[0], (torch.full((4, 48), float("nan")),)]
    with pytest.raises(ValueError, match=r"^layer blocks\.0\.gate: its calibration input holds"):
        dirotq.quantize(Stack(), RTN, spoiled, stream="cpu")


def test_linears_of_many_blocks_may_share_an_input() -> None:
    model = both(Beside)
    assert model.blocks[0].key.input is model.blocks[2].key.input


def test_weights_are_on_the_device_just_when_they_are_used() -> None:
    """Float64 takes the part of the device: nothing computes with it and float32 together."""
    model = Beside()
    source = Streaming(model, Calls(BATCHES), 1 << 20, torch.float64, Memory())
    groups = source.groups(
        [f"blocks.{i}.{name}" for i in range(3) for name in ("query", "key")], strict=True
    )

    def there() -> set[str]:
        return {n for n, p in model.named_parameters() if p.dtype == torch.float64}

    keys = {f"blocks.{i}.key.{leaf}" for i in range(3) for leaf in ("weight", "bias")}
    expected = {
        f"blocks.{i}.query": {name for name in keys if f".{i}." in name}
        | {f"blocks.{i}.query.weight", f"blocks.{i}.query.bias"}
        for i in range(3)
    }
    expected["blocks.0.key"] = expected["blocks.0.query"] | keys
    assert there() == set()
    assert {entry.name: there() for entry in source.statistics(groups)} == expected
    assert there() == set()


def test_a_caller_s_inference_mode_is_no_hindrance() -> None:
    model, expected = Stack(), Stack()
    dirotq.quantize(expected, RTN, BATCHES)
    with torch.inference_mode():
        dirotq.quantize(model, RTN, BATCHES, stream="cpu")
    assert bytes_of(model.state_dict()) == bytes_of(expected.state_dict())


def test_blocks_are_the_outermost_ones() -> None:
    model = Stack()
    model.blocks[0].extra = nn.ModuleList([nn.Linear(2, 2)])
    model.mixed = nn.ModuleList([nn.Linear(2, 2), nn.ReLU()])
    assert auto.repeated(model) == ["blocks"]
    assert list(blocks_of(model, ["blocks.1.up"])) == ["blocks.0", "blocks.1", "blocks.2"]


def test_lent_tensors_come_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}

    def lend() -> None:
        with lent(torch.float64, tensors_of(model)), lent(torch.float64, tensors_of(model[0])):
            assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float64}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lend()
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
