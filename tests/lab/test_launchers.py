"""Sweeps by other launchers than Hydra's own: each job in a process of its own, a failing one among them."""

import importlib.util
import json
from pathlib import Path

import pytest

from dirotq.config import compose_config, config_folder
from dirotq.lab.results import read_result
from experiments.kills import Child
from tests.support.jobs import overrides

SECONDS = 300
PLUGINS = {
    "joblib": ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    "submitit": ("hydra/launcher=submitit_local",),
    "ray": (
        "hydra/launcher=ray",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.remote.num_cpus=1",
    ),
}


def needs(plugin: str) -> None:
    if importlib.util.find_spec(f"hydra_plugins.hydra_{plugin}_launcher") is None:
        pytest.skip(f"hydra-{plugin}-launcher is not installed")
    pytest.importorskip(plugin)
    if plugin == "ray":
        pytest.importorskip("msgpack")  # what an installation without ray's dependencies lacks


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_failing_job_fails_alone(plugin: str, tiny_pipeline: Path, tmp_path: Path) -> None:
    needs(plugin)
    # 100 is below the width of the feed-forward (256) and not of attention (64): found only by the job.
    ranks = "rank=100" if plugin == "submitit" else "rank=100,8"  # every job imports torch again
    arguments = overrides(
        tiny_pipeline, tmp_path, ranks, "rounding=rtn", "hydra.sweep.dir=sweeps/mine"
    )
    child = Child(["-m", *PLUGINS[plugin], *arguments], tmp_path)
    assert child.wait(SECONDS) == 1, child.output()
    files = sorted((tmp_path / "sweeps" / "mine").glob("*/job.json"))
    failed, *done = (json.loads(path.read_text()) for path in files)
    assert (failed["status"], failed["run"]) == ("failed", None)
    assert "allowed are integers from 1 to 63" in failed["error"]
    count = len(files)
    assert (
        f"error: 1 of {count} jobs did not finish: 0; sweeps/mine/<job>/job.json" in child.output()
    )
    assert len(done) == ranks.count(",")
    for job in done:
        assert (job["status"], job["error"]) == ("finished", None)
        result = read_result(tmp_path / job["run"] / "result.json")
        assert (result["rank"], result["sweep"]) == (8, "mine")
        assert result["command"].endswith("rank=8 rounding=rtn")


@pytest.mark.parametrize(
    ("name", "plugin", "settings"),
    [
        ("gpus", "joblib", {"n_jobs": 2, "batch_size": "1"}),
        ("slurm", "submitit", {"gpus_per_node": 1, "tasks_per_node": 1}),
        ("ray_gpus", "ray", {}),
    ],
)
def test_presets_give_a_job_a_gpu(name: str, plugin: str, settings: dict[str, int]) -> None:
    needs(plugin)
    launcher = compose_config([f"hydra/launcher={name}"], with_hydra=True).hydra.launcher
    assert plugin in launcher._target_
    assert {key: launcher[key] for key in settings} == settings
    if plugin == "ray":
        assert launcher.ray.remote.num_gpus == 1


def test_presets_shadow_no_plugin() -> None:
    names = {path.stem for path in (config_folder() / "hydra" / "launcher").glob("*.yaml")}
    assert names == {"gpus", "slurm", "ray_gpus"}
