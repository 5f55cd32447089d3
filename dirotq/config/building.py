"""From a composed configuration to a Job, every value of it checked."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from dirotq.config.composing import compose_config
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


def recipe(*overrides: str) -> Recipe:
    """Compose a Recipe from Hydra overrides such as "method=dirotq", "bits=w4a4_int4", "rank=0.125".

    Raises ValueError, one line that names key, value and what is allowed.
    """
    return build_recipe(compose_config(overrides))


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
