"""Draw the images of a stage: with progress, latents on the way, and no broken image among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dirotq.lab.progress import bar
from dirotq.metrics.sentinels import degenerate, saturated
from dirotq.pipeline import Pipeline, to_uint8
from dirotq.prompts import Prompt


class Trajectory:
    """Keeps the latents of the first `count` prompts after every step; a `Watch` for `Pipeline.generate`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._steps: dict[int, list[Tensor]] = {}

    def __call__(self, first: int, latents: Tensor) -> None:
        wanted = self.count - first
        if wanted > 0:
            # A copy: a slice would keep the whole batch.
            kept = latents[:wanted].to("cpu", copy=True)
            self._steps.setdefault(first, []).append(kept)

    def latents(self) -> Tensor:
        """[count, steps, ...] on the CPU, in the dtype of the pipeline's latents."""
        return torch.cat([torch.stack(steps, dim=1) for steps in self._steps.values()])


@dataclass(frozen=True)
class Drawer:
    """A stage of images: its name, a label for people, and the transformer that draws them.

    `depends` says what images depend on beside prompts and batch, for the key of the stage.
    """

    stage: str
    label: str
    pipeline: Pipeline
    transformer: Callable[[], nn.Module]
    depends: Callable[[], dict[str, Any]]

    def fields(self, prompts: Sequence[Prompt], batch: int) -> dict[str, Any]:
        """All that the images of `prompts` depend on."""
        texts = [[prompt.id, prompt.text] for prompt in prompts]
        return {"model": self.depends(), "prompts": texts, "batch": batch}

    def draw(
        self,
        prompts: Sequence[Prompt],
        batch: int,
        *,
        keep: Trajectory | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """Images of `prompts`, uint8 [B, H, W, 3]; `keep` gets the latents.

        Raises ValueError when one is broken, by itself or beside the 16-bit images `reference`, uint8 [B, H, W, 3].
        """
        pipeline, original = self.pipeline, self.pipeline.transformer
        pipeline.transformer = self.transformer()
        try:
            with bar(self.label, pipeline.num_steps(len(prompts), batch)) as tick:
                images = pipeline.generate(prompts, batch=batch, tick=tick, watch=keep)
        finally:
            pipeline.transformer = original
        ids = [prompt.id for prompt in prompts]
        broken, drawn = degenerate(images, ids), to_uint8(images)
        if reference is not None and not broken:
            broken = saturated(drawn, reference, ids)
        if broken:
            name, reason = next(iter(broken.items()))
            raise ValueError(
                f"{self.label}: {len(broken)} of {len(images)} are broken; {name} is {reason}"
            )
        return drawn
