"""Tiny random transformers of the true diffusers classes, each with one call's arguments."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

HEADS: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 32, "num_layers": 2}
ARGUMENTS: dict[str, dict[str, Any]] = {
    "FluxTransformer2DModel": {
        **HEADS, "in_channels": 8, "num_single_layers": 2, "joint_attention_dim": 32,
        "pooled_projection_dim": 16, "guidance_embeds": True, "axes_dims_rope": (8, 12, 12),
    },
    "SanaTransformer2DModel": {
        **HEADS, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 32, "cross_attention_dim": 64, "caption_channels": 16,
        "sample_size": 4, "mlp_ratio": 2.0,
    },
    "SD3Transformer2DModel": {
        **HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4, "joint_attention_dim": 32,
        "caption_projection_dim": 64, "pooled_projection_dim": 16, "pos_embed_max_size": 8,
        "dual_attention_layers": (0,), "qk_norm": "rms_norm",
    },
    "WanTransformer3DModel": {
        **HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 16,
        "ffn_dim": 128, "rope_max_seq_len": 16,
    },
    "QwenImageTransformer2DModel": {
        **HEADS, "in_channels": 16, "out_channels": 4, "joint_attention_dim": 16,
        "axes_dims_rope": (8, 12, 12),
    },
    "ZImageTransformer2DModel": {
        "in_channels": 4, "dim": 64, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2,
        "n_kv_heads": 2, "cap_feat_dim": 16, "axes_dims": [8, 12, 12], "axes_lens": [64, 16, 16],
    },
    "Flux2Transformer2DModel": {
        **HEADS, "in_channels": 8, "num_single_layers": 2, "joint_attention_dim": 32,
        "timestep_guidance_channels": 16, "axes_dims_rope": (8, 8, 8, 8),
    },
    "Lumina2Transformer2DModel": {
        "sample_size": 8, "in_channels": 4, "hidden_size": 64, "num_layers": 2,
        "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 32,
        "axes_dim_rope": (8, 12, 12), "axes_lens": (32, 16, 16), "cap_feat_dim": 16,
    },
    "SanaVideoTransformer3DModel": {
        **HEADS, "in_channels": 4, "out_channels": 4, "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 32, "cross_attention_dim": 64, "caption_channels": 16,
        "mlp_ratio": 2.0, "rope_max_seq_len": 16,
    },
}  # fmt: skip


@functools.cache
def _made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(diffusers, name)(**ARGUMENTS[name]).eval()


def build(name: str) -> Any:
    """A fresh instance of the class; the same weights every time."""
    return copy.deepcopy(_made(name))


def plant_outliers(flux: Any) -> None:
    """Make three channels of every block's inputs large, as trained transformers have them."""
    norms = [(block.norm, (1,)) for block in flux.single_transformer_blocks]
    for block in flux.transformer_blocks:
        norms += [(block.norm1, (1, 4)), (block.norm1_context, (1, 4))]
    for norm, scales in norms:
        for row in scales:  # of shift, scale and gate, for attention and then for the feed-forward
            norm.linear.bias.data.view(-1, 64)[row, :3] = 12.0


def batch(name: str, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments of one call."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    return {"return_dict": False, **_CALLS[name](rand)}


def output(model: nn.Module, name: str, seed: int = 9) -> Tensor:
    """What the model makes of one call, as one tensor."""
    with torch.no_grad():
        result = model(**batch(name, seed))[0]
    return torch.stack(result) if isinstance(result, list) else result


def _flux(rand: Callable[..., Tensor], axes: int) -> dict[str, Any]:
    ids = torch.zeros(16, axes)
    ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    return {
        "hidden_states": rand(2, 16, 8),
        "encoder_hidden_states": rand(2, 6, 32),
        "timestep": torch.tensor([0.3, 0.8]),
        "guidance": torch.tensor([3.5, 3.5]),
        "img_ids": ids,
        "txt_ids": torch.zeros(6, axes),
    }


_TIMES = torch.tensor([30.0, 800.0])
_CALLS: dict[str, Callable[[Callable[..., Tensor]], dict[str, Any]]] = {
    "FluxTransformer2DModel": lambda rand: {
        **_flux(rand, 3), "pooled_projections": rand(2, 16),
    },
    "SanaTransformer2DModel": lambda rand: {
        "hidden_states": rand(2, 4, 4, 4), "encoder_hidden_states": rand(2, 6, 16),
        "timestep": _TIMES,
    },
    "SD3Transformer2DModel": lambda rand: {
        "hidden_states": rand(2, 4, 8, 8), "encoder_hidden_states": rand(2, 6, 32),
        "pooled_projections": rand(2, 16), "timestep": _TIMES,
    },
    "WanTransformer3DModel": lambda rand: {
        "hidden_states": rand(2, 4, 1, 8, 8), "encoder_hidden_states": rand(2, 6, 16),
        "timestep": _TIMES,
    },
    "QwenImageTransformer2DModel": lambda rand: {
        "hidden_states": rand(2, 16, 16), "encoder_hidden_states": rand(2, 6, 16),
        "encoder_hidden_states_mask": torch.ones(2, 6, dtype=torch.bool), "timestep": _TIMES / 1000,
        "img_shapes": [[(1, 4, 4)]] * 2,
    },
    "ZImageTransformer2DModel": lambda rand: {
        "x": [rand(4, 1, 8, 8), rand(4, 1, 8, 8)], "t": _TIMES / 1000,
        "cap_feats": [rand(6, 16), rand(6, 16)],
    },
    "Flux2Transformer2DModel": lambda rand: _flux(rand, 4),
    "Lumina2Transformer2DModel": lambda rand: {
        "hidden_states": rand(2, 4, 8, 8), "encoder_hidden_states": rand(2, 6, 16),
        "encoder_attention_mask": torch.ones(2, 6, dtype=torch.bool), "timestep": _TIMES / 1000,
    },
    "SanaVideoTransformer3DModel": lambda rand: {
        "hidden_states": rand(2, 4, 1, 4, 4), "encoder_hidden_states": rand(2, 6, 16),
        "timestep": _TIMES,
    },
}  # fmt: skip
