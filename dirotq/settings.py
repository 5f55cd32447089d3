"""Settings of the main job as frozen dataclasses: every value is checked here, once."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

from dirotq.backend import BACKENDS

METRICS = (
    "psnr", "ssim", "lpips", "sharpness", "emoji_perceptual", "emoji_frechet", "fid", "clip_score",
    "image_reward",
)  # fmt: skip
_NAMES = {
    type(None): "null",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list",
    dict: "a mapping",
}
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Settings:
    """A group of settings. `where` in errors is the group's name on the command line."""

    @classmethod
    def build(cls, values: Mapping[str, Any], where: str) -> Self:
        """Check names and types, then construct; raises ValueError that names key, value and what is allowed."""
        hints = get_type_hints(cls)
        known = {field.name for field in fields(cls)}
        for key in values:
            if key not in known:
                raise ValueError(
                    f"{where}.{key}: unknown key, allowed are {', '.join(sorted(known))}"
                )
        for field in fields(cls):
            if field.default is MISSING and field.name not in values:
                raise ValueError(f"{where}.{field.name} is missing")
        checked = {key: typed(value, hints[key], f"{where}.{key}") for key, value in values.items()}
        try:
            return cls(**checked)
        except ValueError as error:
            raise ValueError(f"{where}.{error}") from None

    def _at_least(self, low: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name}={value}, allowed are integers from {low}")

    def _one_of(self, name: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, name) not in allowed:
            raise ValueError(f"{name}={getattr(self, name)}, allowed are {', '.join(allowed)}")


@dataclass(frozen=True)
class ModelSettings(Settings):
    """A diffusers pipeline and how it is called. path: a folder of dirotq/assets, any folder, or a hub id."""

    name: str
    path: str
    weights: str
    size: int
    steps: int
    guidance: float
    call: dict[str, Any]

    def __post_init__(self) -> None:
        self._at_least(1, "size", "steps")
        self._one_of("weights", ("trained", "random"))
        if not 0 <= self.guidance < math.inf:
            raise ValueError(f"guidance={self.guidance}, allowed are numbers from 0")


@dataclass(frozen=True)
class CalibSettings(Settings):
    """prompts: how many trajectories. records: (prompt, step) pairs of them to keep. batch: prompts at once."""

    prompt_set: str
    prompts: int
    records: int
    batch: int

    def __post_init__(self) -> None:
        self._at_least(1, "prompts", "records", "batch")


@dataclass(frozen=True)
class EvalSettings(Settings):
    """prompts: the first so many of the set; None means all. batch: images at once.

    lpips_net: backbone of LPIPS. fid_reference: what FID compares with, a folder of images or statistics that clean-fid
    wrote (.npz); None means the 16-bit images. clip_model: folder or hub id. trajectory: of so many prompts, the first
    ones, latents are compared after every step. noise_floor: also measure 16-bit images drawn once more.
    """

    prompt_set: str
    prompts: int | None
    batch: int
    metrics: tuple[str, ...]
    lpips_net: str
    fid_reference: str | None
    clip_model: str
    trajectory: int
    noise_floor: bool

    def __post_init__(self) -> None:
        self._at_least(1, "prompts", "batch")
        self._at_least(0, "trajectory")
        self._one_of("lpips_net", ("alex", "vgg"))
        place = Path(self.fid_reference or ".")
        if not (place.is_dir() or (place.is_file() and place.suffix == ".npz")):
            raise ValueError(
                f"fid_reference={place}, allowed are a folder of images, an .npz file and null"
            )
        for metric in self.metrics:
            if metric not in METRICS:
                raise ValueError(f"metrics={metric}, allowed are {', '.join(METRICS)}")


@dataclass(frozen=True)
class RuntimeSettings(Settings):
    """Where and in which precision to compute. preflight: estimate the cost first. cache: folder of finished stages.

    backend: what computes quantized layers when images are drawn (`dirotq.backend`). capture: in CUDA graphs
    (`dirotq.graphs`), which changes no number.
    """

    device: str
    dtype: str
    backend: str
    capture: bool
    threads: int | None
    deterministic: bool
    preflight: bool
    cache: str

    def __post_init__(self) -> None:
        self._at_least(1, "threads")
        self._one_of("dtype", DTYPES)
        self._one_of("backend", BACKENDS)


@dataclass(frozen=True)
class WandbSettings(Settings):
    """Where W&B keeps the runs; `checkpoint` logs the run directory's too. mode auto: online if there is an API key."""

    name: str
    mode: str
    project: str
    entity: str | None
    group: str | None
    tags: tuple[str, ...]
    checkpoint: bool
    dir: str

    def __post_init__(self) -> None:
        self._one_of("name", ("wandb",))
        self._one_of("mode", ("auto", "online", "offline"))


def numbers(value: Any, where: str) -> dict[str, float] | None:
    """`value` as finite numbers by name, or None; raises ValueError."""
    found = typed(value, dict[str, Any] | None, where)
    if found is None:
        return None
    checked = {str(name): typed(one, float, f"{where}.{name}") for name, one in found.items()}
    for name, number in checked.items():
        if not math.isfinite(number):
            raise ValueError(f"{where}.{name}={number}, allowed are finite numbers")
    return checked


def typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` names; raises ValueError."""
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is type(None):
            if value is None:
                return None
        elif get_origin(option) is tuple:
            if isinstance(value, list | tuple):
                inner = get_args(option)[0]
                return tuple(typed(item, inner, where) for item in value)
        elif get_origin(option) is dict:
            if isinstance(value, Mapping):
                return dict(value)
        elif option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        elif type(value) is option:
            return value
    names = " or ".join(_NAMES[get_origin(option) or option] for option in options)
    raise ValueError(f"{where}={value}, allowed is {names}")
