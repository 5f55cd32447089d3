"""Number formats: one file a family."""

from typing import Any

from dirotq.formats.base import Encoded, Format, Grid
from dirotq.formats.fp4 import FP4H, MXFP4, NVFP4
from dirotq.formats.fp8 import FP8, FP8x2
from dirotq.formats.integer import Integer
from dirotq.formats.packing import pack_nibbles, unpack_nibbles

_KINDS: dict[str, type[Format]] = {
    kind.kind: kind for kind in (Integer, NVFP4, MXFP4, FP4H, FP8, FP8x2)
}


def from_dict(fields: dict[str, Any]) -> Format:
    """Rebuild a format from `Format.to_dict()`; raises ValueError on an unknown kind."""
    fields = dict(fields)
    kind = fields.pop("kind")
    if kind not in _KINDS:
        raise ValueError(f"format kind={kind!r}, allowed are {', '.join(sorted(_KINDS))}")
    return _KINDS[kind](**fields)


__all__ = [
    "FP4H",
    "FP8",
    "MXFP4",
    "NVFP4",
    "Encoded",
    "FP8x2",
    "Format",
    "Grid",
    "Integer",
    "from_dict",
    "pack_nibbles",
    "unpack_nibbles",
]
