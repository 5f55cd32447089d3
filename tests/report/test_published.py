"""Published numbers: the committed tables are sound, and stand beside ours with what makes them other things."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dirotq.report.beside import published_values
from dirotq.report.published import load_published
from tests.support.finished import result

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "experiments" / "tables"
NAMES = sorted(path.stem for path in TABLES.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_committed_tables_describe_the_models_of_conf(name: str) -> None:
    table = load_published(name, TABLES)
    model = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text())
    assert (table.model, table.checkpoint) == (model["name"], model["path"])
    assert (table.size, table.steps) == (model["size"], model["steps"])
    assert table.find("fp16", None, "w16a16") is not None
    for row in table.rows:
        assert row.source.arxiv.replace(".", "").isdigit()


def test_rows_of_the_four_models() -> None:
    assert NAMES == ["flux-dev", "flux-schnell", "pixart-sigma", "sana-1.6b"]
    values = {
        name: {row.id: dict(row.metrics) for row in load_published(name, TABLES).rows}
        for name in NAMES
    }
    assert values["pixart-sigma"]["dirotq-gptq-int4"] == {"fid": 15.9, "psnr": 19.1}
    assert values["pixart-sigma"]["svdquant-gptq-int4"] == {
        "fid": 19.2, "image_reward": 0.878, "lpips": 0.323, "psnr": 17.6
    }  # fmt: skip
    assert values["flux-dev"]["svdquant-gptq-nvfp4"]["lpips"] == 0.203
    assert values["flux-schnell"]["rtn-int4"]["psnr"] == 16.3
    assert values["sana-1.6b"]["gptq-nvfp4"]["fid"] == 19.7


def changed(tmp_path: Path, *place: Any, value: Any) -> Path:
    """A folder with pixart-sigma.yaml, one entry of it replaced, or deleted if the value is None."""
    content = yaml.safe_load((TABLES / "pixart-sigma.yaml").read_text())
    part = content
    for key in place[:-1]:
        part = part[key]
    if value is None:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    (tmp_path / "pixart-sigma.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("n",), 0, "n=0, allowed is a whole number from 1"),
        (("numerics",), "real", "numerics=real, allowed are simulated, kernel"),
        (("prompts",), None, "the file lacks prompts"),
        (("colour",), 1, "the file has an unknown key colour"),
        (("rows", 0, "metrics", "fid"), "low", "row fp16: fid='low' is not a number"),
        (("rows", 0, "metrics", "iq"), 1.0, "row fp16: iq is not among metrics: fid"),
        (("rows", 0, "source"), "me", "row fp16: source=me, allowed are"),
        (("rows", 0, "rounding"), "up", "row fp16: rounding=up, allowed are rtn, gptq, null"),
        (("rows", 1, "id"), "fp16", "row fp16 is there twice"),
        (("rows", 3, "bits"), "w8a8_int8", "row viditq None w8a8_int8 is there twice"),
        (("sources", "dirotq", "arxiv"), 2605.16732, "source dirotq: arxiv=2605.16732, allowed"),
    ],
)
def test_a_broken_table_is_refused(
    tmp_path: Path, place: tuple[Any, ...], value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_published("pixart-sigma", changed(tmp_path, *place, value=value))


def test_an_unknown_table_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"paper=flux: no such table .* flux-dev, flux-schnell"):
        load_published("flux", TABLES)


PIXART: dict[str, Any] = {"model": "pixart-sigma", "prompts": {"set": "MJHQ", "n": 5000}}


def measured(**changes: Any) -> Any:
    made = result(**PIXART)
    made["metrics"]["psnr"]["n"] = 5000
    return made | changes


SOURCE = "published in DiRotQ (arXiv 2605.16732), abstract"
NOTE = "the second linear of the feed-forward keeps 16-bit activations; the reference set of FID is not named"


def test_a_value_measured_alike_has_its_source_alone() -> None:
    table = load_published("pixart-sigma", TABLES)
    found = published_values(measured(), table, {})
    assert found["psnr"].value == 19.1
    assert found["psnr"].marks == (SOURCE, NOTE)
    assert any("FID: published clean-fid" in mark for mark in found["fid"].marks)


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({"model": "emoji"}, "model: published pixart-sigma, ours emoji"),
        ({"weights": "random"}, "weights: published trained, ours random"),
        ({"numerics": "kernel"}, "numerics: published simulated, ours kernel"),
        ({"prompts": {"set": "sDCI", "n": 5000}}, "prompts: published MJHQ, ours sDCI"),
        (
            {"metrics": {"psnr": {"value": 1.0, "ci_low": None, "ci_high": None, "n": 64}}},
            "N: published 5000, ours 64",
        ),
    ],
)
def test_whatever_differs_is_marked(change: dict[str, Any], mark: str) -> None:
    table = load_published("pixart-sigma", TABLES)
    found = published_values(measured(**change), table, {})
    assert found["psnr"].marks == (SOURCE, mark, NOTE)


def test_numbers_of_the_runs_own_settings_are_looked_up() -> None:
    tables = {"pixart-sigma": load_published("pixart-sigma", TABLES)}
    assert published_values(measured(), None, tables) == {}
    found = published_values(measured(paper={"psnr": 19.1, "fid": 12.0}), None, tables)
    assert found["psnr"].marks[0] == SOURCE
    (mark,) = found["fid"].marks  # no published row says 12.0
    assert "not on record" in mark
    assert (
        "not on record"
        in published_values(measured(paper={"psnr": 19.1}), None, {})["psnr"].marks[0]
    )
