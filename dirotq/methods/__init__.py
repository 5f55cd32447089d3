"""Quantization methods: one file a method, each a choice of transform and rounding."""

from dirotq.methods.base import Method, Ranked
from dirotq.methods.dirotq import DiRotQ
from dirotq.methods.fp16 import FP16
from dirotq.methods.rotation import Rotation
from dirotq.methods.rtn import RTN
from dirotq.methods.smoothquant import SmoothQuant
from dirotq.methods.svdquant import SVDQuant

__all__ = ["FP16", "RTN", "DiRotQ", "Method", "Ranked", "Rotation", "SVDQuant", "SmoothQuant"]
