"""Commands as Hydra takes them: what a sweep goes over, its jobs, and the one that runs at this moment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dirotq.config.building import build_job
from dirotq.config.composing import VERSION_BASE, compose_config, config_folder, explain


@dataclass(frozen=True)
class SweepJob:
    """A job's place in a sweep: its own folder in that of the sweep, its number and what is overridden in it."""

    folder: Path
    number: int
    overrides: tuple[str, ...]


def check(overrides: Sequence[str], *, multirun: bool) -> Path | None:
    """Build a job for every value that a run or a sweep (`multirun`, or a preset of conf/sweep) names.

    Returns the folder of the sweep, None for a single run. Raises ValueError in one line; Hydra would report a bad
    value in a paragraph, and in a sweep only when its turn comes.
    """
    values, node = _swept(overrides, multirun=multirun)
    multirun = multirun or node.mode == RunMode.MULTIRUN
    firsts = [choices[0] for choices in values.values()]
    build_job(compose_config(firsts))
    for position, (key, choices) in enumerate(values.items()):
        if len(choices) > 1 and not multirun:
            raise ValueError(f"{key} has {len(choices)} values, which is a sweep: dirotq -m ...")
        for choice in choices[1:]:
            build_job(compose_config([*firsts[:position], choice, *firsts[position + 1 :]]))
    return Path(node.sweep.dir) if multirun else None


def each_job(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of each job of `dirotq -m` with these, in its order; one job where there is nothing to go over.

    Raises ValueError, one line, for overrides that cannot be composed; a job of its own may still not build.
    """
    values, _ = _swept(overrides, multirun=True)
    # Hydra's own settings are the sweep's, not a job's.
    own = [choices for key, choices in values.items() if not _is_hydras(key)]
    return list(itertools.product(*own))


def _swept(overrides: Sequence[str], *, multirun: bool) -> tuple[dict[str, list[str]], DictConfig]:
    """Overrides by key, with those of a preset of conf/sweep before the others, and Hydra's own node."""
    try:
        values = _values(overrides)
        firsts = [choices[0] for choices in values.values()]
        node: DictConfig = compose_config(firsts, with_hydra=True).hydra
        if multirun or node.mode == RunMode.MULTIRUN:
            # What the command line says goes before what the preset does, as in Hydra's sweeper.
            swept = [f"{key}={value}" for key, value in (node.sweeper.params or {}).items()]
            values = {**_values(swept), **values}
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from None
    return values, node


def _values(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Overrides by key, each as the single overrides of all its values."""
    found = {}
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override, one in zip(overrides, parsed, strict=True):
        key, sweep = one.get_key_element(), one.is_sweep_override()
        choices = [f"{key}={value}" for value in one.sweep_string_iterator()] if sweep else []
        found[key] = choices or [override]
    return found


def _is_hydras(key: str) -> bool:
    return key.lstrip("+~").startswith(("hydra.", "hydra/"))


def run_app(task: Callable[[DictConfig], None]) -> None:
    """Run `task` as a Hydra application over `conf/` (single runs, `-m` sweeps, `--help`, `--cfg job`)."""
    hydra.main(version_base=VERSION_BASE, config_path=str(config_folder()), config_name="config")(
        task
    )()


def sweep_job() -> SweepJob | None:
    """The job of a sweep that Hydra runs at this moment; None in a single run and outside of Hydra."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    node = HydraConfig.get()
    folder = Path(node.sweep.dir) / str(node.sweep.subdir)
    return SweepJob(folder, int(node.job.num), tuple(node.overrides.task))
