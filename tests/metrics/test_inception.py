"""FID: clean-fid's own pixels, features and distance on a stand-in for Inception."""

import sys
import urllib.error
from pathlib import Path

import cleanfid.fid
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dirotq.metrics.frechet import distance, frechet_distance
from dirotq.metrics.inception import inception, inception_features, reference_statistics
from dirotq.metrics.unavailable import UnavailableError

CPU = torch.device("cpu")
IMAGES = torch.randint(
    0, 256, (6, 40, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


def extract(images: Tensor) -> Tensor:
    """Means of the colours' quadrants: three numbers of four values each."""
    assert images.shape[1:] == (3, 299, 299)
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).mean(dim=1).flatten(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("images")
    for number, image in enumerate(IMAGES):
        Image.fromarray(image.numpy()).save(place / f"{number}.png")
    return place


def theirs(folder: Path) -> np.ndarray:
    features = cleanfid.fid.get_folder_features(
        str(folder), extract, num_workers=0, device=CPU, mode="clean", verbose=False
    )
    return np.asarray(features)


def test_features_are_the_package_s(folder: Path) -> None:
    found = inception_features(extract, IMAGES, CPU)
    assert torch.equal(found, torch.from_numpy(theirs(folder)).double())


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")
def test_fid_is_the_package_s(folder: Path) -> None:
    other = IMAGES.flip(0).clone()
    other[:3] //= 2
    found = inception_features(extract, other, CPU)
    expected = cleanfid.fid.fid_from_feats(found.numpy(), theirs(folder).astype(np.float64))
    # Covariances of 6 images in 4 dimensions; the package's matrix root loses half of float64.
    assert frechet_distance(found, inception_features(extract, IMAGES, CPU)) == pytest.approx(
        expected, rel=1e-6
    )


def test_a_reference_is_a_folder_or_the_package_s_statistics(folder: Path, tmp_path: Path) -> None:
    features = theirs(folder)
    np.savez(tmp_path / "s.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    by_folder = reference_statistics(extract, folder, 4, CPU)
    by_file = reference_statistics(extract, tmp_path / "s.npz", 4, CPU)
    spread = float(by_folder.factor.square().sum())
    assert distance(by_folder, by_file) <= 1e-5 * spread  # the file's mean is in float32


def test_what_is_no_reference_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eval.fid_reference=.*: too few images there"):
        reference_statistics(extract, tmp_path, 4, CPU)
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 cut")
    for name in ("other.npz", "broken.npz"):
        with pytest.raises(ValueError, match=rf"{name}: no statistics there"):
            reference_statistics(extract, tmp_path / name, 4, CPU)


def test_what_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no such host")

    monkeypatch.setattr("cleanfid.inception_torchscript.check_download_inception", no_network)
    with pytest.raises(UnavailableError, match=r"Inception's weights cannot be had: .*no such"):
        inception(CPU)
    monkeypatch.setitem(sys.modules, "cleanfid.features", None)
    with pytest.raises(UnavailableError, match=r"cannot be had: import of cleanfid.features"):
        inception(CPU)
