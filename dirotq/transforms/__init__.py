"""Transforms of a layer's input: online(x) and its inverse folded into the weight."""

from typing import Any

from dirotq.transforms.base import Dense, Identity, Transform
from dirotq.transforms.orthogonal import eigenbasis, random_orthogonal

_KINDS: dict[str, type[Transform]] = {Identity.kind: Identity, Dense.kind: Dense}


def from_dict(fields: dict[str, Any]) -> Transform:
    """Rebuild a transform, still empty, from `Transform.to_dict()`; raises ValueError on an unknown kind."""
    fields = dict(fields)
    kind = fields.pop("kind")
    if kind not in _KINDS:
        raise ValueError(f"transform kind={kind!r}, allowed are {', '.join(sorted(_KINDS))}")
    return _KINDS[kind](**fields)


__all__ = ["Dense", "Identity", "Transform", "eigenbasis", "from_dict", "random_orthogonal"]
