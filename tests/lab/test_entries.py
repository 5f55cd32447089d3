"""What a stage keeps comes back as it was."""

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from dirotq.calibrate import InputStatistics, collect
from dirotq.lab.entries import load_statistics, save_statistics


def test_statistics_come_back_as_they_were(tmp_path: Path) -> None:
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 2))
    found = collect(model, ["0", "2"], [(x,)])
    save_statistics(found, tmp_path)
    for mine, theirs in zip(found, load_statistics(tmp_path), strict=True):
        assert (mine.members, mine.width, mine.rows) == (theirs.members, theirs.width, theirs.rows)
        assert mine.lowest == theirs.lowest
        for name in ("moment", "absmax", "sample"):
            assert torch.equal(getattr(mine, name), getattr(theirs, name))
    assert "Infinity" not in json.dumps(json.loads((tmp_path / "inputs.json").read_text()))


def test_memory_of_an_input_is_free_before_the_next_one_comes(tmp_path: Path) -> None:
    moments: list[weakref.ref[Tensor]] = []

    def statistics() -> Iterator[InputStatistics]:
        for number in range(3):
            assert [moment() for moment in moments] == [None] * number
            moment = torch.eye(4).double()
            moments.append(weakref.ref(moment))
            entry = InputStatistics(
                (str(number),),
                4,
                moment=moment,
                absmax=torch.ones(4),
                sample=torch.eye(4),
                lowest=0.0,
            )
            del moment
            yield entry
            del entry

    save_statistics(statistics(), tmp_path)
    assert len(load_statistics(tmp_path)) == 3
