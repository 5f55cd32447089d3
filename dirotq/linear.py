"""What a quantized layer is: y = Qa(low(x)) Qw(low(W))ᵀ + high(x) high(W)ᵀ + b, simulated from the packed tensors."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dirotq import formats, transforms
from dirotq.formats import Encoded, Format, Grid, Integer
from dirotq.sharing import Shared
from dirotq.storage import FixedDtype, allocate, pack, unpack
from dirotq.transforms import Transform

_HAS_TRITON = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class InputSpec:
    """How one distinct input is treated, and by which linears (by name) it is read: all a checkpoint has to say.

    weight, act: formats of the low parts; None leaves low and high in the model's dtype.
    protect: format of the high parts on both sides where the low ones are quantized; None is bfloat16.
    shift: a number that is added to the whole input before its low part is quantized, and taken out again after it: in
        the integers' own terms b - Qw(low(W)) low(shift) is the bias. The high part does not see it.
    """

    members: tuple[str, ...]
    transform: dict[str, Any]
    weight: Format | None
    act: Format | None
    protect: Format | None = None
    shift: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON fields."""
        return {
            "members": list(self.members),
            "transform": self.transform,
            "weight": self.weight.to_dict() if self.weight else None,
            "act": self.act.to_dict() if self.act else None,
            "protect": self.protect.to_dict() if self.protect else None,
            "shift": self.shift,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """Rebuild from `to_dict()`; raises ValueError on an unknown format and a shift that is no number."""
        shift = fields["shift"]
        if type(shift) is not float or not math.isfinite(shift):
            raise ValueError(f"shift={shift}, allowed are numbers")
        weight, act, protect = (
            formats.from_dict(fields[key]) if fields[key] else None
            for key in ("weight", "act", "protect")
        )
        members, transform = tuple(fields["members"]), dict(fields["transform"])
        return cls(members, transform, weight, act, protect, shift)


class QuantInput(Shared):
    """Transforms and quantizes one distinct input, once for all the linears that read it."""

    def __init__(
        self,
        transform: Transform,
        act: Format | None,
        readers: int = 1,
        protect: Format | None = None,
        shift: float = 0.0,
    ) -> None:
        super().__init__(readers)
        self.transform = transform
        self.act = act
        self.protect = protect
        self.shift = shift

    def compute(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The definition: `x` [..., K] -> decoded low part [..., low] and high part [..., r] or None, float32."""
        return self.quantized(*self.transform.online(x.float()))

    def quantized(self, low: Tensor, high: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same of what was transformed, float32."""
        if self.act is None:
            return low, high
        if high is not None:
            # Without a format of its own, the protected branch multiplies 16-bit numbers on both sides.
            high = self.protect.quantize(high) if self.protect else high.bfloat16().float()
        if not self.shift:
            return _quantize(self.act, low), high
        whole = torch.full((self.transform.width,), self.shift, device=low.device)
        shift = self.transform.online(whole)[0]
        return _quantize(self.act, low + shift) - shift, high


def _quantize(act: Format, x: Tensor) -> Tensor:
    """`act.quantize(x)`; on a GPU with Triton by the kernel that is bitwise the same, where there is one."""
    if not (x.is_cuda and _HAS_TRITON):
        return act.quantize(x)
    quantized: Tensor
    width = x.shape[-1]
    group = act.group or width
    if isinstance(act, Integer):
        from dirotq_kernels.group_quantize import group_quantize

        quantized = group_quantize(act.fill(x), group, act.bits, act.symmetric, act.unsigned)
    elif act.kind in ("nvfp4", "mxfp4", "fp4h") and act.base_of != "tensor":
        from dirotq_kernels.fp4_quantize import fp4_quantize

        quantized = fp4_quantize(act.fill(x), group, act.kind)
    else:
        return act.quantize(x)
    return quantized[..., :width]


class QuantLinear(FixedDtype):
    """A linear layer in quantized form.

    Buffers, row-major: `codes` uint8 [N, ceil(low / 2)] for 4-bit codes (two a byte, even column in the low nibble) or
    [N, low] in the format's dtype for others, `scales` [N, G] and, for two-level formats, `base` float32 [N, 1] or []
    (each as `dirotq.formats.Grid` has it), or `weight` [N, low] where weights are not quantized; where coordinates are
    protected `high` [N, r] (bfloat16; the model's dtype beside an unquantized `weight`; or codes, with `high_scales`
    [N, G]); `bias` [N] in the model's dtype.
    The first linear that reads an input holds its `input`; the others refer to it.
    kernel: what computes it in place of the definition (`dirotq.backend`); it stores nothing.
    """

    input: QuantInput
    codes: Tensor
    scales: Tensor
    base: Tensor | None
    weight: Tensor
    high: Tensor | None
    high_scales: Tensor | None
    bias: Tensor | None
    kernel: nn.Module | None

    def __init__(self, spec: InputSpec, out_features: int, input: QuantInput, owner: bool) -> None:
        super().__init__()
        if owner:
            self.input = input
        else:
            # Not registered: a checkpoint holds each input's tensors once.
            object.__setattr__(self, "input", input)
        self.in_features = input.transform.width
        self.out_features = out_features
        self.format = spec.weight
        # Beside an unquantized weight nothing is rounded.
        self.protect = spec.protect if spec.weight is not None else None
        self.spec = spec if owner else None
        for name in ("codes", "scales", "base", "weight", "high", "high_scales", "bias"):
            self.register_buffer(name, None)
        self.kernel = None

    def allocate(self, bias: Tensor | None, dtype: torch.dtype) -> None:
        """Register empty buffers of the right shapes and dtypes, to be loaded into."""
        rows = self.out_features
        low, high = self.input.transform.low_width, self.input.transform.high
        if self.format is None:
            self.weight = torch.empty(rows, low, dtype=dtype)
        else:
            self.codes, self.scales, self.base = allocate(self.format, rows, low)
        if high and self.protect is not None:
            self.high, self.high_scales, _ = allocate(self.protect, rows, high)
        elif high:
            self.high = torch.empty(
                rows, high, dtype=dtype if self.format is None else torch.bfloat16
            )
        self.bias = None if bias is None else torch.empty(rows, dtype=dtype)

    def store(self, low: Encoded | Tensor, high: Tensor | None, bias: Tensor | None) -> None:
        """Take encoded (or, unquantized, plain) low weights [N, low], protected weights [N, r] and bias [N]."""
        if isinstance(low, Tensor):
            # Row-major, as a checkpoint holds them: other strides may be summed in another order.
            self.weight = low.detach().contiguous()
        else:
            assert self.format is not None, "encoded weights need a format"
            self.codes = pack(self.format, low)
            self.scales = low.grid.scales
            # A tensor's base is shared by the linears of one input, and files hold no shared memory.
            self.base = None if low.grid.base is None else low.grid.base.clone()
        if high is not None and self.protect is not None:
            encoded = self.protect.encode(high.float())
            self.high, self.high_scales = pack(self.protect, encoded), encoded.grid.scales
        elif high is not None:
            dtype = low.dtype if isinstance(low, Tensor) else torch.bfloat16
            self.high = high.to(dtype).contiguous()
        self.bias = None if bias is None else bias.detach().clone()

    def low_weight(self) -> Tensor:
        """Decoded low weights [N, low], float32."""
        if self.format is None:
            return self.weight.float()
        grid = Grid(self.scales, None, self.base)
        return unpack(self.format, self.codes, grid, self.input.transform.low_width)

    def high_weight(self) -> Tensor | None:
        """Decoded protected weights [N, r], float32; None where no coordinate is protected."""
        if self.high is None:
            return None
        if self.protect is None:
            return self.high.float()
        assert self.high_scales is not None, "protected codes need scales"
        return unpack(self.protect, self.high, Grid(self.high_scales), self.input.transform.high)

    def forward(self, input: Tensor) -> Tensor:
        """`input` [..., K] -> [..., N] in its own dtype; computed in float32, or by the kernel that was chosen."""
        if self.kernel is not None:
            result: Tensor = self.kernel(self, input)
            return result
        low, high = self.input(input)
        y = F.linear(low, self.low_weight())
        protected = self.high_weight()
        if high is not None and protected is not None:
            y = y + F.linear(high, protected)
        if self.bias is not None:
            y = y + self.bias.float()
        return y.to(input.dtype)

    def storage_bits(self) -> int:
        """Bits of everything this layer stores but its bias; an owner counts its input's tensors."""
        tensors = [t for name, t in self.state_dict().items() if name != "bias"]
        return sum(t.numel() * t.element_size() * 8 for t in tensors)

    def extra_repr(self) -> str:
        weight = self.format.kind if self.format else "16-bit"
        return f"in={self.in_features}, out={self.out_features}, high={self.input.transform.high}, weight={weight}"


def build(
    spec: InputSpec, out_features: dict[str, int], transform: Transform | None = None
) -> dict[str, QuantLinear]:
    """Quantized layers, still empty, for the linears of one input: name -> layer."""
    transform = transform or transforms.from_dict(spec.transform)
    source = QuantInput(transform, spec.act, len(spec.members), spec.protect, spec.shift)
    return {
        name: QuantLinear(spec, out_features[name], source, owner=name == spec.members[0])
        for name in spec.members
    }
