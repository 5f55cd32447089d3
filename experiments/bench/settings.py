"""conf/bench.yaml and a file of conf/bench, checked: which bench, and where its rows go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dirotq.config import config_folder, explain
from dirotq.settings import Settings
from experiments.bench import layers, loading, models, offloading, quantizing, ranks
from experiments.bench.record import Recorder, head


class Bench(Protocol):
    """What is measured: the settings of a file of conf/bench. LISTS: those that only say which rows there are."""

    LISTS: ClassVar[tuple[str, ...]]

    def run(self, recorder: Recorder, device: torch.device, seed: int) -> None:
        """Measure every row that is wanted, within the budget."""


BENCHES: dict[str, tuple[type[Settings], str]] = {
    "layer": (layers.LayerBench, layers.WHAT),
    "model": (models.ModelBench, models.WHAT),
    "offload": (offloading.OffloadBench, offloading.WHAT),
    "rank": (ranks.RankBench, ranks.WHAT),
    "load": (loading.LoadBench, loading.WHAT),
    "quantize": (quantizing.QuantizeBench, quantizing.WHAT),
}


@dataclass(frozen=True)
class Common(Settings):
    """out: the JSON. only, budget_seconds: which rows, and until when one is begun (`Recorder`).

    device: auto is the GPU where there is one. commit: of the source, for a machine without its checkout.
    """

    out: str
    only: tuple[str, ...]
    budget_seconds: float | None
    device: str
    seed: int
    commit: str | None

    def __post_init__(self) -> None:
        if self.out == "???":
            raise ValueError("out must be given, a JSON file")


@dataclass(frozen=True)
class Job:
    """A bench, ready to run."""

    bench: Any
    common: Common
    head: dict[str, Any]
    device: torch.device

    def run(self) -> None:
        """Measure, and write the JSON after every row. Raises ValueError when the file there was measured otherwise."""
        common = self.common
        lists = type(self.bench).LISTS
        recorder = Recorder(Path(common.out), self.head, common.only, common.budget_seconds, lists)
        self.bench.run(recorder, self.device, common.seed)


def build(overrides: Sequence[str]) -> Job:
    """The job that overrides of conf/bench.yaml describe; raises ValueError in one line."""
    plain = _composed(overrides)
    group = dict(plain.pop("bench"))
    name, kind = group.pop("name", None), group.pop("kind", None)
    if kind not in BENCHES:
        raise ValueError(f"bench.kind={kind}, allowed are {', '.join(BENCHES)}")
    common = Common.build(plain, "bench")
    settings_type, what = BENCHES[kind]
    bench = settings_type.build(group, "bench")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if common.device == "auto" else common.device)
    # Where a run keeps what is finished does not change what is measured.
    settings = {key: value for key, value in group.items() if key != "workdir"}
    settings["seed"] = common.seed
    return Job(
        bench,
        common,
        head(str(name), what, settings, list(overrides), device, common.commit),
        device,
    )


def _composed(overrides: Sequence[str]) -> dict[str, Any]:
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            composed = OmegaConf.to_container(
                compose("bench", list(overrides)), resolve=True, throw_on_missing=False
            )
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error)) from None
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}
