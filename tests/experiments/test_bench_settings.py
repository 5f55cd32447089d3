"""Presets of benches, and settings that are no bench's."""

import pytest

from dirotq.config import config_folder
from dirotq.report.blocks import BLOCKS
from experiments.bench.settings import build

PRESETS = sorted(path.stem for path in (config_folder() / "bench").glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_a_bench(name: str) -> None:
    job = build([f"bench={name}", "out=o.json"])
    assert job.head["bench"] == name


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_table(name: str) -> None:
    sources = {block.source.removeprefix("bench/").removesuffix(".json") for block in BLOCKS}
    # A file, or the folder of all that quantize.
    assert {name, name.partition("_")[0]} & sources


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("bench=fast", "bench=fast: unknown, allowed are flux, layer_flux"),
        ("bench.cases.0.layers=[w3]", "bits=w3: unknown"),
        ('bench.cases.0.layers=["fp8:64"]', "bits=fp8: unknown"),
        ("bench.cases.0.shapes=[[1,2,3]]", r"bench\.cases\.0\.shapes=\[1, 2, 3\], allowed are pairs"),
        ("bench=load_flux bench.precision=bf16", "bench.precision=bf16, allowed are files of conf/bits"),
        ("bench=load_flux bench.ways=[pickle]", "bench.ways=pickle, allowed are load, from_pretrained"),
        ("bench.repetitions=0", "bench.repetitions=0, allowed are integers from 1"),
        ("out=???", "out must be given"),
    ],
)  # fmt: skip
def test_bad_settings_end_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build(["out=o.json", *override.split()])
    assert "\n" not in str(caught.value)
