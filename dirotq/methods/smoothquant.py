"""SmoothQuant (arXiv 2211.10438): outliers of the input moved into the weight by a scale for each channel.

Followed: s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), alpha 0.5; max|X_j| over all calibration tokens, max|W_j| over
the output rows of all linears that read the input; max|W_j| and s_j at least 1e-5; rounding to nearest.
Changed, for diffusion transformers:
- x / s is computed online. The paper folds it into the LayerNorm before, whose weight adaLN replaces by a modulation
  that depends on the time step.
- `coverage=full` smooths the input of every quantized linear, as deepcompressor (SVDQuant's code) does with the same
  formula: without a norm to fold into, the paper's reason to leave some out is gone. `coverage=paper` is the paper's:
  query, key, value and the first feed-forward linear; output and down-projections are left as they are.
- a channel that no calibration token reaches keeps scale 1, and scales that are not all finite are 1 throughout, as in
  deepcompressor. The paper's 1e-5 would multiply such a channel by 100000 when an image does reach it.
- `shift=true`, not the paper's: an input that is bounded from below, such as a GELU's output, has unsigned codes where
  activations are symmetric 4-bit integers, as in deepcompressor (`dirotq.methods.svdquant`).
- the number formats are those of `bits=`; the paper has INT8 with one scale a row.
- with rounding=gptq, not the paper's, damping is relative to the smoothed input's mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dirotq.calibrate import InputStatistics
from dirotq.formats import Format
from dirotq.methods._shift import shifted
from dirotq.methods.base import Method
from dirotq.transforms import Diagonal, Identity, Transform

COVERAGES = ("full", "paper")
_FLOOR = 1e-5
# Names that diffusers, and the papers' code, give to the projections that follow no normalization.
_UNSMOOTHED = r"(^|\.)(to_out\.0|to_add_out|out_proj|o_proj|ff(_context)?\.net\.2|proj_out|linear_2|fc2|down(_proj)?)$"


@dataclass(frozen=True)
class SmoothQuant(Method):
    """alpha: share of the outliers' range moved into the weight, 0 to 1.

    coverage: "full" smooths every input; "paper" leaves an input as it is when the names of all linears that read it
        match `unsmoothed`, a regular expression that is searched in the name; read only then. The default's endings are
        attention outputs (to_out.0, to_add_out, out_proj, o_proj), second feed-forward linears (ff.net.2,
        ff_context.net.2, linear_2, fc2, down, down_proj) and FLUX's proj_out, which is both.
    shift: unsigned codes where they suit the input better; only symmetric 4-bit activations have them.
    """

    alpha: float = 0.5
    coverage: str = "full"
    unsmoothed: str = _UNSMOOTHED
    shift: bool = True

    name: ClassVar[str] = "smoothquant"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}, allowed are numbers from 0 to 1")
        if self.coverage not in COVERAGES:
            raise ValueError(f"coverage={self.coverage}, allowed are {', '.join(COVERAGES)}")
        try:
            re.compile(self.unsmoothed)
        except re.error as error:
            raise ValueError(
                f"unsmoothed={self.unsmoothed}: not a regular expression ({error})"
            ) from None

    def transform(
        self,
        inputs: InputStatistics,
        weights: list[Tensor],
        fmt: Format | None,
        act: Format | None,
    ) -> Transform:
        if self.coverage == "paper" and all(
            re.search(self.unsmoothed, name) for name in inputs.members
        ):
            return Identity(inputs.width)
        # Of the shifted input: that is what is quantized.
        span = inputs.absmax.double() + self.activation(inputs, act)[1]
        column = torch.stack([weight.abs().amax(0).double().cpu() for weight in weights]).amax(0)
        return Diagonal(inputs.width, scales=smoothing_scales(span, column, self.alpha))

    def activation(
        self, inputs: InputStatistics, act: Format | None
    ) -> tuple[Format | None, float]:
        return shifted(inputs, act) if self.shift else (act, 0.0)


def smoothing_scales(act: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """s_j = act_j^alpha / weight_j^(1 - alpha) [K] (equation 4), from column maxima [K] of input and weight.

    Both maxima and s are floored as the module's docstring says; s is 1 where `act` is 0, and throughout unless finite.
    """
    scales = act.pow(alpha) / weight.clamp(min=_FLOOR).pow(1 - alpha)
    if not bool(torch.isfinite(scales).all()):
        return torch.ones_like(scales)
    return torch.where(act > 0, scales.clamp(min=_FLOOR), 1.0)
