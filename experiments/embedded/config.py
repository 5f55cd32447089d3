"""Sizes of the embedded model `emoji`, and the untrained parts built from them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from torch import nn
from transformers import T5Config, T5EncoderModel

WORK = Path("outputs/embedded")
ASSETS = Path("dirotq/assets/emoji")
LIMIT_BYTES = 40_000_000

IMAGE_SIZE = 64
LATENT_CHANNELS = 4
LATENT_SIZE = 16
MAX_TOKENS = 32
TEXT_WIDTH = 256
TRAIN_TIMESTEPS = 1000

CALL = {
    "num_inference_steps": 20,
    "guidance_scale": 4.5,
    "use_resolution_binning": False,
    "clean_caption": False,
    "max_sequence_length": MAX_TOKENS,
}
"""What the pipeline must be called with."""


def build_vae() -> AutoencoderKL:
    """A 4-channel autoencoder that halves the side twice."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        # Groups of 4 channels and more: with one channel each, the norm would erase flat colours.
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        scaling_factor=1.0,
        force_upcast=False,
        mid_block_add_attention=False,
    )


def build_text_encoder(vocabulary: int) -> T5EncoderModel:
    """A T5 v1.1 encoder of three layers for a vocabulary of the given size."""
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=512,
            num_heads=4,
            num_layers=3,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            is_encoder_decoder=False,
            use_cache=False,
        )
    )


def build_transformer() -> PixArtTransformer2DModel:
    """PixArt-Sigma at width 320: 8 blocks, 5 heads, 256 image tokens, initialized for training."""
    transformer = PixArtTransformer2DModel(
        num_attention_heads=5,
        attention_head_dim=64,
        num_layers=8,
        cross_attention_dim=320,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        sample_size=LATENT_SIZE,
        patch_size=1,
        caption_channels=TEXT_WIDTH,
        num_embeds_ada_norm=TRAIN_TIMESTEPS,
    )
    _initialize(transformer)
    return transformer


def _initialize(transformer: PixArtTransformer2DModel) -> None:
    """Initialize as DiT and PixArt do: every block starts as (nearly) the identity of its text."""
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patch = transformer.pos_embed.proj
    nn.init.xavier_uniform_(patch.weight.view(patch.weight.shape[0], -1))
    nn.init.zeros_(patch.bias)
    time = transformer.adaln_single
    projection = transformer.caption_projection
    for linear in (time.emb.timestep_embedder.linear_1, time.emb.timestep_embedder.linear_2):
        nn.init.normal_(linear.weight, std=0.02)
    for linear in (time.linear, projection.linear_1, projection.linear_2):
        nn.init.normal_(linear.weight, std=0.02)
    for block in transformer.transformer_blocks:
        nn.init.zeros_(block.attn2.to_out[0].weight)
    nn.init.zeros_(transformer.proj_out.weight)


def build_scheduler() -> DPMSolverMultistepScheduler:
    """PixArt-Sigma's solver on the straight path from data to noise."""
    return DPMSolverMultistepScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=1.0,
    )


def parameter_count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def pick_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
