"""Fixtures: a tiny PixArt-Sigma with random weights, as a pipeline folder."""

import os
from pathlib import Path

import pytest
import torch

import dirotq  # noqa: F401 - defines what torchvision needs before diffusers is imported

os.environ["HF_HUB_OFFLINE"] = "1"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a genuine PixArtSigmaPipeline, 2 blocks of width 64, 16-pixel images, with planted outliers."""
    from tests.support.tiny import build_pipeline

    folder = tmp_path_factory.mktemp("tiny") / "pipeline"
    build_pipeline().save_pretrained(folder)
    return folder
