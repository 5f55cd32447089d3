"""Transforms of a layer's input: online(x) and its inverse folded into the weight."""

from typing import Any

from dirotq.transforms.base import Dense, Identity, Transform
from dirotq.transforms.compact import Compact
from dirotq.transforms.diagonal import Diagonal
from dirotq.transforms.hadamard import block_hadamard, hadamard
from dirotq.transforms.heads import Heads
from dirotq.transforms.lowrank import LowRank
from dirotq.transforms.orthogonal import eigenbasis, random_orthogonal
from dirotq.transforms.rotation import Hadamard
from dirotq.transforms.subspace import joint_subspace, top_subspace

_KINDS: dict[str, type[Transform]] = {
    kind.kind: kind for kind in (Identity, Dense, Compact, Heads, Diagonal, Hadamard, LowRank)
}


def from_dict(fields: dict[str, Any]) -> Transform:
    """Rebuild a transform, still empty, from `Transform.to_dict()`; raises ValueError on an unknown kind."""
    fields = dict(fields)
    kind = fields.pop("kind")
    if kind not in _KINDS:
        raise ValueError(f"transform kind={kind!r}, allowed are {', '.join(sorted(_KINDS))}")
    return _KINDS[kind](**fields)


__all__ = [
    "Compact",
    "Dense",
    "Diagonal",
    "Hadamard",
    "Heads",
    "Identity",
    "LowRank",
    "Transform",
    "block_hadamard",
    "eigenbasis",
    "from_dict",
    "hadamard",
    "joint_subspace",
    "random_orthogonal",
    "top_subspace",
]
