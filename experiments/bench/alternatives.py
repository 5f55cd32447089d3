"""The ways to compute one linear layer that are measured side by side, each with what it has to do at least."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import dirotq
from dirotq.linear import QuantLinear
from experiments.bench.building import Precision, Source, stored_bytes
from experiments.bench.rowwise import quantize_rows, rowwise_linear
from experiments.bench.timing import Call

_BFLOAT16 = 2
_PRODUCTS = ("mm", "addmm", "linear")


@dataclass(frozen=True)
class Work:
    """What a layer does: bytes that passes beside the product read and write; the product's bytes and operations.

    rate: the key of the operations' rate in `ceilings.measure`.
    """

    pass_bytes: int
    product_bytes: int
    flops: int
    rate: str

    def bound(self, limits: dict[str, Any]) -> dict[str, Any]:
        """Milliseconds that the work takes at the limits; None where one is not known."""
        rate, copy = limits[self.rate], limits["copy_bytes_per_s"]
        found = None
        if rate:
            product = max(self.flops / rate, self.product_bytes / copy)
            found = round(1e3 * (self.pass_bytes / copy + product), 6)
        return {
            "bound_ms": found,
            "pass_bytes": self.pass_bytes,
            "product_bytes": self.product_bytes,
            "flops": self.flops,
        }


class Alternative(ABC):
    """One layer [N, K] with random weights. by: what computes it. weight_bytes: all that is stored for it."""

    by: str
    rank: int = 0
    weight_bytes: int

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """`x` [M, K] bfloat16 -> [M, N]."""

    @abstractmethod
    def exact(self, x: Tensor) -> Tensor:
        """The float64 product of the operands that `run` multiplies, decoded."""

    @abstractmethod
    def work(self, x: Tensor) -> Work:
        """What `run` takes."""

    def parts(self, x: Tensor) -> dict[str, Call]:
        """The passes of `run`, each alone, on what those before it return; none where it is one."""
        return {}


def alternative(source: Source, precision: Precision, k: int, n: int) -> Alternative:
    """A layer; raises ValueError for a precision that single layers do not have, and where no kernel fits it."""
    if precision.kind == "bf16":
        return Plain(source, k, n)
    if precision.kind == "fp8":
        return Rowwise(source, k, n)
    if precision.kind == "quantized":
        return Quantized(source, precision, k, n)
    raise ValueError(
        f"{precision.name}: allowed for a single layer are bf16, fp8 and files of conf/bits"
    )


class Plain(Alternative):
    """cuBLAS in bfloat16."""

    by = "cublas"

    def __init__(self, source: Source, k: int, n: int) -> None:
        self._weight = source.normal(n, k, scale=k**-0.5)
        self._bias = source.normal(n, scale=0.02)
        self.weight_bytes = self._weight.nbytes + self._bias.nbytes

    def run(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight, self._bias)

    def exact(self, x: Tensor) -> Tensor:
        return F.linear(x.double(), self._weight.double(), self._bias.double())

    def work(self, x: Tensor) -> Work:
        m, (n, k) = x.shape[0], self._weight.shape
        return Work(
            0, _BFLOAT16 * (m * k + m * n) + self.weight_bytes, 2 * m * n * k, "bf16_flops_per_s"
        )


class Rowwise(Alternative):
    """FP8 with a scale a row, its quantization compiled."""

    by = "torch._scaled_mm, quantization by inductor"

    def __init__(self, source: Source, k: int, n: int) -> None:
        if source.device.type != "cuda":
            raise ValueError(f"fp8 rows on {source.device}, allowed is a GPU")
        codes, scale = quantize_rows(source.normal(n, k, scale=k**-0.5))
        self._weight, self._scale = codes, scale.T.contiguous()
        self._bias = source.normal(n, scale=0.02)
        self._compiled: Callable[..., Tensor] = torch.compile(rowwise_linear, dynamic=False)
        self.weight_bytes = codes.nbytes + scale.nbytes + self._bias.nbytes

    def run(self, x: Tensor) -> Tensor:
        return self._compiled(x, self._weight, self._scale, self._bias)

    def exact(self, x: Tensor) -> Tensor:
        codes, scale = quantize_rows(x)
        weight = self._weight.double() * self._scale.T.double()
        return F.linear(codes.double() * scale.double(), weight, self._bias.double())

    def work(self, x: Tensor) -> Work:
        m, (n, k) = x.shape[0], self._weight.shape
        product = m * k + self.weight_bytes + _BFLOAT16 * m * n
        return Work(m * k * (_BFLOAT16 + 1), product, 2 * m * n * k, "fp8_flops_per_s")


class Quantized(Alternative):
    """A `QuantLinear` by the kernels that `dirotq.set_backend` chooses."""

    def __init__(self, source: Source, precision: Precision, k: int, n: int) -> None:
        act = precision.bits.act is not None
        layer = source.quantized(k, {"layer": n}, {"layer": True}, precision, act)["layer"]
        self._model = nn.ModuleDict({"layer": layer})
        self._layer: QuantLinear = layer
        self.by, _, why = dirotq.set_backend(self._model, "auto")["layer"].partition(": ")
        if self.by == "reference":
            raise ValueError(f"{precision.name} has no kernel: {why}")
        self.rank = layer.input.transform.high
        self.weight_bytes = stored_bytes(layer)

    def run(self, x: Tensor) -> Tensor:
        y: Tensor = self._layer(x)
        return y

    def exact(self, x: Tensor) -> Tensor:
        layer = self._layer
        low, high = layer.input.compute(x)
        y = low.double() @ layer.low_weight().double().T
        protected = layer.high_weight()
        if high is not None and protected is not None:
            y += high.double() @ protected.double().T
        return y if layer.bias is None else y + layer.bias.double()

    def work(self, x: Tensor) -> Work:
        m = x.shape[0]
        k, n = self._layer.in_features, self._layer.out_features
        output = _BFLOAT16 * m * n
        if self._layer.input.act is not None:
            width = k + 2 * self.rank
            passes = m * (_BFLOAT16 * k + width) + self.weight_bytes + n * width
            if self.by == "fp8":
                return Work(passes, (m + n) * width + output, 2 * m * n * width, "fp8_flops_per_s")
            passes = _BFLOAT16 * k * (2 * m + n) + self.weight_bytes
            product = _BFLOAT16 * k * (m + n) + output
            return Work(passes, product, 2 * m * n * k, "bf16_flops_per_s")
        inputs, flops = _BFLOAT16 * m * k, 2 * m * n * k
        if "weight_only_linear" in self.parts(x):  # which reads the packed weights itself
            return Work(0, inputs + self.weight_bytes + output, flops, "bf16_flops_per_s")
        decoded = _BFLOAT16 * n * k
        product = inputs + decoded + output
        return Work(self.weight_bytes + decoded, product, flops, "bf16_flops_per_s")

    def parts(self, x: Tensor) -> dict[str, Call]:
        recording = Recording()
        with recording:
            self.run(x)
        return recording.calls


class Recording(TorchDispatchMode):
    """Keeps the kernels and products that run meanwhile, with their arguments, by name: `calls` runs them again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: dict[str, Call] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        library, _, name = func._schema.name.partition("::")
        if name == "packed_fp8_linear":
            self.calls |= _unpacking_and_product(*args)
        elif library == "dirotq" or name in _PRODUCTS:
            self.calls[name] = lambda: func(*args, **named)
        return func(*args, **named)


def _unpacking_and_product(a: Tensor, scale_a: Tensor, *weight: Any) -> dict[str, Call]:
    """The two steps of `packed_fp8_linear`."""
    from dirotq_kernels.fp8_linear import fp8_linear
    from dirotq_kernels.unpack_e4m3 import unpack_e4m3

    *parts, scale_w, bias = weight
    w = unpack_e4m3(*parts, scale_w)
    return {
        "unpack_e4m3": lambda: unpack_e4m3(*parts, scale_w),
        "fp8_linear": lambda: fp8_linear(a, scale_a, w, scale_w, bias),
    }
