"""Rules that choose codes on a format's grid, and a search of the grid itself."""

from dirotq.rounding.gptq import GPTQOptions, gptq
from dirotq.rounding.rtn import round_to_nearest
from dirotq.rounding.search import FACTORS, search_grid

__all__ = ["FACTORS", "GPTQOptions", "gptq", "round_to_nearest", "search_grid"]
