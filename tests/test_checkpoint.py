"""Checkpoints of plain modules: bitwise, strict, whole or not there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import dirotq
from dirotq import checkpoint
from dirotq.checkpoint import CheckpointError
from tests.support.plain import Mlp, bytes_of, outlier_rows

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> Mlp:
    made = Mlp()
    chosen = dirotq.recipe("method=dirotq", "rank=8")
    dirotq.quantize(made, chosen, [(outlier_rows(64, 48),)])
    return made


@pytest.fixture
def folder(model: Mlp, tmp_path: Path) -> Path:
    dirotq.save(model, tmp_path / "saved")
    return tmp_path / "saved"


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = config_of(folder)
    change(document)
    (folder / "config.json").write_text(json.dumps(document))


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_round_trip_and_second_generation_are_bitwise(
    model: Mlp, folder: Path, tmp_path: Path
) -> None:
    loaded = Mlp(seed=7)
    dirotq.load(loaded, folder)
    assert bytes_of(loaded.state_dict()) == bytes_of(model.state_dict())
    x = outlier_rows(8, 48, seed=3)
    assert torch.equal(loaded(x), model(x))
    dirotq.save(loaded, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_config_says_what_was_done(folder: Path) -> None:
    document = config_of(folder)
    config = document["quantization_config"]
    assert document["architecture"] == "Mlp"
    assert config["quant_method"] == "dirotq"
    assert config["layout_version"] == checkpoint.LAYOUT_VERSION
    assert config["recipe"] == dirotq.recipe("method=dirotq", "rank=8").to_dict()
    assert [entry["members"] for entry in config["inputs"]] == [["gate", "up"], ["down"]]
    assert set(config["checksums"]) == {"gate", "up", "down"}
    assert len(config["calibration"]) == 16


def test_load_keeps_modes_and_shares_inputs(folder: Path) -> None:
    loaded = Mlp()
    dirotq.load(loaded, folder)
    assert loaded.gate.input is loaded.up.input
    assert not loaded.gate.codes.is_meta


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, value: Callable[[Tensors], Tensor]) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: value(tensors)})


def flip(name: str) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[name].view(torch.uint8)[1, 1] ^= 1

    return change


TENSOR_DAMAGE = [
    pytest.param(drop("up.scales"), "tensor up.scales is missing", id="missing"),
    pytest.param(drop("norm.bias"), "tensor norm.bias is missing", id="missing-plain"),
    pytest.param(
        put("gate.extra", lambda t: torch.ones(1)),
        "tensor gate.extra of the checkpoint",
        id="extra",
    ),
    pytest.param(
        put("down.codes", lambda t: t["down.codes"][:, :-1].contiguous()),
        r"tensor down.codes is torch.uint8 \(48, 43\), expected torch.uint8 \(48, 44\)",
        id="shape",
    ),
    pytest.param(
        put("up.high", lambda t: t["up.high"].half()),
        r"tensor up.high is torch.float16 \(96, 8\), expected torch.int8",
        id="dtype",
    ),
    pytest.param(flip("down.codes"), "layer down: checksum mismatch", id="flipped-code"),
    pytest.param(flip("up.scales"), "layer up: checksum mismatch", id="flipped-scale"),
    pytest.param(
        flip("gate.input.transform.subspace"), "layer gate: checksum mismatch", id="flipped-basis"
    ),
]


@pytest.mark.parametrize(("change", "message"), TENSOR_DAMAGE)
def test_damaged_tensors_are_named(
    folder: Path, change: Callable[[Tensors], object], message: str
) -> None:
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        dirotq.load(Mlp(), folder)


def quantization(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["quantization_config"].update(fields)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["quantization_config"].pop(name)


def first_input(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["quantization_config"]["inputs"][0].update(fields)


CONFIG_DAMAGE = [
    pytest.param(quantization(layout_version=99), "layout_version=99, this version reads 3", id="version"),
    pytest.param(quantization(layout_version=2), "layout_version=2, this version reads 3", id="old"),
    pytest.param(without("layout_version"), "layout_version=None", id="no-version"),
    pytest.param(quantization(quant_method="gguf"), "no quantization_config of dirotq", id="other-method"),
    pytest.param(
        lambda document: document.pop("quantization_config"), "no quantization_config of dirotq",
        id="not-quantized",
    ),
    pytest.param(
        lambda document: document.update(architecture="Unet"), "holds a Unet, but the model is a Mlp",
        id="architecture",
    ),
    pytest.param(without("inputs"), "quantization_config.*inputs", id="no-inputs"),
    pytest.param(without("checksums"), "quantization_config.*checksums", id="no-checksums"),
    pytest.param(first_input(members=["gate", "side"]), "quantization_config.*side", id="unknown-layer"),
    pytest.param(first_input(members=["gate", "norm"]), "layer norm is a LayerNorm", id="not-a-linear"),
    pytest.param(
        first_input(transform={"kind": "dense", "width": 40, "high": 8}),
        "layer gate has 48 input features, in the checkpoint 40", id="other-width",
    ),
    pytest.param(first_input(weight={"kind": "posit"}), "kind='posit'", id="unknown-format"),
    pytest.param(first_input(transform={"kind": "warp"}), "quantization_config.*warp", id="unknown-transform"),
    pytest.param(
        quantization(checksums={"gate": "0"}), "layer gate: checksum mismatch", id="other-checksum"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CONFIG_DAMAGE)
def test_damaged_configuration_is_named(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_config(folder, change)
    with pytest.raises(CheckpointError, match=message):
        dirotq.load(Mlp(), folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"\xff\xfe"),
        ("model.safetensors", b"short"),
        ("model.safetensors", None),
        ("config.json", None),
    ],
    ids=["not-json", "a-list", "not-utf8", "cut-tensors", "no-tensors", "no-config"],
)
def test_unreadable_files_name_the_folder(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"saved: not a readable checkpoint \(.+\)"):
        dirotq.load(Mlp(), folder)


def test_cut_tensor_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        dirotq.load(Mlp(), folder)


@pytest.mark.parametrize(
    "damage", [drop("up.scales"), flip("down.codes")], ids=["missing", "flipped"]
)
def test_a_refused_checkpoint_leaves_the_linears(
    folder: Path, damage: Callable[[Tensors], object]
) -> None:
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors")
    model = Mlp()
    before = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if "norm" not in name
    }
    with pytest.raises(CheckpointError):
        dirotq.load(model, folder)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_quantized_model_is_not_loaded_into(folder: Path) -> None:
    model = Mlp()
    dirotq.load(model, folder)
    with pytest.raises(CheckpointError, match=r"layer (gate|up) is a QuantLinear"):
        dirotq.load(model, folder)


def test_only_quantized_models_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Mlp is not quantized by dirotq"):
        dirotq.save(Mlp(), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", [False, True], ids=["new", "over-an-older-one"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"]
)
def test_nothing_half_written_when_saving_fails(
    model: Mlp,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    existing: bool,
    error: BaseException,
) -> None:
    target = tmp_path / "saved"
    if existing:
        target.mkdir()
        (target / "config.json").write_text("old")

    def fail(tensors: Tensors, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(type(error)):
        dirotq.save(model, target)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == (
        ["saved", "saved/config.json"] if existing else []
    )


def test_a_folder_with_other_files_is_left_alone(model: Mlp, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something else than a checkpoint"):
        dirotq.save(model, tmp_path)
    with pytest.raises(FileExistsError):
        dirotq.save(model, tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
