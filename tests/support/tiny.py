"""Tiny random models of the true diffusers classes."""

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

WIDTH = 64
TOKENS = 8
CALL = {"use_resolution_binning": False, "clean_caption": False, "max_sequence_length": TOKENS}


def build_transformer(seed: int = 0) -> PixArtTransformer2DModel:
    """2 blocks, width 64, 4 x 4 latents; some channels of the norms' modulation are outliers."""
    torch.manual_seed(seed)
    model = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        num_layers=2,
        cross_attention_dim=WIDTH,
        in_channels=4,
        out_channels=4,
        sample_size=4,
        patch_size=1,
        caption_channels=16,
    )
    plant_outliers(model)
    return model.eval()


def plant_outliers(model: PixArtTransformer2DModel) -> None:
    """Make a few directions of every block's input large, as trained transformers have them."""
    for block in model.transformer_blocks:
        table = block.scale_shift_table.data
        for row in (1, 4):  # the scales before attention and feed-forward
            table[row, :3] = 12.0


def build_pipeline(seed: int = 0) -> PixArtSigmaPipeline:
    """A pipeline whose every part is random."""
    torch.manual_seed(seed)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -9.0)]
    pieces += [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[])
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=len(pieces), d_model=16, d_kv=8, d_ff=16, num_heads=2, num_layers=1,
            is_encoder_decoder=False, use_cache=False,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=16,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0
    )
    return PixArtSigmaPipeline(tokenizer, encoder, vae, build_transformer(seed), scheduler)


def transformer_batch(seed: int = 0, batch: int = 4) -> dict[str, object]:
    """Keyword arguments of one call of `build_transformer()`."""
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 4, 4, 4, generator=g),
        "encoder_hidden_states": torch.randn(batch, TOKENS, 16, generator=g),
        "timestep": torch.randint(0, 1000, (batch,), generator=g),
        "encoder_attention_mask": torch.ones(batch, TOKENS),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        "return_dict": False,
    }
