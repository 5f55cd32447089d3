"""Broken images are named with their reason; good ones are not."""

import pytest
import torch
from torch import Tensor

from dirotq.metrics.sentinels import degenerate, saturated


def good(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 8, 8, 3), generator=generator, dtype=torch.uint8)


def test_good_images_pass() -> None:
    assert degenerate(good(3)) == {}
    assert degenerate(good(3).float() / 255) == {}
    assert degenerate(good(0)) == {}


def test_each_kind_is_named() -> None:
    images = good(5).float() / 255
    images[0, 3, 3, 0] = float("nan")
    images[1, 0, 0, 2] = float("-inf")
    images[2] = 0
    images[4] = torch.tensor([0.2, 0.4, 0.6])
    assert degenerate(images, ["a", "b", "c", "d", "e"]) == {
        "a": "not finite",
        "b": "not finite",
        "c": "black",
        "e": "single colour",
    }


def test_uint8_images() -> None:
    images = good(3)
    images[0] = 0
    images[2] = 255
    assert degenerate(images) == {"0": "black", "2": "single colour"}


def test_flatness_is_per_channel_and_has_a_limit() -> None:
    images = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    images[..., 1] = 200
    images[0, 0, 0, 2] = 2
    images[1, 0, 0, 2] = 3
    assert degenerate(images) == {"0": "single colour"}
    half = torch.full((1, 8, 8, 3), 60000.0, dtype=torch.float16)
    half[0, 0] = -60000.0
    assert degenerate(half) == {}


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"torch\.int64"):
        degenerate(good(1).long())
    with pytest.raises(ValueError, match=r"\[8, 8, 3\]"):
        degenerate(good(1)[0])
    with pytest.raises(ValueError, match=r"\[1, 0, 8, 3\]"):
        degenerate(good(1)[:, :0])
    with pytest.raises(ValueError, match="2 images need as many distinct ids"):
        degenerate(good(2), ["a"])
    with pytest.raises(ValueError, match="distinct ids"):
        degenerate(good(2), ["a", "a"])


def spread(share: float, side: int = 40) -> Tensor:
    """[1, side, side, 3] with that share of values inside the range, the others at its ends."""
    values = torch.full((side * side * 3,), 255, dtype=torch.uint8)
    values[::2] = 0
    values[: round(share * len(values))] = 100
    return values.view(1, side, side, 3)


@pytest.mark.parametrize(
    ("share", "reference", "broken"),
    [
        (0.05, 1.0, True),
        (0.11, 1.0, False),
        (0.0, 0.2, True),
        (0.03, 0.2, False),
        (0.0, 0.05, False),
        (1.0, 0.2, False),
    ],
)
def test_saturation_is_judged_beside_the_reference(
    share: float, reference: float, broken: bool
) -> None:
    found = saturated(spread(share), spread(reference), ["a"])
    assert (list(found) == ["a"]) is broken
    if broken:
        assert found["a"].startswith(f"saturated: {1 - share:.1%} of its values are 0 or 255")


def test_off_white_that_turns_white_is_fine() -> None:
    reference = spread(0.3)
    reference[reference == 255] = 250
    assert saturated(spread(0.3), reference) == {}
    reference[reference == 250] = 240
    assert saturated(spread(0.02), reference) != {}


def test_noise_of_the_whole_range_is_fine() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 127.5 + 255 * torch.randn(1, 64, 64, 3, generator=generator)
    assert saturated(noise.clamp(0, 255).to(torch.uint8), spread(1.0, side=64)) == {}
    overflown = 127.5 + 2550 * torch.randn(1, 64, 64, 3, generator=generator)
    assert list(saturated(overflown.clamp(0, 255).to(torch.uint8), spread(1.0, side=64))) == ["0"]
