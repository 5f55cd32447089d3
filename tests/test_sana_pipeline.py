"""A tiny random SANA through its own pipeline class: recorded, calibrated, quantized, saved, loaded, drawn."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
)
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

from dirotq.lab.stages import Stages
from dirotq.linear import QuantLinear
from dirotq.models import coverage
from tests.support.architectures import build
from tests.support.jobs import job


def tokenizer() -> GemmaTokenizer:
    letters = "▁abcdefghijklmnopqrstuvwxyz"
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", *letters]
    return GemmaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])


def build_pipeline() -> SanaPipeline:
    """Text encoder and decoder are the true classes, too: Gemma 2, and the deep-compression autoencoder."""
    torch.manual_seed(0)
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=31, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
        )
    )  # fmt: skip
    vae = AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
    )
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return SanaPipeline(tokenizer(), encoder, vae, build("SanaTransformer2DModel"), scheduler)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sana") / "pipeline"
    build_pipeline().save_pretrained(folder)
    return folder


def test_sana_is_quantized_in_its_own_pipeline(folder: Path, tmp_path: Path) -> None:
    settings = ["model.size=32", "+model.call.complex_human_instruction=[]"]
    stages = Stages(job(folder, tmp_path, "method=dirotq", "rank=8", *settings))
    assert type(stages.pipeline.pipe) is SanaPipeline
    reference, images = stages.reference_images(), stages.images()
    assert images.shape == reference.shape == (3, 32, 32, 3)
    # Of 255 levels; measured 0.8, in images whose standard deviation is 49.
    assert 0 < float((images.float() - reference.float()).abs().mean()) < 4
    checkpoint, report = stages.quantized()
    loaded = SanaTransformer2DModel.from_pretrained(checkpoint)
    layers = {name for name, module in loaded.named_modules() if isinstance(module, QuantLinear)}
    kinds = coverage(build("SanaTransformer2DModel"))
    assert layers == {row.name for row in report.layers}
    assert layers == {name for name, kind in kinds.items() if kind == "quantized"}
    assert {"ff.conv_inverted.linear", "attn2.to_q"} <= {n.split(".", 2)[2] for n in layers}
