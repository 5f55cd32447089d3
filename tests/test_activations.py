"""Outputs of blocks between two passes: what a store gives back, and which blocks of a folder count."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dirotq import activations
from dirotq.activations import Files, Memory, Store

OUTPUTS = [
    [torch.empty(2, 3, dtype=torch.bfloat16, device="meta")],
    [torch.arange(6.0).reshape(2, 3).T, torch.tensor([True, False]), torch.tensor(3)],
]


@pytest.fixture(params=[Memory, Files])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Memory() if request.param is Memory else Files(tmp_path / "outputs")


def test_a_store_gives_back_what_it_got(store: Store) -> None:
    changed = [tensor.clone() for tensor in OUTPUTS[1]]
    store.save(1, 0, [OUTPUTS[0], changed])
    changed[0].zero_()
    store.complete(1, 1)
    (first, second) = store.load(1, 0)
    assert [(t.shape, t.dtype, t.device) for t in first] == [
        ((2, 3), torch.bfloat16, torch.device("meta"))
    ]
    for found, tensor in zip(second, OUTPUTS[1], strict=True):
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


DAMAGES: list[Callable[[Path], object]] = [spoil, cut, Path.unlink]


def filled(folder: Path) -> Files:
    """Two blocks that are whole, and one that is not."""
    files = Files(folder)
    for block in range(3):
        for record in range(2):
            files.save(block, record, [*[OUTPUTS[0]] * block, OUTPUTS[1]])
        if block < 2:
            files.complete(block, 2)
    return files


@pytest.mark.parametrize("damage", DAMAGES, ids=["flipped", "cut", "missing"])
def test_only_whole_blocks_count(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = filled(tmp_path)
    assert [files.newest(before) for before in (0, 1, 2, 3, 9)] == [-1, 0, 1, 1, 1]
    damage(tmp_path / "0001" / "000001.safetensors")
    with caplog.at_level(logging.WARNING):
        assert files.newest(2) == 0
    assert "0001 is damaged" in caplog.text
    files.keep(0)
    assert [path.name for path in tmp_path.iterdir()] == ["0000"]
    files.keep(-1)
    assert list(tmp_path.iterdir()) == []


def test_a_block_is_not_complete_when_a_record_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    files = Files(tmp_path)
    monkeypatch.setattr(activations, "save_file", full)
    files.save(0, 0, [OUTPUTS[1]])
    with pytest.raises(OSError, match="no space left"):
        files.complete(0, 1)
    assert files.newest(1) == -1
