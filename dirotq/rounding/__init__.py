"""Rules that choose codes on a format's grid."""

from dirotq.rounding.gptq import GPTQOptions, gptq
from dirotq.rounding.rtn import round_to_nearest

__all__ = ["GPTQOptions", "gptq", "round_to_nearest"]
