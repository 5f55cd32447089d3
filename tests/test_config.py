"""Every YAML composes; every bad value ends in one line that names key, value and what is allowed."""

import logging
from pathlib import Path

import pytest
import yaml

import dirotq
from dirotq import config
from dirotq.config import Job, build_job, compose_config, config_folder, expand
from dirotq.formats import Integer
from dirotq.methods import FP16, RTN, DiRotQ
from dirotq.recipes import Bits

# Files of whole settings, and of another command: tests/test_presets.py, tests/experiments/test_bench_settings.py.
PRESETS = ("bench", "experiment", "hydra", "sweep")
FILES = sorted(p for p in config_folder().glob("*/*.yaml") if p.parent.name not in PRESETS)
EVERY = [pytest.param(path, id=f"{path.parent.name}={path.stem}") for path in FILES]


def job(*overrides: str) -> Job:
    return build_job(compose_config(overrides))


def test_the_folder_of_a_checkout_is_found() -> None:
    assert config_folder() == Path(__file__).parents[1] / "conf"
    assert {path.parent.name for path in FILES} >= {"model", "method", "bits", "calib", "eval"}


@pytest.mark.parametrize("path", EVERY)
def test_every_yaml_builds_a_job(path: Path) -> None:
    group, stem = path.parent.name, path.stem
    expected = yaml.safe_load(path.read_text())
    missing = [key for key, value in expected.items() if value == "???"]
    built = job(f"{group}={stem}", *[f"{group}.{key}=." for key in missing])
    for key, value in built.composed[group].items():
        assert key in expected
        assert value == ("." if expected[key] == "???" else expected[key])


@pytest.mark.parametrize("path", [p for p in EVERY if "=" in str(p.id)])
def test_names_are_the_files_stems(path: Path) -> None:
    if path.parent.name == "method":
        assert job(f"method={path.stem}").recipe.method.name == path.stem
    else:
        assert yaml.safe_load(path.read_text()).get("name", path.stem) == path.stem


def test_defaults_are_those_of_the_design() -> None:
    built = job()
    assert (built.model.name, built.recipe.method.name) == ("emoji", "dirotq")
    assert built.recipe.bits.name == "w4a4_int4"
    assert (built.eval.prompt_set, built.calib.prompt_set) == ("quick", "calibration")
    assert (built.seed, built.save, built.out, built.force) == (0, False, None, False)


def test_recipe_is_what_the_overrides_say() -> None:
    recipe = dirotq.recipe("method=dirotq", "bits=w4a4_int4", "rank=16", "basis=random", "seed=3")
    assert isinstance(recipe.method, DiRotQ)
    assert (recipe.method.rank, recipe.method.basis, recipe.method.seed) == (16, "random", 3)
    assert recipe.method.rounding == "gptq"
    assert recipe.bits == Bits("w4a4_int4", Integer(64), Integer(64, symmetric=False))
    assert dirotq.recipe("method=rtn", "rounding=gptq").method == RTN(rounding="gptq")
    assert dirotq.recipe("method=fp16").method == FP16()
    assert dirotq.recipe("weight_only=['.*down']").weight_only == (".*down",)
    assert dirotq.recipe("+method.gptq.damping=0.05").method.gptq.damping == 0.05
    assert dirotq.recipe("rank=null").method == dirotq.recipe().method


def test_recipes_are_frozen_and_comparable() -> None:
    recipe = dirotq.recipe("rank=16")
    assert recipe == dirotq.recipe("rank=16") != dirotq.recipe("rank=17")
    with pytest.raises(AttributeError):
        recipe.weight_only = ()  # type: ignore[misc]


BAD = [
    ("method=magic", "method=magic: unknown, allowed are .*dirotq.*fp16.*rtn"),
    ("bits=w3", "bits=w3: unknown, allowed are .*w4a4_int4"),
    (
        "model=dalle",
        "model=dalle: unknown, allowed are emoji, flux-dev, flux-schnell, folder, pixart-sigma, sana-1.6b",
    ),
    ("eval=huge", "eval=huge: unknown, allowed are full, mjhq, quick, standard"),
    ("eval=mjhq", "eval.prompt_set must be given"),
    ("sweep=depth", "sweep=depth: unknown, allowed are basis_rotation, bits, .*rank"),
    ("experiment=none", "experiment=none: unknown, allowed are debug, .*paper/pixart_int4"),
    ("paper=3", "paper=3, allowed is a mapping or null"),
    ("paper={psnr: high}", "paper.psnr=high, allowed is a number"),
    ("paper={psnr: nan}", "paper.psnr=nan, allowed are finite numbers"),
    ("model=folder", "model.path must be given"),
    ("rnak=3", "rnak"),
    ("calib.promts=3", "promts"),
    ("+calib.promts=3", "calib.promts: unknown key, allowed are batch, prompt_set, prompts"),
    ("+method.power=3", "method.power: unknown key, allowed are .*rank"),
    ("+bits.weight.sign=3", "bits.weight: .*sign"),
    ("~calib.batch", "calib.batch is missing"),
    ("rank=0", "rank=0.*allowed are integers from 1 and fractions"),
    ("rank=-1", "rank=-1.*allowed are integers from 1"),
    ("rank=2.5", "rank=2.5, allowed are integers from 1"),
    ("rank=inf", "rank=inf, allowed are integers from 1"),
    ("rank=nan", "rank=nan, allowed are integers from 1"),
    ("rank=many", "rank=many, allowed is a number"),
    ("rank=true", "rank=True, allowed is a number"),
    ("rank=[1,2]", r"rank=\[1, 2\], allowed is a number"),
    ("basis=svd", "basis=svd, allowed are .*pca"),
    ("rotation=fast", "rotation=fast, allowed are .*dense"),
    ("rounding=up", "rounding=up, allowed are rtn, gptq"),
    ("seed=-1", "seed=-1, allowed are integers from 0"),
    ("seed=1.5", "seed=1.5, allowed is an integer"),
    ("seed=null", "seed=None, allowed is an integer"),
    ("calib.prompts=0", "calib.prompts=0, allowed are integers from 1"),
    ("calib.records=-5", "calib.records=-5, allowed are integers from 1"),
    ("calib.batch=0", "calib.batch=0, allowed are integers from 1"),
    ("calib.batch=two", "calib.batch=two, allowed is an integer"),
    ("calib.prompts=null", "calib.prompts=None, allowed is an integer"),
    ("eval.prompts=0", "eval.prompts=0, allowed are integers from 1"),
    ("eval.batch=-1", "eval.batch=-1, allowed are integers from 1"),
    ("eval.metrics=[psnr,kid]", "eval.metrics=kid, allowed are psnr"),
    ("eval.metrics=psnr", "eval.metrics=psnr, allowed is a list"),
    ("model.steps=0", "model.steps=0, allowed are integers from 1"),
    ("model.size=-64", "model.size=-64, allowed are integers from 1"),
    ("model.guidance=-1", "model.guidance=-1.0, allowed are numbers from 0"),
    ("model.guidance=nan", "model.guidance=nan, allowed are numbers from 0"),
    ("model.guidance=inf", "model.guidance=inf, allowed are numbers from 0"),
    ("model.weights=stolen", "model.weights=stolen, allowed are trained, random"),
    ("model.call=3", "model.call=3, allowed is a mapping"),
    ("runtime.dtype=int3", "runtime.dtype=int3, allowed are auto, float32"),
    ("runtime.threads=0", "runtime.threads=0, allowed are integers from 1"),
    ("runtime.deterministic=maybe", "runtime.deterministic=maybe, allowed is true or false"),
    ("save=1", "save=1, allowed is true or false"),
    ("out=5", "out=5, allowed is text or null"),
    ("bits.weight.bits=5", "bits.weight: .*bits=5, allowed are 4 and 8"),
    ("bits.act.group=0", "bits.act: .*group=0, allowed are positive integers"),
    ("bits.act.group=2.5", "bits.act: .*group=2.5, allowed are positive integers"),
    ("bits.weight.symmetric=false", "bits=w4a4_int4: weight formats must be symmetric"),
    ("weight_only=down", "weight_only=down, allowed is a list"),
    ("weight_only=null", "weight_only=None, allowed is a list"),
    ("weight_only=['(']", r"weight_only=\(: not a regular expression"),
    ("+method.gptq.damping=-1", "gptq: damping=-1.*, allowed are positive numbers"),
    ("+method.gptq.damping=big", "method.gptq.damping=big, allowed is a number"),
    ("+method.gptq.blocks=1", "method.gptq.blocks: unknown key, allowed are block, damping"),
    ("+method.gptq=5", "method.gptq=5, allowed is a mapping"),
    ("method=null", "method=null, allowed is one of the files of conf/method"),
    ("bits=null", "bits=null, allowed is one of the files of conf/bits"),
    ("model=null", "model=null, allowed is one of the files of conf/model"),
    ("rank", "rank: cannot be read"),
    ("rank=[", r"rank=\[: cannot be read"),
]


@pytest.mark.parametrize(("override", "message"), BAD, ids=[override for override, _ in BAD])
def test_bad_values_end_in_one_line(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        job(override)
    assert "\n" not in str(caught.value)


def test_a_key_without_use_is_named_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        recipe = dirotq.recipe("method=rtn", "rank=8", "rounding=rtn")
    assert [record.getMessage() for record in caplog.records] == [
        "rank=8: method rtn has no use for it"
    ]
    assert recipe == dirotq.recipe("method=rtn")


def test_a_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my model, v=2"
    folder.mkdir()
    built = job(*expand([f"model={folder}", "model.size=64"]))
    assert (built.model.name, built.model.path, built.model.size) == ("folder", str(folder), 64)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emoji").mkdir()
    assert job("model=emoji").model.name == "emoji"  # a name of conf/model goes first


def test_composing_leaves_hydra_usable() -> None:
    """A failed composition must not leave Hydra's global state behind."""
    for override in ("method=magic", "rank=["):
        with pytest.raises(ValueError, match=r"method|rank"):
            config.compose_config([override])
    assert dirotq.recipe("method=rtn").method.name == "rtn"
