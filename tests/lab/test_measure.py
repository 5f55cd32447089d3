"""What a run measures: metrics by name, the noise floor, latents along the trajectory, and what is left out."""

import csv
from collections.abc import Callable
from pathlib import Path

import cleanfid.fid
import pytest
import torch
from torch import Tensor

from dirotq.config import Job
from dirotq.lab import measure as module
from dirotq.lab.measure import Measured, measure
from dirotq.lab.results import Result, read_result, validate
from dirotq.lab.runner import run
from dirotq.lab.stages import Stages
from dirotq.metrics import inception, perceptual
from dirotq.metrics.statistics import bootstrap_mean
from dirotq.metrics.unavailable import UnavailableError
from dirotq.pipeline import Pipeline
from dirotq.prompts import Prompt
from dirotq.settings import METRICS
from tests.support.jobs import PROMPTS, job

Make = Callable[..., Job]
CPU = torch.device("cpu")


@pytest.fixture
def make(tiny_pipeline: Path, tmp_path: Path) -> Make:
    def made(*more: str) -> Job:
        return job(tiny_pipeline, tmp_path, "method=rtn", f"out={tmp_path / 'run'}", *more)

    return made


def measured(made: Job) -> Measured:
    stages = Stages(made)
    return measure(stages, stages.reference_images(), stages.images())


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def extract(images: Tensor) -> Tensor:
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).mean(dim=1).flatten(1)


def test_every_name_has_one_place() -> None:
    assert sorted([*module._EACH, *module._WHOLE]) == sorted(METRICS)


def test_what_cannot_be_had_is_left_out_with_its_reason(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable(*_: object) -> None:
        raise UnavailableError("no weights here")

    monkeypatch.setattr(perceptual, "lpips_network", unavailable)
    monkeypatch.setattr(inception, "inception", unavailable)
    names = "ssim,lpips,fid,clip_score,image_reward"
    folder = run(make(f"eval.metrics=[{names}]", "eval.clip_model=no-folder/at/all"))
    result = read_result(folder / "result.json")
    assert list(result["metrics"]) == ["ssim"]
    left_out = result["left_out"]
    assert list(left_out) == ["lpips", "fid", "clip_score", "image_reward"]
    assert left_out["fid"] == left_out["lpips"] == "no weights here"
    assert left_out["clip_score"].startswith("the CLIP model no-folder/at/all cannot be had: ")
    assert "metric fid is left out: no weights here" in caplog.messages
    columns = {"prompt", "category", "split", "ssim"}
    assert set(table(folder / "prompts.csv")[0]) == columns


def test_a_distance_of_sets_needs_two_images(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "inception", lambda device: extract)
    found = measured(make("eval.metrics=[psnr,fid]", "eval.prompts=1"))
    assert found.left_out == {"fid": "a Fréchet distance needs at least 2 images"}
    assert found.metrics["psnr"]["ci_low"] is None


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_fid_is_clean_fid_s(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inception, "inception", lambda device: extract)
    folder = run(make("eval.metrics=[fid]"))
    references = Path(run(make("method=fp16", f"out={tmp_path / 'reference'}"))) / "images"
    stages = Stages(make())
    ours, theirs = (
        inception.inception_features(extract, images, CPU).numpy()
        for images in (stages.images(), stages.reference_images())
    )
    value = read_result(folder / "result.json")["metrics"]["fid"]["value"]
    # The package takes a matrix root of singular products: half of float64's digits, of the traces.
    scale = 1e-6 * float(ours.var(axis=0).sum())
    assert value == pytest.approx(cleanfid.fid.fid_from_feats(ours, theirs), abs=scale)
    by_folder = measured(make("eval.metrics=[fid]", f"eval.fid_reference={references}"))
    assert by_folder.metrics["fid"]["value"] == pytest.approx(value, abs=scale)


def test_features_of_the_reference_are_taken_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return extract(images)

    monkeypatch.setattr(inception, "inception", lambda device: counting)
    measured(make("eval.metrics=[fid]"))
    assert sum(seen) == 2 * len(PROMPTS)
    measured(make("eval.metrics=[fid]", "method=rtn", "bits=w4a16_int4"))
    assert sum(seen) == 3 * len(PROMPTS)


def test_trajectory_is_that_of_the_generation(make: Make) -> None:
    made = make("eval.trajectory=2")
    folder = run(made)
    rows = table(folder / "trajectory.csv")
    assert [row["step"] for row in rows] == ["1", "2", "3"]
    stages, found = Stages(made), {}
    for name, transformer in (
        ("16-bit", stages.pipeline.transformer),
        ("rtn", stages.pipeline.load_transformer(stages.quantized()[0])),
    ):
        steps: list[Tensor] = []
        stages.pipeline.transformer = transformer
        stages.pipeline.generate(
            stages.prompts, batch=2, watch=lambda first, latents, to=steps: to.append(latents)
        )
        found[name] = steps[:3]  # of the first batch, which is of the two prompts
    for row, ours, theirs in zip(rows, found["rtn"], found["16-bit"], strict=True):
        errors = (ours - theirs).double().flatten(1).norm(dim=1)
        errors /= theirs.double().flatten(1).norm(dim=1)
        expected = bootstrap_mean(errors, seed=made.seed)
        numbers = [float(row[name]) for name in ("latent_error", "ci_low", "ci_high")]
        # Six digits are written.
        assert numbers == pytest.approx(
            [expected.value, expected.ci_low, expected.ci_high], rel=1e-5
        )
        assert expected.value > 0


def test_the_number_of_latents_is_no_part_of_the_images(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    original = Pipeline.generate

    def generate(self: Pipeline, prompts: list[Prompt], **options: object) -> Tensor:
        drawn.append(len(prompts))
        return original(self, prompts, **options)

    whole = Stages(make("eval.trajectory=3"))
    whole.images()
    latents = whole.latents()
    assert latents is not None
    monkeypatch.setattr(Pipeline, "generate", generate)
    for count, again in ((0, []), (2, [2, 2]), (3, [])):
        fewer = Stages(make(f"eval.trajectory={count}", "eval.metrics=[ssim]"))
        fewer.images()
        drawn.clear()
        found = fewer.latents()
        assert drawn == again
        if found is not None:
            for part, every in zip(found, latents, strict=True):
                assert torch.equal(part, every[:count])
    assert Stages(make("method=fp16")).latents() is None


def test_a_pipeline_without_callbacks_has_no_trajectory(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pipeline, "reports_latents", False)
    found = measured(make("eval.metrics=[psnr]"))
    assert found.trajectory is None
    assert found.left_out == {"latent_error": "the pipeline does not report its latents"}


def test_noise_floor_is_what_another_batch_size_makes(make: Make) -> None:
    made = make("eval.noise_floor=true", "eval.metrics=[psnr,ssim]")
    result = read_result(run(made) / "result.json")
    floor = result["noise_floor"]
    assert list(floor) == ["psnr", "ssim"]
    # The 16-bit model beside itself is far closer than rounding to four bits brings the quantized one.
    assert floor["psnr"]["value"] > result["metrics"]["psnr"]["value"] + 10
    assert floor["psnr"]["distinguishable"] is True
    assert floor["psnr"]["n"] == len(PROMPTS)
    assert "noise-floor" in result["seconds"]
    fp16 = measured(make("method=fp16", "eval.noise_floor=true", "eval.metrics=[ssim]"))
    assert fp16.noise_floor["ssim"]["value"] == pytest.approx(1, abs=1e-3)


def test_noise_floor_is_drawn_in_batches_of_another_size(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[object] = []

    def generate(self: Pipeline, prompts: list[Prompt], **options: object) -> Tensor:
        sizes.append(options["batch"])
        return torch.rand(len(prompts), 16, 16, 3, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(Pipeline, "generate", generate)
    for batch in (1, 2, 8):  # of three prompts
        Stages(make(f"eval.batch={batch}", "eval.prompts=3")).redrawn_images()
    assert sizes == [2, 1]  # 8 is 3, and its half what it is of 2
    alone = measured(
        make("method=fp16", "eval.noise_floor=true", "eval.prompts=1", "eval.trajectory=0")
    )
    assert alone.noise_floor == {}
    assert alone.left_out["noise_floor"] == "one prompt makes no batches of another size"


def test_saturated_images_end_the_run(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = Stages(make())
    stages.reference_images()
    stages.quantized()
    broken = torch.zeros(3, 16, 16, 3)
    broken[:, ::2] = 1
    monkeypatch.setattr(Pipeline, "generate", lambda self, *args, **options: broken)
    message = (
        r"^rtn images: 3 of 3 are broken; first is saturated: 100.0% of its values are 0 or 255"
    )
    with pytest.raises(ValueError, match=message):
        stages.images()
    assert not [*(tmp_path / "cache" / "images").glob("*/manifest.json")]


def test_result_has_a_place_for_it(make: Make) -> None:
    result: Result = read_result(run(make("method=fp16")) / "result.json")
    assert result["noise_floor"] == {}
    validate({**result, "left_out": {"fid": "no weights"}})
    for field, value in (
        ("left_out", {"fid": ""}),
        ("left_out", {"fid": None}),
        ("noise_floor", {"psnr": {"value": 60.0, "ci_low": None, "ci_high": None, "n": 3}}),
    ):
        with pytest.raises(ValueError, match=field):
            validate({**result, field: value})
