"""From the words of a command line to a composed configuration, or to one line that says what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

VERSION_BASE = "1.3"
_OPTIONAL = ("experiment", "sweep")  # groups that a job may have no file of


def config_folder() -> Path:
    """The folder `conf`: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next(
        folder
        for folder in (package / "conf", package.parent / "conf")
        if (folder / "config.yaml").is_file()
    )


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
