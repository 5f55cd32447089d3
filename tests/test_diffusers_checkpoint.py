"""`save_pretrained` and `from_pretrained` of a quantized diffusers model."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import dirotq
from dirotq.checkpoint import CheckpointError
from dirotq.config import config_folder
from dirotq.linear import QuantLinear
from tests.support.plain import bytes_of
from tests.support.tiny import build_transformer, transformer_batch
from tests.support.written import shapes_of, written_by

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model() -> PixArtTransformer2DModel:
    made = build_transformer()
    chosen = dirotq.recipe("method=dirotq", "rank=8")
    dirotq.quantize(made, chosen, [transformer_batch(seed) for seed in range(2)])
    return made


@pytest.fixture(scope="module")
def saved(model: PixArtTransformer2DModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers") / "saved"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def output(model: PixArtTransformer2DModel) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**transformer_batch(9))[0]
    return result


def test_round_trip_and_second_generation_are_bitwise(
    model: PixArtTransformer2DModel, saved: Path, tmp_path: Path
) -> None:
    loaded = PixArtTransformer2DModel.from_pretrained(saved)
    assert isinstance(loaded.transformer_blocks[0].attn1.to_q, QuantLinear)
    assert bytes_of(loaded.state_dict()) == bytes_of(model.state_dict())
    assert torch.equal(output(loaded), output(model))
    loaded.save_pretrained(tmp_path / "again")
    again = PixArtTransformer2DModel.from_pretrained(tmp_path / "again")
    assert bytes_of(again.state_dict()) == bytes_of(model.state_dict())
    first, second = (
        json.loads((f / "config.json").read_text())["quantization_config"]
        for f in (saved, tmp_path / "again")
    )
    assert first == second


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"], ids=str)
def test_tensors_go_straight_to_the_device_of_a_map(
    model: PixArtTransformer2DModel, saved: Path, device_map: Any
) -> None:
    """No 16-bit weight of a quantized layer is made on the way."""
    layers = {name for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    weights = shapes_of(build_transformer(), layers.__contains__)
    assert weights  # of a shape that no other linear has
    assert written_by(build_transformer) >= weights
    found: list[PixArtTransformer2DModel] = []
    made = written_by(
        lambda: found.append(PixArtTransformer2DModel.from_pretrained(saved, device_map=device_map))
    )
    assert not made & weights
    state = {name: tensor.cpu() for name, tensor in found[0].state_dict().items()}
    assert bytes_of(state) == bytes_of(model.state_dict())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_map_to_a_gpu(model: PixArtTransformer2DModel, saved: Path) -> None:
    loaded = PixArtTransformer2DModel.from_pretrained(saved, device_map="cuda")
    assert {tensor.device.type for tensor in loaded.state_dict().values()} == {"cuda"}
    state = {name: tensor.cpu() for name, tensor in loaded.state_dict().items()}
    assert bytes_of(state) == bytes_of(model.state_dict())


@pytest.mark.parametrize("bits", sorted(p.stem for p in (config_folder() / "bits").glob("*.yaml")))
def test_every_format_survives(bits: str, tmp_path: Path) -> None:
    """Linears that share an input share what a tensor has one of; files hold no shared memory."""
    made = build_transformer()
    recipe = dirotq.recipe("method=dirotq", "rank=8", "rounding=rtn", f"bits={bits}")
    dirotq.quantize(made, recipe, [transformer_batch(0)])
    made.save_pretrained(tmp_path / "saved")
    loaded = PixArtTransformer2DModel.from_pretrained(tmp_path / "saved")
    assert bytes_of(loaded.state_dict()) == bytes_of(made.state_dict())
    assert torch.equal(output(loaded), output(made))


def test_only_the_layout_s_layers_are_quantized(model: PixArtTransformer2DModel) -> None:
    original = build_transformer()
    found = {name for name, module in model.named_modules() if isinstance(module, QuantLinear)}
    assert found == {
        f"transformer_blocks.{block}.{layer}"
        for block in range(2)
        for layer in (
            "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q",
            "attn2.to_out.0", "ff.net.0.proj", "ff.net.2",
        )
    }  # fmt: skip
    before, after = bytes_of(original.state_dict()), bytes_of(model.state_dict())
    kept = {name for name in before if name.rpartition(".")[0] not in found}
    assert {name: before[name] for name in kept} == {name: after[name] for name in kept}


def test_attention_inputs_are_shared(model: PixArtTransformer2DModel) -> None:
    inputs = [entry["members"] for entry in model.config.quantization_config["inputs"]]
    assert [f"transformer_blocks.0.attn1.to_{letter}" for letter in "qkv"] in inputs
    assert len(inputs) == 2 * 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_dtype_casts_the_rest_and_leaves_quantized_tensors(
    model: PixArtTransformer2DModel, saved: Path, dtype: torch.dtype
) -> None:
    loaded = PixArtTransformer2DModel.from_pretrained(saved, torch_dtype=dtype)
    layers = [name for name, module in model.named_modules() if isinstance(module, QuantLinear)]
    before, after = model.state_dict(), loaded.state_dict()
    for name, tensor in before.items():
        if name.startswith(tuple(f"{layer}." for layer in layers)):
            assert torch.equal(after[name], tensor)
            assert after[name].dtype == tensor.dtype
        else:
            assert after[name].dtype == dtype
    inputs = {
        key: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for key, value in transformer_batch(9).items()
    }
    with torch.no_grad():
        assert torch.isfinite(loaded(**inputs)[0]).all()


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def flip(tensors: dict[str, Tensor]) -> None:
    tensors["transformer_blocks.1.ff.net.2.codes"][3, 4] ^= 16


DAMAGE = [
    pytest.param(
        lambda t: t.pop("transformer_blocks.0.attn1.to_q.codes"),
        r"tensor transformer_blocks.0.attn1.to_q.codes is missing", id="missing",
    ),
    pytest.param(
        lambda t: t.update(stray=torch.ones(2)), "tensor stray of the checkpoint", id="extra"
    ),
    pytest.param(
        lambda t: t.update({"transformer_blocks.0.ff.net.2.scales": torch.ones(1, 1).bfloat16()}),
        r"tensor transformer_blocks.0.ff.net.2.scales has shape \(1, 1\), expected \(64, 4\)",
        id="shape",
    ),
    pytest.param(flip, "layer transformer_blocks.1.ff.net.2: checksum mismatch", id="flipped"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_damaged_tensors_are_named(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match=message):
        PixArtTransformer2DModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layout_version": 7}, "layout_version=7, this version reads 3"),
        ({"inputs": [{"members": ["nowhere"]}]}, "quantization_config: "),
    ],
    ids=["version", "input"],
)
def test_damaged_configuration_is_named(folder: Path, fields: dict[str, Any], message: str) -> None:
    document = json.loads((folder / "config.json").read_text())
    document["quantization_config"].update(fields)
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=message):
        PixArtTransformer2DModel.from_pretrained(folder)


CHILD = """
import sys
if sys.argv[1] == "first":
    import dirotq
    assert "diffusers" not in sys.modules, "importing dirotq must not import diffusers"
    from diffusers import PixArtTransformer2DModel
else:
    # Beside a CPU build of PyTorch diffusers' models cannot be imported without these schemas.
    import pathlib, runpy, importlib.util
    package = pathlib.Path(importlib.util.find_spec("dirotq").origin).parent
    kept = runpy.run_path(str(package / "_torchvision.py"))
    kept["define_missing_schemas"]()
    from diffusers import PixArtTransformer2DModel
    assert "diffusers.quantizers.auto" in sys.modules
    assert "dirotq" not in sys.modules
    import dirotq
import torch
torch.set_num_threads(1)
from dirotq.checkpoint import checksum
model = PixArtTransformer2DModel.from_pretrained(sys.argv[2])
print(checksum(model))
"""


@pytest.mark.parametrize("order", ["first", "second"])
def test_loads_in_a_fresh_process_whichever_is_imported_first(
    model: PixArtTransformer2DModel, saved: Path, order: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, order, str(saved)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == dirotq.checkpoint.checksum(model)
