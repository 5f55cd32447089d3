"""Captured models: what is recorded once and replayed, what records anew, and what is refused.

Without a GPU a stand-in plays the graph: a replay runs the forward on the arguments as they were recorded, and writes
its results where the recorded ones are.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dirotq
from dirotq import graphs

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")


class Model(nn.Module):
    """Returns what diffusers models do, or a tuple, and counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("offset", torch.ones(4))
        self.forwards = 0

    def forward(
        self, x: Tensor, *, more: dict[str, Any] | None = None, return_dict: bool = True
    ) -> dict[str, Tensor | None] | tuple[Tensor]:
        self.forwards += 1
        y = self.linear(x) * (more or {}).get("factor", 1.0) + self.offset
        if more and "bias" in more:
            y = y + more["bias"]
        return {"sample": y, "none": None} if return_dict else (y,)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    if not ON_GPU:
        monkeypatch.setattr(graphs, "_device_of", lambda _: DEVICE)
        monkeypatch.setattr(graphs, "record", played)
    torch.manual_seed(0)
    return Model().to(DEVICE).requires_grad_(False)


def played(run: Callable[[], Any], _: torch.device) -> tuple[Callable[[], None], Any]:
    outputs = run()

    def replay() -> None:
        for old, new in zip(pytree.tree_leaves(outputs), pytree.tree_leaves(run()), strict=True):
            if isinstance(old, Tensor):
                old.copy_(new)

    return replay, outputs


def inputs(count: int, rows: int = 3) -> list[Tensor]:
    return [torch.randn(rows, 4, device=DEVICE) for _ in range(count)]


def recordings(model: nn.Module) -> int:
    return len(model.forward._recordings)  # type: ignore[union-attr, arg-type]


def test_results_are_those_of_the_model_and_the_callers_own(model: Model) -> None:
    xs = inputs(3)
    wanted = [model(x)["sample"] for x in xs]
    dirotq.capture(model)
    found = [model(x)["sample"] for x in xs]
    # All of them at the end: a later call has not written into an earlier one's.
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))
    assert recordings(model) == 1
    assert model(xs[0])["none"] is None


@pytest.mark.skipif(not ON_GPU, reason="of a real graph")
def test_python_is_left_out(model: Model) -> None:
    dirotq.capture(model)
    x = inputs(1)[0]
    model(x)
    forwards = model.forwards
    model(x)
    assert model.forwards == forwards


@pytest.mark.skipif(not ON_GPU, reason="of a real graph")
def test_graphs_leave_no_workspaces_behind(model: Model) -> None:
    dirotq.capture(model, most=9)
    model(inputs(1)[0])
    before = torch.cuda.memory_allocated()
    for rows in range(4, 9):
        model(inputs(1, rows)[0])
    # Each keeps its arguments and results; a workspace is 8 MiB at the least.
    assert torch.cuda.memory_allocated() - before < 2**20


def test_another_shape_dtype_or_value_is_another_graph(model: Model) -> None:
    dirotq.capture(model, most=9)
    x, bias = inputs(1)[0], inputs(1)[0]
    for call in (
        lambda: model(x),
        lambda: model(x[:2]),
        lambda: model(x.T.contiguous().T[:3]),
        lambda: model(x, return_dict=False),
        lambda: model(x, more={"factor": 2.0}),
        lambda: model(x, more={"factor": True}),  # equal to 1 and 1.0, and hashed alike
        lambda: model(x, more={"factor": 1}),
        lambda: model(x, more={"bias": bias}),
    ):
        before = recordings(model)
        call()
        call()
        assert recordings(model) == before + 1
    found = model(x, more={"bias": bias})["sample"]
    assert torch.equal(found, graphs_off(model, x, bias))


def graphs_off(model: Model, x: Tensor, bias: Tensor) -> Tensor:
    dirotq.release(model)
    with torch.no_grad():
        y: Tensor = model(x, more={"bias": bias})["sample"]  # type: ignore[call-overload]
    return y


def test_the_least_recently_used_graph_is_dropped(model: Model) -> None:
    dirotq.capture(model, most=2)
    one, two, three = (inputs(1, rows)[0] for rows in (1, 2, 3))
    for x in (one, two, one, three):
        model(x)
    assert recordings(model) == 2
    forwards = model.forwards
    if ON_GPU:
        model(one)
        assert model.forwards == forwards
        model(two)
        assert model.forwards > forwards


def test_weights_that_change_count(model: Model) -> None:
    dirotq.capture(model)
    x = inputs(1)[0]
    before = model(x)["sample"]
    model.offset += 1
    torch.testing.assert_close(model(x)["sample"], before + 1)
    # Elsewhere: the graph would read what is another tensor's by now.
    model.linear.weight.data = model.linear.weight.data * 0
    torch.testing.assert_close(model(x)["sample"], (model.linear.bias + 2).expand(3, 4))
    assert recordings(model) == 1


def test_a_change_of_backend_records_anew(model: Model) -> None:
    dirotq.capture(model)
    model(inputs(1)[0])
    dirotq.set_backend(model, "reference")
    assert recordings(model) == 0


def test_released_models_are_as_they_were(model: Model) -> None:
    keys, x = set(model.__dict__), inputs(1)[0]
    dirotq.capture(model)
    assert list(inspect.signature(model.forward).parameters) == ["x", "more", "return_dict"]
    dirotq.release(model)
    dirotq.release(model)
    assert set(model.__dict__) == keys
    forwards = model.forwards
    model(x)
    assert model.forwards == forwards + 1

    def patched(x: Tensor) -> Tensor:
        return x

    model.forward = patched  # type: ignore[assignment, method-assign]
    dirotq.capture(model)
    dirotq.release(model)
    assert model.forward is patched


def test_inference_mode_gives_tensors_that_can_be_used_outside(model: Model) -> None:
    dirotq.capture(model)
    with torch.inference_mode():
        x = inputs(1)[0]
        inside = model(x)["sample"]
    model(inputs(1)[0])["sample"].add_(1)
    assert not inside.requires_grad


def test_what_cannot_be_captured_says_why(model: Model) -> None:
    with pytest.raises(ValueError, match="most=0, allowed are positive"):
        dirotq.capture(model, most=0)
    dirotq.capture(model)
    with pytest.raises(ValueError, match="captured already"):
        dirotq.capture(model)
    with pytest.raises(ValueError, match=r"shape \[2, 4\] is on meta, allowed is"):
        model(torch.empty(2, 4, device="meta"))
    with pytest.raises(TypeError, match="an argument is a object, allowed are tensors"):
        model(inputs(1)[0], more={"factor": object()})
    dirotq.release(model)
    model.linear._hf_hook = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="linear has hooks of accelerate, as offloading"):
        dirotq.capture(model)
    del model.linear._hf_hook
    model._compiled_call_impl = lambda: None
    with pytest.raises(ValueError, match="compiled as a whole, allowed are compiled blocks"):
        dirotq.capture(model)


def test_results_of_an_unknown_class_are_refused(model: Model) -> None:
    class Result:
        pass

    model.forward = lambda _: Result()  # type: ignore[assignment, method-assign]
    dirotq.capture(model)
    with pytest.raises(TypeError, match="the model returns a Result, allowed are tensors"):
        model(inputs(1)[0])
    assert recordings(model) == 0


def test_a_model_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="the model is on cpu, allowed is one GPU"):
        dirotq.capture(Model())
    with pytest.raises(ValueError, match="the model is on cpu, meta, allowed is one GPU"):
        dirotq.capture(nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1, device="meta")]))
    with pytest.raises(ValueError, match="the model is on no device, allowed is one GPU"):
        dirotq.capture(nn.Identity())


def test_a_captured_model_is_not_quantized(model: Model) -> None:
    """Replays run no hooks, and with the weights that were there before."""
    dirotq.capture(model)
    (x,) = inputs(1)
    with pytest.raises(
        ValueError, match=r"quantize: the model is captured; allowed after dirotq\.release"
    ):
        dirotq.quantize(model, dirotq.recipe("method=rtn"), [(x,)])
    dirotq.release(model)
    with pytest.raises(ValueError, match="capture: the model is compiled as a whole"):
        dirotq.capture(torch.compile(model))  # type: ignore[arg-type]
