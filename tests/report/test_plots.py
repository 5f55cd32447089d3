"""Plots show the numbers of the runs, and nothing is drawn without data."""

from pathlib import Path

import numpy as np
import pytest

from dirotq.report.figures import png, save, svg
from dirotq.report.plots import bars, drawn, pareto, quality_against_bits, quality_against_rank
from dirotq.report.runs import NoDataError, Run, find_runs
from tests.support.finished import RTN, write_result, write_run

TRAJECTORY = "step,latent_error,ci_low,ci_high\n1,0.01,0.005,0.02\n2,0.03,0.02,0.04\n"
LAYERS = (
    "name,rank,weight_snr_db,act_snr_db,output_snr_db,fallback\n"
    "transformer_blocks.0.attn1.to_q,8,17.5,21.0,40.0,False\n"
    "transformer_blocks.0.ff.net.2,8,18.5,22.0,inf,False\n"
    "transformer_blocks.1.attn1.to_q,8,19.5,23.0,41.0,False\n"
    "transformer_blocks.1.ff.net.2,8,20.5,24.0,42.0,False\n"
)


@pytest.fixture
def sweep(tmp_path: Path) -> list[Run]:
    """Ranks 8 and 32 of two bases, one of them with two seeds, and round to nearest."""
    for rank in (32, 8):
        size = {"weight": 4.0 + rank / 16, "activation": 4.5}
        put = {"rank": rank, "effective_bits": size}
        write_result(tmp_path / f"pca-{rank}.json", 20.0 + rank / 8, **put)
        for seed in (0, 1):
            name = f"random-{rank}-{seed}.json"
            psnr = 18.0 + rank / 8 + seed
            write_result(tmp_path / name, psnr, basis="random", seed=seed, **put)
    size = {"weight": 4.25, "activation": 4.5}
    write_result(tmp_path / "rtn.json", 17.0, **RTN, effective_bits=size)
    write_result(tmp_path / "fp16.json", 100.0, **{**RTN, "method": "fp16"}, bits="w16a16")
    return find_runs([tmp_path])


def test_rank_lines_go_through_the_values_with_their_intervals(sweep: list[Run]) -> None:
    axes = quality_against_rank(sweep, "psnr").axes[0]
    lines = {line.get_label(): line for line in axes.containers}
    assert set(lines) == {"dirotq, pca basis", "dirotq, random basis"}
    pca, _, (spans,) = lines["dirotq, pca basis"].lines
    assert pca.get_xydata().tolist() == [[8.0, 21.0], [32.0, 24.0]]
    assert [span[:, 1].tolist() for span in spans.get_segments()] == [[20.5, 21.5], [23.5, 24.5]]
    seeds = lines["dirotq, random basis"].lines
    assert seeds[0].get_ydata().tolist() == [19.5, 22.5]
    assert [s[:, 1].tolist() for s in seeds[2][0].get_segments()] == [[19.0, 20.0], [22.0, 23.0]]
    (across,) = [line for line in axes.get_lines() if line.get_label() == "rtn"]
    assert across.get_ydata() == [17.0, 17.0]
    assert axes.get_xlabel() == "rank, coordinates"
    assert axes.get_ylabel() == "PSNR dB ↑"


def test_coordinates_and_shares_stand_side_by_side(tmp_path: Path) -> None:
    for rank, psnr in ((0.5, 30.0), (8, 20.0), (128, 28.0)):
        write_result(tmp_path / f"{rank}.json", psnr, rank=rank)
    axes = quality_against_rank(find_runs([tmp_path]), "psnr").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "128", "0.5"]
    line = axes.containers[0].lines[0].get_xydata().tolist()
    assert line == [[0.0, 20.0], [1.0, 28.0], [2.0, 30.0]]
    assert axes.get_xlabel() == "rank, coordinates; below 1: share of the input width"


def test_the_caption_says_how_it_was_measured(sweep: list[Run]) -> None:
    caption = " ".join(quality_against_rank(sweep, "psnr").get_supxlabel().split())
    assert "N = 256 prompts" in caption
    assert "a GPU" in caption
    assert "95 % bootstrap intervals over prompts" in caption
    assert "range over the seeds" in caption


def test_what_was_measured_otherwise_is_left_out_and_said(sweep: list[Run], tmp_path: Path) -> None:
    few = write_result(tmp_path / "few.json", 40.0, rank=64, prompts={"set": "quick", "n": 16})
    made = quality_against_rank([*sweep, *find_runs([few])], "psnr")
    pca = made.axes[0].containers[0].lines[0]
    assert pca.get_xdata().tolist() == [8.0, 32.0]
    assert "1 runs measured otherwise are left out" in " ".join(made.get_supxlabel().split())


def test_pareto_line_joins_what_nothing_beats(sweep: list[Run]) -> None:
    axes = pareto(sweep, "psnr").axes[0]
    front = axes.get_lines()[0]
    # Round to nearest is the smallest; at each rank PCA is better than a random basis of its size.
    assert front.get_xydata().tolist() == [[4.25, 17.0], [4.5, 21.0], [6.0, 24.0]]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "3"]


def test_bars_start_at_zero_and_the_best_is_on_top(sweep: list[Run]) -> None:
    axes = bars(sweep, "psnr").axes[0]
    assert axes.get_xlim()[0] == 0
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [17.0, 19.5, 21.0, 22.5, 24.0]  # from the bottom
    assert axes.get_yticklabels()[0].get_text().startswith("rtn")


def test_formats_stand_side_by_side_most_bits_first(tmp_path: Path) -> None:
    for bits, weight, psnr in (("w4a4_int4", 4.25, 25.0), ("w8a8_int8", 8.0, 40.0)):
        size = {"weight": weight, "activation": weight}
        write_result(tmp_path / f"{bits}.json", psnr, bits=bits, effective_bits=size)
    axes = quality_against_bits(find_runs([tmp_path]), "psnr").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["w8a8\nint8", "w4a4\nint4"]
    assert axes.containers[0].lines[0].get_xydata().tolist() == [[1.0, 25.0], [0.0, 40.0]]


def test_inside_a_run(tmp_path: Path) -> None:
    files = {"layers.csv": LAYERS, "trajectory.csv": TRAJECTORY}
    config = {"eval": {"trajectory": 16}}
    runs = find_runs([write_run(tmp_path / "a", files=files, config=config)])
    plots, missing = drawn(runs, ["psnr"])
    assert set(plots) == {"trajectory", "layers-a"}
    assert [line.split(":")[0] for line in missing] == [
        "rank-psnr", "bits-psnr", "pareto-psnr", "methods-psnr"
    ]  # fmt: skip
    assert "rank-psnr: not drawn; no two runs differ in their rank alone" in missing
    weight, act, output = (axes.images[0].get_array() for axes in plots["layers-a"].axes[:3])
    assert weight.tolist() == [[17.5, 19.5], [18.5, 20.5]]  # kind of linear x block
    assert act.tolist() == [[21.0, 23.0], [22.0, 24.0]]
    assert np.isnan(
        output[1, 0].filled(np.nan) if hasattr(output[1, 0], "filled") else output[1, 0]
    )
    line = plots["trajectory"].axes[0].get_lines()[0]
    assert line.get_xydata().tolist() == [[1.0, 0.01], [2.0, 0.03]]
    assert "the first 16 prompts" in " ".join(plots["trajectory"].get_supxlabel().split())


def test_without_the_metric_nothing_is_drawn(sweep: list[Run]) -> None:
    with pytest.raises(NoDataError, match="no quantized run has the metric fid"):
        pareto(sweep, "fid")


def test_files_depend_on_the_data_alone(sweep: list[Run], tmp_path: Path) -> None:
    first, second = (bars(sweep, "psnr") for _ in range(2))
    written = save(first, tmp_path / "methods-psnr")
    assert [path.name for path in written] == ["methods-psnr.png", "methods-psnr.svg"]
    assert written[0].read_bytes() == png(second)
    assert written[1].read_bytes() == svg(second)
