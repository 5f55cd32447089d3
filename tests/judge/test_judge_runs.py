"""Runs that cannot be compared are refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from dirotq.judge.runs import load_panel


def test_the_reference_comes_first(runs: list[Path]) -> None:
    panel = load_panel(runs[0], runs[1:], 2)
    assert panel.names == ("16-bit", "tiny-svdquant", "tiny-dirotq")
    assert [prompt.id for prompt in panel.prompts] == ["p-zebra", "p-yak"]
    assert panel.size == (8, 8)
    encoded = panel.encoded(panel.prompts[0], 20)
    assert list(encoded) == list(panel.names)
    assert len(set(encoded.values())) == 3


def change(run: Path, **fields: object) -> None:
    path = run / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def set_prompts(run: Path, text: str) -> None:
    listed = run / "own.yaml"
    listed.write_text(text)
    (run / "config.yaml").write_text(yaml.safe_dump({"eval": {"prompt_set": str(listed)}}))


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda r: (r[1] / "result.json").unlink(), "holds no finished run"),
        (lambda r: (r[1] / "result.json").write_text("{"), "result.json: "),
        (lambda r: change(r[0], method="rtn"), "is of method rtn, allowed is fp16"),
        (lambda r: change(r[1], model="other"), "is of model other, the reference of tiny"),
        (lambda r: (r[1] / "config.yaml").unlink(), r"config.yaml cannot be read"),
        (lambda r: (r[1] / "config.yaml").write_text("eval: 1"), "names no eval.prompt_set"),
        (lambda r: set_prompts(r[1], "p-zebra: a dog"), "has other prompts than"),
        (lambda r: (r[1] / "images" / "p-yak.png").unlink(), "p-yak.png is missing"),
        (lambda r: (r[0] / "images" / "p-zebra.png").write_bytes(b"x"), "cannot be read"),
        (lambda r: shutil.rmtree(r[2]), "holds no finished run"),
    ],
)
def test_runs_that_do_not_fit(
    runs: list[Path], spoil: Callable[[list[Path]], object], error: str
) -> None:
    spoil(runs)
    with pytest.raises(ValueError, match=error) as raised:
        load_panel(runs[0], runs[1:])
    assert "\n" not in str(raised.value)


def test_a_run_twice_or_two_of_one_name(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is given twice"):
        load_panel(runs[0], [runs[1], runs[1] / ".." / runs[1].name])
    with pytest.raises(ValueError, match="is given twice"):
        load_panel(runs[0], [runs[0]])
    other = tmp_path / "elsewhere" / runs[1].name
    shutil.copytree(runs[1], other)
    with pytest.raises(ValueError, match="another run's folder is named tiny-svdquant too"):
        load_panel(runs[0], [runs[1], other])
    with pytest.raises(ValueError, match="no run is given"):
        load_panel(runs[0], [])


def test_sizes_would_tell_the_runs_apart(runs: list[Path]) -> None:
    Image.new("RGB", (9, 8)).save(runs[2] / "images" / "p-yak.png")
    panel = load_panel(runs[0], runs[1:])
    panel.encoded(panel.prompts[0], 8)
    with pytest.raises(ValueError, match="has 9 x 8 pixels, the other images 8 x 8"):
        panel.encoded(panel.prompts[1], 8)
