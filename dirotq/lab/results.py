"""``result.json``: what one run measured, checked against ``result.schema.json``."""

import importlib.metadata
import importlib.resources
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, cast

import torch
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

from dirotq.atomic import atomic_write_json
from dirotq.metrics.statistics import Estimate
from dirotq.version import __version__

SCHEMA_VERSION = 1

_PACKAGES = ("torch", "diffusers", "transformers")
_GIT_SECONDS = 10


class Metric(TypedDict):
    """A measured number; the interval is None where ``n`` is too small for one."""

    value: float
    ci_low: float | None
    ci_high: float | None
    n: int


class Floor(Metric):
    """What a metric says of 16-bit images that differ by the order of arithmetic alone.

    ``distinguishable``: whether the run's value can be told from it, by a paired interval over prompts; None for a
    metric that single images do not have.
    """

    distinguishable: bool | None


class Preflight(TypedDict):
    """What a run was expected to take, estimated before it began."""

    seconds: float
    memory_bytes: int
    disk_bytes: int


class EffectiveBits(TypedDict):
    """Bits a value, with scales, branches and transforms counted in."""

    weight: float
    activation: float


class Bytes(TypedDict):
    """Size of the checkpoint and peak of memory; None where not measured."""

    checkpoint: int | None
    peak: int | None


class Environment(TypedDict):
    """Where a result was taken: device name, versions by package, commit of the source."""

    device: str
    versions: dict[str, str | None]
    git: str | None


class Prompts(TypedDict):
    """The prompt set and how many of its prompts were used."""

    set: str
    n: int


class Result(TypedDict):
    """Content of ``result.json``; ``result.schema.json`` says what each field may be."""

    schema: Literal[1]
    model: str
    method: str
    bits: str
    rank: float | None
    basis: str | None
    rotation: str | None
    rounding: str | None
    seed: int
    effective_bits: EffectiveBits
    metrics: dict[str, Metric]
    paper: dict[str, float] | None
    seconds: dict[str, float]
    bytes: Bytes
    env: Environment
    weights: Literal["trained", "random"]
    numerics: Literal["simulated", "kernel"]
    command: NotRequired[str]
    config: NotRequired[str]
    prompts: NotRequired[Prompts]
    protect: NotRequired[str | None]
    budget: NotRequired[float | None]
    sweep: NotRequired[str | None]
    left_out: NotRequired[dict[str, str]]
    noise_floor: NotRequired[dict[str, Floor]]
    preflight: NotRequired[Preflight | None]
    backend: NotRequired[dict[str, int]]


def metric(estimate: Estimate) -> Metric:
    """An estimate as it stands in ``result.json``."""
    return Metric(
        value=estimate.value, ci_low=estimate.ci_low, ci_high=estimate.ci_high, n=estimate.n
    )


def write_result(path: Path | str, result: Result) -> None:
    """Check ``result`` and write it to ``path``, whole or not at all.

    Raises:
        ValueError: as :func:`validate`; nothing is written.
        OSError: the place cannot be written.
    """
    validate(result)
    atomic_write_json(path, result)


def read_result(path: Path | str) -> Result:
    """Read and check a ``result.json``.

    Raises:
        ValueError: not JSON, or as :func:`validate`; the message names the file.
        OSError: the file cannot be read.
    """
    try:
        result = json.loads(Path(path).read_bytes())
        validate(result)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return cast("Result", result)


def validate(result: Mapping[str, object]) -> None:
    """Check a result against schema 1.

    Raises:
        ValueError: one line with the place and what is wrong: a number that is not finite (JSON
            has none), a field missing, unknown or of the wrong kind.
    """
    for place, number in _numbers(result, ""):
        if not math.isfinite(number):
            raise ValueError(f"{place} is {number}")
    error = best_match(_validator().iter_errors(result))
    if error is not None:
        place = ".".join(str(part) for part in error.absolute_path)
        raise ValueError(f"{place}: {error.message}" if place else error.message)


def environment(device: str | torch.device = "cpu") -> Environment:
    """Device, versions and commit, for a result taken on ``device``.

    Holds no path and no host name.
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions |= {name: _version(name) for name in _PACKAGES}
    versions["dirotq"] = __version__
    return Environment(
        device=_device_name(torch.device(device)),
        versions=versions,
        git=source_commit(Path(__file__)),
    )


def source_commit(file: Path) -> str | None:
    """Commit that ``file`` is at: 12 hex characters, with ``+dirty`` if its checkout has changes.

    None if git does not track the file; an installed copy inside someone else's checkout must
    not report their commit. Untracked files do not count as changes.
    """
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is None:
        return None
    commit = _git(file.parent, "rev-parse", "--short=12", "HEAD")
    changes = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    if not commit or changes is None:
        return None
    return f"{commit}+dirty" if changes else commit


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command in ``folder``; None if it fails or there is no git."""
    # Inside a git hook these variables point git at another repository than the folder's.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _device_name(device: torch.device) -> str:
    """Marketing name of a GPU; architecture and number of threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"
    return str(device)


def _version(package: str) -> str | None:
    """Installed version of a package; None without one."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _validator() -> Draft202012Validator:
    """The validator of ``result.schema.json``."""
    text = importlib.resources.files("dirotq.lab").joinpath("result.schema.json").read_bytes()
    return Draft202012Validator(json.loads(text))


def _numbers(value: object, place: str) -> Iterator[tuple[str, float]]:
    """All floats in nested JSON with their dotted place."""
    if isinstance(value, float):
        yield place, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, f"{place}.{name}" if place else str(name))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{place}.{i}")
