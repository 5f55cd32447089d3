"""Calls of a transformer as files."""

from pathlib import Path

import pytest
import torch

from dirotq.records import load_call, save_call


def test_round_trip(tmp_path: Path) -> None:
    call = {
        "hidden_states": torch.randn(2, 3)[:, ::2],  # not contiguous
        "timestep": torch.tensor([3, 999]),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "mask": torch.tensor([True, False]),
        "added": {"size": None, "deep": {"flag": True, "ratio": 0.5}, "t": torch.zeros(())},
        "empty": {},
        "return_dict": False,
        "name": "text",
        "count": 3,
    }
    path = tmp_path / "call.safetensors"
    save_call(call, path)
    found = load_call(path)
    assert found.keys() == call.keys()
    for name in ("hidden_states", "timestep", "half", "mask"):
        assert torch.equal(found[name], call[name])
        assert found[name].dtype == call[name].dtype
    assert torch.equal(found["added"].pop("t"), call["added"].pop("t"))
    for name in ("added", "empty", "return_dict", "name", "count"):
        assert found[name] == call[name]
        assert type(found[name]) is type(call[name])


def test_no_tensors_at_all(tmp_path: Path) -> None:
    save_call({"flag": None}, tmp_path / "call.safetensors")
    assert load_call(tmp_path / "call.safetensors") == {"flag": None}


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    x = torch.ones(2, 2)
    save_call({"a": x, "b": x}, tmp_path / "call.safetensors")
    found = load_call(tmp_path / "call.safetensors")
    assert torch.equal(found["a"], x)
    assert torch.equal(found["b"], x)


@pytest.mark.parametrize(
    "value", [[1, 2], object(), torch.float32], ids=["list", "object", "dtype"]
)
def test_anything_else_raises_by_name(tmp_path: Path, value: object) -> None:
    with pytest.raises(
        TypeError, match=r"argument outer/inner is a \w+, which a calibration record"
    ):
        save_call({"outer": {"inner": value}}, tmp_path / "call.safetensors")
    assert list(tmp_path.iterdir()) == []
