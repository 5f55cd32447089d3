"""Rotation alone (QuaRot, arXiv 2404.00456): a randomized Hadamard transform of every input, nothing protected.

Followed: x diag(±1) H online, its inverse folded into the weight in float64; GPTQ weights, rounding to nearest as the
alternative; no clipping of activations. The Hadamard matrices, tables of known sizes there, are constructed here
(`dirotq.transforms.paley`).
Changed, for diffusion transformers:
- every rotation is online. QuaRot folds that of the residual stream into the layers before; adaLN multiplies by a
  modulation that depends on the time step, and gates each block's output, and a rotation commutes with neither.
- every distinct input has signs of its own. QuaRot's input rotation is one for the whole model, because it is folded.
- an attention output is rotated over its whole width online, which includes all that QuaRot's per-head Hadamard with
  its online Hadamard across heads can mix.
- signs are random at feed-forward down-projections and attention outputs too, where QuaRot's Hadamard has none.
- queries and keys are not rotated: QuaRot does that for its quantized cache, of which there is none.
- weight scales are not searched; QuaRot clips them by a search. `scale_search=true` is ours, for every method.
- the number formats are those of `bits=`, and GPTQ has act-order and static groups as for every method here; QuaRot has
  one scale a row and neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dirotq.calibrate import InputStatistics
from dirotq.formats import Format
from dirotq.methods.base import Method
from dirotq.transforms import Hadamard, Transform


@dataclass(frozen=True)
class Rotation(Method):
    """Mixes all coordinates of an input evenly, so that no channel stands out of its group."""

    rounding: str = "gptq"

    name: ClassVar[str] = "rotation"

    def transform(
        self,
        inputs: InputStatistics,
        weights: list[Tensor],
        fmt: Format | None,
        act: Format | None,
    ) -> Transform:
        return Hadamard(inputs.width, generator=self.generator(inputs.name))
