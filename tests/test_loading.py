"""Checkpoints loaded into models without numbers: straight to their device, bitwise, and without 16-bit weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import dirotq
from dirotq import checkpoint, placement
from dirotq.checkpoint import CheckpointError
from dirotq.linear import QuantLinear
from tests.support.plain import Mlp, bytes_of, outlier_rows
from tests.support.written import shapes_of, written_by

RECIPES = {
    "rtn": ["method=rtn"],
    "compact": ["method=dirotq", "rank=8"],
    "compact16": ["method=dirotq", "rank=8", "method.transform_bits=16"],
    "dense": ["method=dirotq", "rank=8", "method.rotation=dense", "protect=bf16"],
    "lowrank": ["method=svdquant", "rank=8"],
    "diagonal": ["method=smoothquant"],
    "hadamard": ["method=rotation"],
}
LINEARS = ("gate", "up", "down")


def quantized(recipe: str) -> Mlp:
    model = Mlp()
    dirotq.quantize(model, dirotq.recipe(*RECIPES[recipe]), [(outlier_rows(64, 48),)])
    return model


@pytest.fixture(scope="module")
def model() -> Mlp:
    return quantized("compact")


@pytest.fixture
def folder(model: Mlp, tmp_path: Path) -> Path:
    dirotq.save(model, tmp_path / "saved")
    return tmp_path / "saved"


def on_meta(seed: int = 7) -> Mlp:
    return Mlp(seed=seed).to("meta")


def damage(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = {
        name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_a_model_on_meta_is_filled_bitwise(recipe: str, tmp_path: Path) -> None:
    model = quantized(recipe)
    dirotq.save(model, tmp_path / "saved")
    loaded = on_meta()
    loaded.norm.bias.requires_grad_(False)
    dirotq.load(loaded, tmp_path / "saved")
    assert bytes_of(loaded.state_dict()) == bytes_of(model.state_dict())
    x = outlier_rows(8, 48, seed=3)
    assert torch.equal(loaded(x), model(x))
    assert isinstance(loaded.norm.weight, nn.Parameter)
    assert (loaded.norm.weight.requires_grad, loaded.norm.bias.requires_grad) == (True, False)
    dirotq.save(loaded, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "saved" / name).read_bytes()


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_layers_wait_on_meta(recipe: str) -> None:
    """A dense basis is as large as a weight: nothing of a layer is made before its tensors are read."""
    model = quantized(recipe)
    layers = checkpoint.install(on_meta(), checkpoint.quantization_config(model))
    assert {name: its.state_dict().keys() for name, its in layers.items()} == {
        name: model.get_submodule(name).state_dict().keys() for name in LINEARS
    }
    assert all(tensor.is_meta for layer in layers.values() for tensor in layer.buffers())


def test_no_weight_of_a_quantized_layer_exists(folder: Path) -> None:
    weights = shapes_of(Mlp(), lambda name: name in LINEARS)
    assert written_by(Mlp) >= weights  # they are seen where they are made
    empty = on_meta()
    found = written_by(lambda: dirotq.load(empty, folder))
    assert (48,) in found  # the norm
    assert not found & weights


def test_the_model_does_not_change_with_its_file(model: Mlp, folder: Path) -> None:
    loaded = on_meta()
    dirotq.load(loaded, folder)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert bytes_of(loaded.state_dict()) == bytes_of(model.state_dict())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 48)
        self.body = Mlp()
        self.head = nn.Linear(48, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "real"])
def test_tied_weights_stay_one(meta: bool, tmp_path: Path) -> None:
    layout = dirotq.models.Layout("tied", ("Tied",), (r"body\.(gate|up|down)",))
    model, x = Tied(), torch.arange(5)
    dirotq.quantize(model, dirotq.recipe("method=rtn"), [(x,)], layout=layout)
    dirotq.save(model, tmp_path / "saved")
    loaded = Tied()
    if meta:
        loaded.to("meta")
        loaded.head.weight = loaded.embed.weight  # moving to meta parts them
    dirotq.load(loaded, tmp_path / "saved")
    assert loaded.head.weight is loaded.embed.weight
    assert torch.equal(loaded(x), model(x))


def test_what_is_real_keeps_its_memory(model: Mlp, folder: Path) -> None:
    loaded = Mlp(seed=7)
    weight, memory = loaded.norm.weight, loaded.norm.weight.data_ptr()
    for name in LINEARS:
        loaded.get_submodule(name).to("meta")
    dirotq.load(loaded, folder)
    assert loaded.norm.weight is weight
    assert weight.data_ptr() == memory
    assert bytes_of(loaded.state_dict()) == bytes_of(model.state_dict())


def flip(tensors: dict[str, Tensor]) -> None:
    tensors["down.codes"][1, 1] ^= 1


@pytest.mark.parametrize("meta", [True, False], ids=["meta", "real"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("norm.bias"), "tensor norm.bias is missing"),
        (lambda t: t.update(extra=torch.ones(1)), "tensor extra of the checkpoint"),
        (lambda t: t.update({"up.scales": t["up.scales"].double()}), "tensor up.scales is"),
        (flip, "layer down: checksum mismatch"),
    ],
    ids=["missing", "extra", "dtype", "flipped"],
)
def test_a_refused_checkpoint_changes_nothing(
    folder: Path, meta: bool, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    damage(folder, change)
    model = on_meta() if meta else Mlp(seed=7)
    modules, tensors = dict(model.named_modules()), dict(model.named_parameters())
    before = None if meta else bytes_of(model.state_dict())
    with pytest.raises(CheckpointError, match=message) as caught:
        dirotq.load(model, folder)
    assert "\n" not in str(caught.value)
    assert dict(model.named_modules()) == modules
    assert all(tensor is tensors[name] for name, tensor in model.named_parameters())
    assert before is None or bytes_of(model.state_dict()) == before


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), KeyboardInterrupt()])
def test_a_device_that_is_full_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    class Full(dict[str, Any]):
        """The last tensor does not fit."""

        def __getitem__(self, name: str) -> Tensor:
            if name == "norm.bias":
                raise error
            return super().__getitem__(name)

    real = placement.fill
    monkeypatch.setattr(
        placement, "fill", lambda model, tensors, device: real(model, Full(tensors), device)
    )
    model = on_meta()
    with pytest.raises(type(error)):
        dirotq.load(model, folder)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert not any(isinstance(module, QuantLinear) for module in model.modules())


class Positions(Mlp):
    """With a table that no file holds, as most models of images have one."""

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        if plain:
            self.table = torch.ones(48)
        else:
            self.register_buffer("table", torch.ones(48), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.table)


@pytest.mark.parametrize("plain", [True, False], ids=["attribute", "buffer"])
def test_what_no_file_holds_must_be_real(plain: bool, tmp_path: Path) -> None:
    model = Positions(plain)
    dirotq.quantize(model, dirotq.recipe("method=rtn"), [(outlier_rows(64, 48),)])
    dirotq.save(model, tmp_path / "saved")
    loaded = Positions(plain).to("meta")
    loaded.table = torch.ones(48, device="meta")
    with pytest.raises(
        CheckpointError, match=r"^table: on the meta device .* accelerate\.init_empty_weights"
    ):
        dirotq.load(loaded, tmp_path / "saved")
    assert isinstance(loaded.gate, nn.Linear)
    loaded.table = torch.ones(48)
    dirotq.load(loaded, tmp_path / "saved")
    x = outlier_rows(8, 48, seed=3)
    assert torch.equal(loaded(x), model(x))


class Plain(nn.Module):
    """Made without looking at its numbers, as true models are."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(48, 96), nn.Linear(96, 48)
        self.register_buffer("table", torch.arange(48.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x * self.table).relu())


def test_made_by_accelerate(tmp_path: Path) -> None:
    """Its buffers are real."""
    model, x = Plain(), outlier_rows(64, 48)
    dirotq.quantize(model, dirotq.recipe("method=dirotq", "rank=8"), [(x,)])
    dirotq.save(model, tmp_path / "saved")
    with init_empty_weights():
        loaded = Plain()
    dirotq.load(loaded, tmp_path / "saved", "cpu")
    assert torch.equal(loaded(x), model(x))


def test_a_device_without_numbers_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="device=meta, allowed are devices whose tensors"):
        dirotq.load(Mlp(), folder, device="meta")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("meta", [True, False], ids=["meta", "real"])
def test_straight_to_a_gpu(model: Mlp, folder: Path, meta: bool) -> None:
    loaded = on_meta() if meta else Mlp(seed=7)
    dirotq.load(loaded, folder, "cuda")
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cuda"}
    on_host = {name: tensor.cpu() for name, tensor in loaded.state_dict().items()}
    assert bytes_of(on_host) == bytes_of(model.state_dict())
