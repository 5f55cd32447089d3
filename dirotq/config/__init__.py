"""Compose `conf/` into a Recipe and the rest of a job. The only package of the library that imports Hydra."""

from dirotq.config.building import METHOD_KEYS, Job, build_job, build_recipe, recipe
from dirotq.config.composing import compose_config, config_folder, expand, explain
from dirotq.config.running import SweepJob, check, each_job, run_app, sweep_job

__all__ = [
    "METHOD_KEYS",
    "Job",
    "SweepJob",
    "build_job",
    "build_recipe",
    "check",
    "compose_config",
    "config_folder",
    "each_job",
    "expand",
    "explain",
    "recipe",
    "run_app",
    "sweep_job",
]
