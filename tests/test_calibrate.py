"""Calibration: what shares an input is traced, statistics are those of all rows at once."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from dirotq import calibrate
from dirotq.calibrate import InputStatistics, collect, trace_inputs
from tests.support.plain import Mlp

WIDTH = 8


class Pair(nn.Module):
    """Two linears; `between` makes the second one's input of the first one's."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, 4)
        self.second = nn.Linear(WIDTH, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        y = self.first(x)
        return y + self.second(self.between(x))


def rows(count: int = 5, width: int = WIDTH, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def groups(between: Callable[[Tensor], Tensor]) -> list[tuple[str, ...]]:
    return trace_inputs(Pair(between), ["first", "second"], (rows(),))


SHARED = [("first", "second")]
APART = [("first",), ("second",)]


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        pytest.param(lambda x: x, SHARED, id="same"),
        pytest.param(lambda x: x.view(x.shape), SHARED, id="whole-view"),
        pytest.param(lambda x: x.clone(), APART, id="equal-copy"),
        pytest.param(lambda x: x.add_(1), APART, id="changed-in-place"),
        pytest.param(lambda x: x[:1], APART, id="part"),
        pytest.param(lambda x: x[:4, :].as_strided((5, 8), (0, 1)), APART, id="other-strides"),
        pytest.param(lambda x: x * 0.5, APART, id="new"),
    ],
)
def test_sharing_is_found_by_tracing(
    between: Callable[[Tensor], Tensor], expected: list[tuple[str, ...]]
) -> None:
    assert groups(between) == expected


def test_in_place_changes_are_seen_in_inference_mode() -> None:
    with torch.inference_mode():
        assert groups(lambda x: x.add_(1)) == APART
        assert groups(lambda x: x) == SHARED


class Freed(nn.Module):
    """Inputs that die at once: their memory comes back for the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(())
        for index, layer in enumerate(self.layers):
            total = total + layer(x + index).sum()
        return total


def test_reused_memory_is_not_a_shared_input() -> None:
    names = [f"layers.{index}" for index in range(6)]
    assert trace_inputs(Freed(), names, (rows(64, 64),)) == [(name,) for name in names]


def test_groups_come_in_forward_order() -> None:
    names = ["down", "up", "gate"]
    assert trace_inputs(Mlp(), names, (rows(width=48),)) == [("gate", "up"), ("down",)]
    assert trace_inputs(Mlp(), names, {"x": rows(width=48)}) == [("gate", "up"), ("down",)]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


def test_a_linear_that_is_called_twice_counts_both_inputs() -> None:
    model, x = Twice(), rows(6)
    (found,) = collect(model, ["layer"], [(x,)])
    second = torch.tanh(model.layer(x)).detach()
    assert found.rows == 12
    both = torch.cat([x, second]).double()
    # Float32 products of 12 terms: 12 units of 2^-24.
    torch.testing.assert_close(found.moment, both.T @ both / 12, rtol=1e-6, atol=1e-6)


def test_statistics_are_those_of_all_rows_at_once() -> None:
    model = Mlp()
    batches = [rows(count, 48, seed) * 3 for seed, count in enumerate((7, 1, 20))]
    inputs: dict[str, list[Tensor]] = {"gate": [], "down": []}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs[name].append(args[0].detach().double())
        )
        for name in inputs
    ]
    for batch in batches:
        model(batch)
    for handle in handles:
        handle.remove()
    found = collect(model, ["gate", "up", "down"], ((batch,) for batch in batches))
    assert [entry.members for entry in found] == [("gate", "up"), ("down",)]
    for entry in found:
        x = torch.cat(inputs[entry.name])
        assert (entry.rows, entry.width) == (28, x.shape[1])
        assert entry.moment.dtype == torch.float64
        # Each batch's product is taken in float32: at most 20 terms, 20 units of 2^-24 of the largest entry.
        limit = 1e-6 * float((x.T @ x / 28).abs().max())
        torch.testing.assert_close(entry.moment, x.T @ x / 28, rtol=0, atol=limit)
        assert torch.equal(entry.absmax, x.float().abs().amax(0))
        assert entry.lowest == float(x.min())


def test_the_first_batch_counts_once() -> None:
    """It is traced and then run again."""
    (found,) = collect(nn.Sequential(nn.Linear(WIDTH, 2)), ["0"], [(rows(3),)])
    assert found.rows == 3
    expected = rows(3).double()
    torch.testing.assert_close(found.moment, expected.T @ expected / 3, rtol=1e-6, atol=1e-6)


def test_leading_dimensions_are_rows() -> None:
    x = rows(24).reshape(2, 3, 4, WIDTH)
    (found,) = collect(nn.Sequential(nn.Linear(WIDTH, 2)), ["0"], [(x,)])
    assert found.rows == 24


def single(batches: Iterator[tuple[Tensor]]) -> InputStatistics:
    (found,) = collect(nn.Sequential(nn.Linear(2, 2)), ["0"], batches)
    return found


def test_samples_are_bounded_and_every_batch_is_in_them_alike() -> None:
    found = single((torch.full((64, 2), float(index)),) for index in range(200))
    assert found.sample.shape == (512, 2)
    _, counts = found.sample[:, 0].unique(return_counts=True)
    halves = [int((found.sample[:, 0] < 100).sum()), int((found.sample[:, 0] >= 100).sum())]
    assert len(counts) >= 100
    assert int(counts.max()) <= 4
    # 512 rows of 200 batches, evenly spaced: each half of the batches gives about half the rows.
    assert min(halves) >= 240


@pytest.mark.parametrize("count", [1, 31, 33, 63, 64, 1000], ids=lambda count: f"{count}rows")
def test_samples_are_spread_over_a_batch(count: int) -> None:
    found = single(iter([(torch.arange(count).float().reshape(-1, 1).expand(count, 2),)]))
    taken = found.sample[:, 0]
    assert len(taken) == min(count, 64)
    assert float(taken[0]) == 0
    # Evenly spaced: no gap, the one at the end included, is over one row more than the even one.
    gaps = torch.cat([taken, torch.tensor([float(count)])]).diff()
    assert float(gaps.max()) <= -(-count // len(taken))
    assert float(gaps.min()) >= count // len(taken)


def test_samples_do_not_alias_the_inputs() -> None:
    x = rows(3, 2)
    found = single(iter([(x,)]))
    before = found.sample.clone()
    x.zero_()
    assert torch.equal(found.sample, before)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(WIDTH, 2)
        self.idle = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_unreached_linear_raises_by_name() -> None:
    with pytest.raises(ValueError, match="layer idle is not reached by the calibration forward"):
        collect(Half(), ["used", "idle"], [(rows(),)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_input_that_is_not_finite_raises_by_name(value: float) -> None:
    spoiled = rows(width=48)
    spoiled[2, 3] = value
    with pytest.raises(ValueError, match="layer gate: its calibration input holds infinities or"):
        collect(Mlp(), ["gate", "up", "down"], [(rows(width=48),), (spoiled,)])


def test_no_batches_raise() -> None:
    with pytest.raises(ValueError, match="calibration: no batches"):
        collect(Mlp(), ["gate"], [])


def test_hooks_are_removed_whatever_happens() -> None:
    model = Mlp()
    collect(model, ["gate"], [(rows(width=48),)])
    with pytest.raises(RuntimeError):
        collect(model, ["gate"], [(rows(width=5),)])
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_fingerprint_tells_statistics_apart() -> None:
    def fingerprint(name: str, seed: int = 0) -> str:
        found = collect(Mlp(), [name], [(rows(width=48, seed=seed),)])
        return calibrate.fingerprint(map(calibrate.digest, found))

    assert fingerprint("gate") == fingerprint("gate")
    assert len({fingerprint("gate"), fingerprint("gate", seed=1), fingerprint("up")}) == 3
