"""The feature network: shapes, files, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dirotq.metrics.feature_network import (
    FILE_NAME,
    FeatureNetwork,
    load_feature_network,
    save_feature_network,
)


def test_stages_halve_the_side() -> None:
    maps, pooled = FeatureNetwork((8, 16, 24))(torch.zeros(2, 3, 64, 64))
    assert [list(x.shape) for x in maps] == [[2, 8, 32, 32], [2, 16, 16, 16], [2, 24, 8, 8]]
    assert pooled.shape == (2, 24)


def test_file_gives_the_same_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = FeatureNetwork((8, 16)).eval()
    save_feature_network(network, tmp_path)
    loaded = load_feature_network(tmp_path)
    assert not loaded.training
    assert loaded.widths == (8, 16)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(loaded(images)[1], network(images)[1], rtol=1e-2, atol=1e-3)


def test_one_image_does_not_change_another() -> None:
    torch.manual_seed(0)
    network, images = FeatureNetwork((8, 16)).eval(), torch.rand(3, 3, 64, 64)
    torch.testing.assert_close(network(images)[1][:1], network(images[:1])[1])


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        FeatureNetwork((12,))
    with pytest.raises(FileNotFoundError, match=FILE_NAME):
        load_feature_network(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / FILE_NAME)
    with pytest.raises(ValueError, match="no feature network"):
        load_feature_network(tmp_path)
