"""The main job in process, on a tiny random pipeline: what it writes, reuses, and leaves when it is stopped."""

import csv
import errno
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from dirotq.config import Job
from dirotq.lab import entries as entry_files
from dirotq.lab import runner, stages
from dirotq.lab.cache import Cache
from dirotq.lab.results import read_result
from dirotq.lab.runner import run
from tests.support.jobs import PROMPTS, job

DIROTQ = ("method=dirotq", "rank=8")
RTN = ("method=rtn",)
REFERENCE, IMAGES = {"reference", "reference-latents"}, {"images", "images-latents"}
STAGES = REFERENCE | {"records", "statistics", "quantized"} | IMAGES

Make = Callable[..., Job]


class Builds(Counter[str]):
    """How often each stage was built."""

    def taken(self) -> dict[str, int]:
        found = dict(self)
        self.clear()
        return found


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Builds:
    counted, original = Builds(), Cache.get_or_build

    def get_or_build(
        self: Cache, stage: str, fields: dict[str, Any], build: Callable[[Path], None], what: str
    ) -> Path:
        def counting(folder: Path) -> None:
            counted[stage] += 1
            build(folder)

        return original(self, stage, fields, counting, what)

    monkeypatch.setattr(Cache, "get_or_build", get_or_build)
    return counted


@pytest.fixture
def make(tiny_pipeline: Path, tmp_path: Path) -> Make:
    def made(name: str, *more: str) -> Job:
        return job(tiny_pipeline, tmp_path, f"out={tmp_path / name}", *more)

    return made


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def leftovers(folder: Path) -> list[str]:
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if ".tmp-" in p.name]


def pixels(folder: Path) -> dict[str, bytes]:
    return {p.name: Image.open(p).tobytes() for p in sorted((folder / "images").iterdir())}


def entries(cache: Path) -> set[str]:
    return {path.parent.parent.name for path in cache.glob("*/*/manifest.json")}


def test_run_directory(make: Make, tmp_path: Path) -> None:
    wanted = make("run", *DIROTQ, "save=true")
    folder = run(wanted)
    assert folder == tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "result.json", "config.yaml", "layers.csv", "prompts.csv", "trajectory.csv", "grid.png",
        "images", "checkpoint",
    }  # fmt: skip
    with (folder / "prompts.csv").open() as file:
        prompts = list(csv.DictReader(file))
    assert [row["prompt"] for row in prompts] == list(PROMPTS)
    mean = sum(float(row["psnr"]) for row in prompts) / len(prompts)
    assert read_result(folder / "result.json")["metrics"]["psnr"]["value"] == pytest.approx(
        mean, rel=1e-5
    )
    assert set(pixels(folder)) == {f"{name}.png" for name in PROMPTS}
    assert Image.open(folder / "images" / "first.png").size == (16, 16)
    assert yaml.safe_load((folder / "config.yaml").read_text()) == wanted.composed
    result = read_result(folder / "result.json")
    assert (result["model"], result["method"], result["bits"]) == ("tiny", "dirotq", "w4a4_int4")
    assert (result["rank"], result["basis"], result["rounding"]) == (8, "pca", "gptq")
    assert set(result["metrics"]) == {"psnr", "ssim", "sharpness"}
    missing = "the model has no feature network"
    assert result["left_out"] == {"emoji_perceptual": missing, "emoji_frechet": missing}
    assert result["metrics"]["psnr"]["n"] == 3
    assert 0 < result["metrics"]["psnr"]["value"] < 100
    assert result["weights"] == "random"
    assert result["prompts"]["n"] == 3
    assert set(result["seconds"]) == STAGES | {"total"}
    checkpoint = folder / "checkpoint"
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert result["bytes"]["checkpoint"] == size
    with (folder / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    assert rows[0]["name"] == "transformer_blocks.0.attn1.to_q"
    assert {row["rank"] for row in rows} == {"8"}
    weights = [int(row["in_features"]) * int(row["out_features"]) for row in rows]
    stored = [float(row["effective_bits"]) * n for row, n in zip(rows, weights, strict=True)]
    # The table has three decimals.
    assert result["effective_bits"]["weight"] == pytest.approx(sum(stored) / sum(weights), abs=1e-3)
    assert leftovers(tmp_path) == []


def test_a_finished_run_is_skipped_unless_forced(make: Make, builds: Builds) -> None:
    folder = run(make("run", *RTN))
    assert set(builds.taken()) == STAGES
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run(make("run", *RTN)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    (folder / "images" / "first.png").unlink()
    images = pixels(folder)
    run(make("run", *RTN, "force=true"))
    assert builds.taken() == {}
    assert pixels(folder).keys() - images.keys() == {"first.png"}


def test_another_method_reuses_what_it_can(make: Make, builds: Builds) -> None:
    run(make("one", *RTN))
    builds.taken()
    run(make("two", *DIROTQ))
    assert set(builds.taken()) == {"quantized"} | IMAGES
    run(make("three", *DIROTQ, "eval.prompts=2"))
    assert set(builds.taken()) == REFERENCE | IMAGES
    run(make("four", *DIROTQ, "seed=1"))
    assert set(builds.taken()) == {"quantized"} | IMAGES
    run(make("five", *RTN, "calib.records=2"))
    assert set(builds.taken()) == STAGES - REFERENCE
    run(make("six", *RTN, "model.guidance=3.0"))
    assert set(builds.taken()) == STAGES


def test_fp16_is_the_reference(make: Make, builds: Builds) -> None:
    folder = run(make("run", "method=fp16", "save=true"))
    assert set(builds.taken()) == REFERENCE
    result = read_result(folder / "result.json")
    assert result["metrics"]["psnr"]["value"] == 100
    assert result["metrics"]["ssim"]["value"] == pytest.approx(1)
    assert (result["bits"], result["rounding"]) == ("w16a16", None)
    assert result["effective_bits"] == {"weight": 16, "activation": 16}
    assert result["bytes"]["checkpoint"] is None
    assert not (folder / "layers.csv").exists()
    assert not (folder / "checkpoint").exists()


def test_images_are_the_same_from_a_fresh_and_a_cached_checkpoint(
    make: Make, tmp_path: Path
) -> None:
    first = run(make("one", *DIROTQ))
    for entry in (tmp_path / "cache" / "images").iterdir():
        if entry.is_dir():
            (entry / "images.safetensors").write_bytes(b"damaged")
    again = run(make("two", *DIROTQ))  # from the cached checkpoint
    fresh = run(make("three", *DIROTQ, f"runtime.cache={tmp_path / 'other'}"))
    assert pixels(first) == pixels(again) == pixels(fresh)
    numbers = [read_result(f / "result.json")["metrics"] for f in (first, again, fresh)]
    assert numbers[0] == numbers[1] == numbers[2]


def failing(error: BaseException, name: str) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        for argument in args:  # half of a file, as a full disk leaves it
            if isinstance(argument, Path):
                argument.parent.mkdir(parents=True, exist_ok=True)
                argument.write_bytes(b"half")
        raise error

    fail.__name__ = name
    return fail


INTERRUPTIONS = [
    pytest.param(stages, "save_call", REFERENCE, id="records"),
    pytest.param(entry_files, "save_file", REFERENCE | {"records"}, id="statistics"),
    pytest.param(stages, "quantize", STAGES - IMAGES - {"quantized"}, id="quantized"),
    pytest.param(runner, "measure", STAGES, id="metrics"),
    pytest.param(runner, "save_png", STAGES, id="run-directory"),
]


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")],
    ids=["ctrl-c", "disk-full"],
)
@pytest.mark.parametrize(("module", "name", "kept"), INTERRUPTIONS)
def test_a_stopped_run_leaves_finished_stages_only(
    make: Make,
    tmp_path: Path,
    builds: Builds,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    kept: set[str],
    error: BaseException,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing(error, name))
        with pytest.raises(type(error)):
            run(make("run", *RTN))
    assert not (tmp_path / "run").exists()
    assert leftovers(tmp_path) == []
    assert entries(tmp_path / "cache") == kept
    builds.taken()
    folder = run(make("run", *RTN))
    assert set(builds.taken()) == STAGES - kept
    assert (folder / "result.json").is_file()


def test_broken_images_end_the_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        stages.Pipeline,
        "generate",
        lambda self, *args, **kwargs: torch.full((3, 4, 4, 3), torch.nan),
    )
    with pytest.raises(ValueError, match="16-bit images: 3 of 3 are broken; first is not finite"):
        run(make("run", *RTN))
    assert not (tmp_path / "run").exists()
    assert entries(tmp_path / "cache") == set()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rank=64", r"rank=64\S* protects 64 coordinates of an input of width 64, allowed are"),
        ("calib.prompts=9", "prompts=9: the set .* has 2"),
        ("eval.prompt_set=none.json", "prompt_set=none.json: cannot be read"),
        ("runtime.device=tpu", "runtime.device=tpu, allowed are auto, cpu, cuda"),
        ("runtime.device=meta", "runtime.device=meta, allowed are auto, cpu, cuda"),
        ("weight_only=[nothing]", "no layer of PixArtTransformer2DModel matches 'nothing'"),
        ("model.call.depth=3", "model.call.depth"),
    ],
)
def test_bad_input_is_found_before_anything_is_written(
    make: Make, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run(make("run", "method=dirotq", override.replace("model.call", "+model.call")))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_same_settings_are_the_same_folder(tiny_pipeline: Path, tmp_path: Path) -> None:
    def place(*more: str) -> str:
        return str(runner.run_directory(job(tiny_pipeline, tmp_path, *more)))

    assert place(*RTN) == place(*RTN, "force=true") == place(*RTN, "save=true")
    assert place(*RTN).startswith("outputs/runs/tiny-rtn-w4a4_int4-")
    assert place("method=fp16").startswith("outputs/runs/tiny-fp16-")
    others = {place(*RTN), place(*DIROTQ), place(*RTN, "seed=1"), place(*RTN, "bits=w4a16_int4")}
    assert len(others) == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_named(make: Make) -> None:
    with pytest.raises(ValueError, match=r"runtime.device=cuda: PyTorch sees 0 GPUs here"):
        run(make("run", "runtime.device=cuda"))
