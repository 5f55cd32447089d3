"""Grids of images: the 16-bit ones on top, each run's below, and its difference amplified."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dirotq.lab.pictures import above, grid, save_png
from dirotq.report.images import image_grid
from dirotq.report.runs import NoDataError, find_runs
from tests.support.finished import write_result, write_run

SIZE = 64


def picture(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200, (SIZE, SIZE, 3), generator=generator, dtype=torch.uint8)


REFERENCE = {"p": picture(0), "q": picture(1)}
QUANTIZED = {name: image + 3 for name, image in REFERENCE.items()}
PROMPTS = {"prompts.csv": "prompt,category,split,psnr\nq,a,b,1\np,a,b,1\n"}


def test_a_grid_gives_back_the_image_above_another() -> None:
    rows = [("16-bit", list(REFERENCE.values())), ("run", list(QUANTIZED.values()))]
    drawn = torch.from_numpy(np.array(grid(rows, ["one", "two"], scale=2)))
    for name, image in QUANTIZED.items():
        found = above(drawn, image, 2)
        assert found is not None
        assert torch.equal(found, REFERENCE[name])
    assert above(drawn, REFERENCE["p"], 2) is None  # nothing is above the first row
    assert above(drawn, picture(7), 2) is None
    assert above(drawn[:8], picture(7), 2) is None


def rows_of(drawn: np.ndarray, count: int) -> list[np.ndarray]:
    """The leftmost image of each row, found by its place under the one before; all are magnified twice."""
    found = torch.from_numpy(drawn)
    top = next(
        y for y in range(found.shape[0]) for x in [found.shape[1] - 8 - 2 * (2 * SIZE) - 4]
        if torch.equal(found[y : y + 2 * SIZE : 2, x : x + 2 * SIZE : 2], REFERENCE["q"])
    )  # fmt: skip
    left = drawn.shape[1] - 8 - 2 * (2 * SIZE) - 4
    step = 2 * SIZE + 4
    return [
        drawn[top + row * step : top + row * step + 2 * SIZE : 2, left : left + 2 * SIZE : 2]
        for row in range(count)
    ]


def check(drawn: np.ndarray) -> None:
    reference, image, difference = rows_of(drawn, 3)
    assert (reference == REFERENCE["q"].numpy()).all()  # in the order of prompts.csv
    assert (image == QUANTIZED["q"].numpy()).all()
    assert (difference == 3 * 8).all()


def test_the_reference_is_the_16_bit_run_where_there_is_one(tmp_path: Path) -> None:
    write_run(tmp_path / "a", images=QUANTIZED, files=PROMPTS)
    write_run(tmp_path / "b", images=REFERENCE, files=PROMPTS, method="fp16", bits="w16a16")
    check(np.array(image_grid(find_runs([tmp_path]))))


def test_else_it_is_taken_from_a_runs_grid(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", images=QUANTIZED, files=PROMPTS)
    rows = [("16-bit", list(REFERENCE.values())), ("run", list(QUANTIZED.values()))]
    save_png(grid(rows, ["one", "two"], scale=2), run / "grid.png")
    check(np.array(image_grid(find_runs([run]))))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoDataError, match="no quantized run has an images folder"):
        image_grid(find_runs([write_result(tmp_path / "a.json")]))
    write_run(tmp_path / "b", images=QUANTIZED)
    with pytest.raises(NoDataError, match="add a run of method=fp16"):
        image_grid(find_runs([tmp_path / "b"]))
    write_run(tmp_path / "c", images={"other": picture(3)})
    with pytest.raises(NoDataError, match="no prompt in common"):
        image_grid(find_runs([tmp_path / "b", tmp_path / "c"]))


def test_runs_without_a_common_reference_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "a", images=QUANTIZED)
    write_run(tmp_path / "b", images=QUANTIZED, model="another")
    with pytest.raises(NoDataError, match="differ in model or device"):
        image_grid(find_runs([tmp_path]))
