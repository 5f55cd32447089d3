"""Devices: what names mean, and GPUs that jobs share out among themselves."""

import threading
from pathlib import Path

import pytest
import torch

from dirotq.lab import devices
from dirotq.lab.devices import claimed, resolve_device


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(devices, "_POLL_SECONDS", 0.01)


@pytest.mark.usefixtures("two_gpus")
def test_every_job_gets_a_gpu_of_its_own(tmp_path: Path) -> None:
    third: list[str] = []

    def wait_for_one() -> None:
        with claimed("free", tmp_path / "locks") as device:
            third.append(device)

    with claimed("free", tmp_path / "locks") as first:
        with claimed("free", tmp_path / "locks") as second:
            assert (first, second) == ("cuda:0", "cuda:1")
            waiting = threading.Thread(target=wait_for_one)
            waiting.start()
            waiting.join(timeout=0.1)
            assert third == [], "no GPU is free"
        waiting.join(timeout=10)
        assert third == ["cuda:1"]
    with claimed("free", tmp_path / "locks") as device:
        assert device == "cuda:0"


@pytest.mark.usefixtures("two_gpus")
def test_a_named_gpu_is_not_claimed(tmp_path: Path) -> None:
    with claimed("cuda:0", tmp_path / "locks") as device:
        assert device == "cuda:0"
    assert not (tmp_path / "locks").exists()
    assert resolve_device("free") == torch.device("cuda")
    with pytest.raises(ValueError, match=r"runtime\.device=cuda:2: PyTorch sees 2 GPUs"):
        resolve_device("cuda:2")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_free_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"runtime\.device=free: PyTorch sees 0 GPUs here"):
        resolve_device("free")
