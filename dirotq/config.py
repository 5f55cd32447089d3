"""Compose `conf/` into a Recipe and the rest of a job. The only module of the library that imports Hydra."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dirotq.methods import Method, Ranked
from dirotq.recipes import Bits, Recipe
from dirotq.rounding import GPTQOptions
from dirotq.settings import (
    CalibSettings,
    EvalSettings,
    ModelSettings,
    RuntimeSettings,
    WandbSettings,
    numbers,
    typed,
)

VERSION_BASE = "1.3"
_OPTIONAL = ("experiment", "sweep")  # groups that a job may have no file of
METHOD_KEYS = ("rank", "basis", "rotation", "protect", "rounding", "scale_search", "seed")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One run of the main job, checked. composed: the resolved configuration it was built from."""

    model: ModelSettings
    recipe: Recipe
    calib: CalibSettings
    eval: EvalSettings
    runtime: RuntimeSettings
    logger: WandbSettings | None
    seed: int
    save: bool
    out: str | None
    force: bool
    paper: dict[str, float] | None
    composed: dict[str, Any]

    def __post_init__(self) -> None:
        if self.logger is not None and self.logger.checkpoint and not self.save:
            raise ValueError("logger.checkpoint=true logs checkpoint/, allowed with save=true")


@dataclass(frozen=True)
class SweepJob:
    """A job's place in a sweep: its own folder in that of the sweep, its number and what is overridden in it."""

    folder: Path
    number: int
    overrides: tuple[str, ...]


def config_folder() -> Path:
    """The folder `conf`: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).parent
    return next(
        folder
        for folder in (here / "conf", here.parent / "conf")
        if (folder / "config.yaml").is_file()
    )


def recipe(*overrides: str) -> Recipe:
    """Compose a Recipe from Hydra overrides such as "method=dirotq", "bits=w4a4_int4", "rank=0.125".

    Raises ValueError, one line that names key, value and what is allowed.
    """
    return build_recipe(compose_config(overrides))


def compose_config(overrides: Sequence[str] = (), *, with_hydra: bool = False) -> DictConfig:
    """Compose `conf/config.yaml` with overrides, with Hydra's own node or without; raises ValueError in one line."""
    for override in overrides:
        group, _, value = override.partition("=")
        if value == "null" and (config_folder() / group).is_dir() and group not in _OPTIONAL:
            raise ValueError(f"{group}=null, allowed is one of the files of conf/{group}")
    try:
        with initialize_config_dir(version_base=VERSION_BASE, config_dir=str(config_folder())):
            return compose("config", expand(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from None


def check(overrides: Sequence[str], *, multirun: bool) -> Path | None:
    """Build a job for every value that a run or a sweep (`multirun`, or a preset of conf/sweep) names.

    Returns the folder of the sweep, None for a single run. Raises ValueError in one line; Hydra would report a bad
    value in a paragraph, and in a sweep only when its turn comes.
    """
    try:
        values = _values(overrides)
        firsts = [choices[0] for choices in values.values()]
        hydra_node = compose_config(firsts, with_hydra=True).hydra
        multirun = multirun or hydra_node.mode == RunMode.MULTIRUN
        if multirun:
            # What the command line says goes before what the preset does, as in Hydra's sweeper.
            swept = [f"{key}={value}" for key, value in (hydra_node.sweeper.params or {}).items()]
            values = {**_values(swept), **values}
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from None
    firsts = [choices[0] for choices in values.values()]
    build_job(compose_config(firsts))
    for position, (key, choices) in enumerate(values.items()):
        if len(choices) > 1 and not multirun:
            raise ValueError(f"{key} has {len(choices)} values, which is a sweep: dirotq -m ...")
        for choice in choices[1:]:
            build_job(compose_config([*firsts[:position], choice, *firsts[position + 1 :]]))
    return Path(hydra_node.sweep.dir) if multirun else None


def _values(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Overrides by key, each as the single overrides of all its values."""
    found = {}
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override, one in zip(overrides, parsed, strict=True):
        key, sweep = one.get_key_element(), one.is_sweep_override()
        choices = [f"{key}={value}" for value in one.sweep_string_iterator()] if sweep else []
        found[key] = choices or [override]
    return found


def expand(overrides: Sequence[str]) -> list[str]:
    """Overrides with `model=<folder>` written out as `model=folder model.path=<folder>`."""
    expanded: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        is_option = (config_folder() / "model" / f"{value}.yaml").is_file()
        if key == "model" and not is_option and Path(value).is_dir():
            expanded += ["model=folder", f"model.path='{value}'"]
        else:
            expanded.append(override)
    return expanded


def explain(error: Exception) -> str:
    """One line for an error of composition: key, value, what is allowed."""
    if (
        isinstance(error, MissingConfigException)
        and error.missing_cfg_file
        and error.options is not None
    ):
        group, _, value = str(error.missing_cfg_file).rpartition("/")
        folder = config_folder() / group
        names = [path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml")]
        allowed = sorted(path.as_posix() for path in names) or sorted(error.options)
        return f"{group}={value}: unknown, allowed are {', '.join(allowed)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read ({str(error).splitlines()[0]})"
    unknown = re.match(r"Could not override '([^']+)'", str(error))
    if unknown:
        return f"{unknown[1]}: unknown key; dirotq --cfg job lists the keys there are"
    cause = (
        error.__cause__
        if isinstance(error, ConfigCompositionException) and error.__cause__
        else error
    )
    lines = [line.strip() for line in (str(error), str(cause).splitlines()[0]) if line.strip()]
    return " ".join(dict.fromkeys(line.splitlines()[0] for line in lines))


def build_recipe(config: DictConfig) -> Recipe:
    """The Recipe that a composed configuration describes; raises ValueError."""
    bits = Bits(
        name=config.bits.name,
        weight=_format(config.bits.weight, "bits.weight"),
        act=_format(config.bits.act, "bits.act"),
    )
    patterns = config.weight_only
    if isinstance(patterns, ListConfig):
        patterns = list(patterns)
    return Recipe(
        _method(config),
        bits,
        typed(patterns, tuple[str, ...], "weight_only"),
        _budget(config),
    )


def build_job(config: DictConfig) -> Job:
    """Check everything that a composed configuration says; raises ValueError."""
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    assert isinstance(plain, dict)
    values: dict[str, Any] = {str(key): value for key, value in plain.items() if key != "hydra"}
    return Job(
        model=ModelSettings.build(_group(values, "model"), "model"),
        recipe=build_recipe(config),
        calib=CalibSettings.build(_group(values, "calib"), "calib"),
        eval=EvalSettings.build(_group(values, "eval"), "eval"),
        runtime=RuntimeSettings.build(_group(values, "runtime"), "runtime"),
        logger=_logger(_group(values, "logger")),
        seed=typed(values["seed"], int, "seed"),
        save=typed(values["save"], bool, "save"),
        out=typed(values["out"], str | None, "out"),
        force=typed(values["force"], bool, "force"),
        paper=numbers(values["paper"], "paper"),
        composed=values,
    )


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


def _group(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group = values[name]
    if not isinstance(group, Mapping):
        raise ValueError(f"{name}={group}, allowed is one of the files of conf/{name}")
    missing = [key for key, value in group.items() if value == "???"]
    if missing:
        raise ValueError(f"{name}.{missing[0]} must be given")
    return group


def _logger(group: Mapping[str, Any]) -> WandbSettings | None:
    """None is `logger=none`, which has nothing to set."""
    return None if group == {"name": "none"} else WandbSettings.build(group, "logger")


def _format(config: DictConfig | None, where: str) -> Any:
    if config is None:
        return None
    try:
        return instantiate(config)
    except HydraException as error:
        cause = error.__cause__ or error
        raise ValueError(f"{where}: {str(cause).splitlines()[0]}") from None


def _method(config: DictConfig) -> Method:
    values = {str(key): value for key, value in config.method.items()}
    kind: type[Method] = get_class(values.pop("_target_"))
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    for key in METHOD_KEYS:
        value = config[key]
        if value is None:
            continue
        if key in known:
            values[key] = value
        else:
            _log.warning("%s=%s: method %s has no use for it", key, value, kind.name)
    for key in values:
        if key not in known:
            raise ValueError(f"method.{key}: unknown key, allowed are {', '.join(sorted(known))}")
    options = _gptq(values.pop("gptq", {}))
    checked = {key: typed(value, hints[key], key) for key, value in values.items()}
    built: Method = kind(**checked, gptq=options)
    return built


def _budget(config: DictConfig) -> float | None:
    budget: float | None = typed(config.budget, float | None, "budget")
    kind: type[Method] = get_class(config.method["_target_"])
    if budget is None:
        return None
    if config.rank is not None:
        raise ValueError(f"budget={budget:g} chooses the rank, allowed is rank=null beside it")
    if not issubclass(kind, Ranked):
        _log.warning("budget=%s: method %s has no use for it", budget, kind.name)
        return None
    return budget


def _gptq(values: Any) -> GPTQOptions:
    if not isinstance(values, Mapping):
        raise ValueError(f"method.gptq={values}, allowed is a mapping")
    hints = get_type_hints(GPTQOptions)
    for key in values:
        if key not in hints:
            raise ValueError(
                f"method.gptq.{key}: unknown key, allowed are {', '.join(sorted(hints))}"
            )
    return GPTQOptions(
        **{key: typed(value, hints[key], f"method.gptq.{key}") for key, value in values.items()}
    )
