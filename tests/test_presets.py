"""Every preset of conf/sweep and conf/experiment composes, and those of published rows say what the tables say."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from dirotq.config import Job, build_job, check, compose_config, config_folder, each_job
from dirotq.methods import DiRotQ, SVDQuant

ROOT = Path(__file__).parents[1]
SWEEPS = sorted(path.stem for path in (config_folder() / "sweep").glob("*.yaml"))
EXPERIMENTS = sorted(
    path.relative_to(config_folder() / "experiment").with_suffix("").as_posix()
    for path in (config_folder() / "experiment").rglob("*.yaml")
)
PAPER = [name for name in EXPERIMENTS if name.startswith("paper/")]
GIVEN = (
    "eval.prompt_set=mjhq.json",
    "eval.fid_reference=.",
    "calib.prompt_set=captions.yaml",
)
METHODS = ("fp16", "rtn", "smoothquant", "rotation", "svdquant", "dirotq")


@cache
def job(*overrides: str) -> Job:
    return build_job(compose_config(overrides))


@pytest.mark.parametrize("name", SWEEPS)
def test_every_value_of_a_sweep_builds_a_job(name: str) -> None:
    folder = check([f"sweep={name}"], multirun=False)
    assert folder is not None
    assert folder.parent == Path("outputs/sweeps")


def swept(*overrides: str) -> dict[str, str]:
    config = compose_config(overrides, with_hydra=True)
    return dict(config.hydra.sweeper.params)


def test_a_rank_sweep_goes_from_eight_to_half_of_the_width() -> None:
    assert swept("sweep=rank")["rank"].split(",")[0] == "8"
    assert swept("sweep=rank")["rank"].split(",")[-1] == "0.5"


def test_bits_and_methods_are_all_swept() -> None:
    # Nothing rounded, and SVDQuant's own variant of INT4.
    bits = {path.stem for path in (config_folder() / "bits").glob("*.yaml")}
    assert set(swept("sweep=bits")["bits"].split(",")) == bits - {"w16a16", "w4a4_int4_sym"}
    names = swept("sweep=methods")["experiment"].split(",")
    assert [job(f"experiment={name}").recipe.method.name for name in names] == list(METHODS[1:])


def test_methods_with_a_branch_are_matched_by_size() -> None:
    budgets = {job(f"experiment=matched/{name}").recipe.budget for name in ("svdquant", "dirotq")}
    assert budgets == {6.5}
    assert job("experiment=matched/svdquant", "budget=4.9").recipe.budget == 4.9


def test_a_bad_value_beside_a_preset_is_found() -> None:
    with pytest.raises(ValueError, match=r"rank=0.*allowed are integers from 1"):
        check(["sweep=rank", "rank=8,0"], multirun=True)
    with pytest.raises(ValueError, match="rank has 2 values, which is a sweep: dirotq -m"):
        check(["rank=8,16"], multirun=False)
    with pytest.raises(ValueError, match="method=magic: unknown"):
        check(["sweep=rank", "method=rtn,magic"], multirun=False)


def test_a_preset_takes_further_settings() -> None:
    assert check(["sweep=rank", "method=svdquant", "hydra.sweep.dir=here"], multirun=True) == Path(
        "here"
    )


def test_jobs_of_a_preset_are_in_hydra_s_order() -> None:
    found = each_job(
        ["sweep=rank", "rank=8,16", "basis=pca,joint", "hydra.sweep.dir=here", "seed=3"]
    )
    first, second, third, _ = found
    assert first == ("rank=8", "sweep=rank", "basis=pca", "seed=3")
    assert second == ("rank=8", "sweep=rank", "basis=joint", "seed=3")
    assert third == ("rank=16", "sweep=rank", "basis=pca", "seed=3")
    assert each_job(["method=rtn"]) == [("method=rtn",)]
    assert len(each_job(["sweep=basis_rotation"])) == 12
    with pytest.raises(ValueError, match="sweep=depth: unknown"):
        each_job(["sweep=depth"])


def test_debug_is_small() -> None:
    built = job("experiment=debug")
    assert (built.eval.prompts, built.calib.prompts, built.model.steps) == (2, 2, 3)
    assert job("experiment=debug", "model.steps=4").model.steps == 4


@cache
def tables() -> dict[str, list[dict[str, Any]]]:
    files = [yaml.safe_load(path.read_text()) for path in (ROOT / "experiments/tables").iterdir()]
    return {file["model"]: file["rows"] for file in files}


def row_of(built: Job, rows: list[dict[str, Any]]) -> dict[str, Any]:
    method = built.recipe.method
    rounding = method.rounding if method.quantizes else None
    keys = {"method": method.name, "rounding": rounding, "bits": built.recipe.bits.name}
    (row,) = (row for row in rows if keys.items() <= row.items())
    return row


@pytest.mark.parametrize("name", PAPER)
def test_a_published_row_says_what_the_table_says(name: str) -> None:
    built = job(f"experiment={name}", *GIVEN)
    assert built.paper == row_of(built, tables()[built.model.name])["metrics"]
    assert built.calib.prompts == 128
    assert built.eval.prompts == 5000


def test_every_published_row_of_a_method_of_ours_has_a_preset() -> None:
    found = set()
    for name in PAPER:
        built = job(f"experiment={name}", *GIVEN)
        found.add((built.model.name, row_of(built, tables()[built.model.name])["id"]))
    assert len(found) == len(PAPER)
    assert found == {
        (model, row["id"])
        for model, rows in tables().items()
        for row in rows
        if row["method"] in METHODS
    }


def test_published_settings() -> None:
    dirotq = job("experiment=paper/pixart_int4", *GIVEN).recipe
    assert dirotq.weight_only == (r".*ff\.net\.2",)
    assert isinstance(dirotq.method, DiRotQ)
    assert (dirotq.method.rotation, dirotq.method.basis, dirotq.method.rank) == (
        "dense", "pca", 0.125,
    )  # fmt: skip
    assert (dirotq.method.protect, dirotq.method.scale_search) == ("bf16", False)
    svdquant = job("experiment=paper/pixart_int8_svdquant", *GIVEN).recipe.method
    assert isinstance(svdquant, SVDQuant)
    assert svdquant.rank == 16


def test_prompts_that_are_not_shipped_must_be_given() -> None:
    with pytest.raises(ValueError, match=r"calib\.prompt_set must be given"):
        job("experiment=paper/pixart_int4")
