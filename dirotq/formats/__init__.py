"""Number formats: one file a family."""

from typing import Any

from dirotq.formats.base import Encoded, Format, Grid
from dirotq.formats.integer import Integer
from dirotq.formats.packing import pack_nibbles, unpack_nibbles

_KINDS: dict[str, type[Format]] = {Integer.kind: Integer}


def from_dict(fields: dict[str, Any]) -> Format:
    """Rebuild a format from `Format.to_dict()`; raises ValueError on an unknown kind."""
    fields = dict(fields)
    kind = fields.pop("kind")
    if kind not in _KINDS:
        raise ValueError(f"format kind={kind!r}, allowed are {', '.join(sorted(_KINDS))}")
    return _KINDS[kind](**fields)


__all__ = ["Encoded", "Format", "Grid", "Integer", "from_dict", "pack_nibbles", "unpack_nibbles"]
