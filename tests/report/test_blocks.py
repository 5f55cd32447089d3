"""README's blocks are made from the results, and differ from them or hide a difference at their peril."""

import json
from pathlib import Path

import pytest

from dirotq.report.blocks import BLOCKS, refreshed
from tests.support.finished import RTN, write_result


def text(*names: str) -> str:
    return "".join(
        f"# {name}\n<!-- {name}: begin -->\nold\n<!-- {name}: end -->\nrest\n" for name in names
    )


def rows(root: Path, folder: str = "emoji-standard") -> Path:
    place = root / "experiments" / "results" / folder
    metrics = {
        name: {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 256}
        for name in ("psnr", "ssim", "emoji_perceptual", "emoji_frechet")
    }
    write_result(
        place / "good.json", 30.0, metrics=metrics | {"psnr": metrics["psnr"] | {"value": 30.0}}
    )
    write_result(place / "bad.json", 20.0, metrics=metrics, **RTN)
    return place


def test_a_block_is_made_anew_and_the_rest_stays(tmp_path: Path) -> None:
    rows(tmp_path)
    made = refreshed(text("results"), tmp_path)
    assert made.startswith("# results\n<!-- results: begin -->\n| method |")
    assert made.endswith("<!-- results: end -->\nrest\n")
    assert made.index("| rtn |") < made.index("| dirotq |")  # worst first
    assert "30.00 [29.50, 30.50]" in made
    assert "w4a4_int4, emoji, trained weights, simulated numerics, N = 256 prompts" in made
    assert (
        "one seed; each row's command is in its file in `experiments/results/emoji-standard`"
        in made
    )
    assert refreshed(made, tmp_path) == made


def test_rows_measured_differently_are_refused(tmp_path: Path) -> None:
    place = rows(tmp_path)
    content = json.loads((place / "bad.json").read_text())
    content["prompts"]["n"] = 16
    (place / "bad.json").write_text(json.dumps(content))
    with pytest.raises(
        ValueError,
        match="README block results: the rows of emoji-standard were not measured alike: N",
    ):
        refreshed(text("results"), tmp_path)


def test_a_block_without_results_is_an_error_unless_readme_lacks_it(tmp_path: Path) -> None:
    assert refreshed("no block\n", tmp_path) == "no block\n"
    with pytest.raises(
        ValueError, match="README block rank: experiments/results/rank is not there"
    ):
        refreshed(text("rank"), tmp_path)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "<!-- speed: begin -->\n<!-- speed: end -->\n",
            "README block speed: there is none; there are results",
        ),
        ("<!-- results: begin -->\n", "README block results: needs one begin and one end"),
        ("<!-- results: end -->\n", "README block results: needs one begin and one end"),
        (text("results", "results"), "README block results: needs one begin and one end"),
    ],
)
def test_markers_that_do_not_pair_are_refused(tmp_path: Path, written: str, message: str) -> None:
    rows(tmp_path)
    with pytest.raises(ValueError, match=message):
        refreshed(written, tmp_path)


def test_seeds_are_averaged_in_a_block_of_two_settings(tmp_path: Path) -> None:
    place = tmp_path / "experiments" / "results" / "rank"
    for rank in (128, 8, 0.5):
        for basis in ("pca", "random"):
            for seed in (0, 1) if basis == "random" else (0,):
                write_result(
                    place / f"{basis}-{rank}-{seed}.json",
                    rank + 10.0 * seed,
                    rank=rank,
                    basis=basis,
                    seed=seed,
                )
    lines = refreshed(text("rank"), tmp_path).splitlines()
    assert lines[2] == "| method | rank | bits W | pca: PSNR dB ↑ | random: PSNR dB ↑ |"
    assert (
        lines[4] == "| dirotq | 8 | 6.25 | 8.00 [7.50, 8.50] | 13.00 [8.00, 18.00] <sup>a</sup> |"
    )
    assert lines[5].startswith("| dirotq | 128 |")
    assert lines[6].startswith("| dirotq | 0.5 |")  # a share of the width, not half a coordinate
    assert "<sup>a</sup> mean [least, largest] over 2 seeds" in lines
    assert any("seeds 0, 1; each row's command" in line for line in lines)


def test_every_block_has_its_own_name_and_source() -> None:
    assert (
        len({block.name for block in BLOCKS})
        == len({block.source for block in BLOCKS})
        == len(BLOCKS)
    )
