"""Sampling, captions and drawing of the embedded model's scenes, on made-up sprites."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.embedded.captions import (
    CATEGORIES,
    MAX_WORDS,
    Thing,
    caption,
    category_word,
    colourless,
    plural,
    text_key,
)
from experiments.embedded.names import clean_name, split_skin
from experiments.embedded.render import recolour
from experiments.embedded.scenes import Scenes, render, reserved, sample_scenes
from experiments.embedded.sources import STYLES
from experiments.embedded.sprites import Sprite, assign_splits, dominant_hue

NAMES = ("red apple", "cat", "left arrow", "scissors", "house", "blue book", "fox", "pear")


@pytest.fixture
def sprites() -> list[Sprite]:
    pairs = [(name, style) for name in NAMES for style in STYLES]
    return [
        Sprite(
            index, style, name, name, "Objects", "tool", None, 0.0, (200, 40, 40), "train"
        )
        for index, (name, style) in enumerate(pairs)
    ]  # fmt: skip


@pytest.fixture
def picture() -> torch.Tensor:
    """A random sprite with a transparent border: uint8 [1, 64, 64, 4]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (14, 14, 4), dtype=np.uint8)
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[4:60, 4:60] = coarse.repeat(4, 0).repeat(4, 1)
    return torch.from_numpy(rgba)[None]


def one_object(x: float, y: float, size: float, flip: bool = False) -> Scenes:
    slots = np.full((1, 3), -1)
    slots[0, 0] = 0
    place = (np.full((1, 3), value, dtype=np.float32) for value in (x, y, size))
    return Scenes(
        slots, *place, np.full((1, 3), flip), np.full((1, 3), -1), np.zeros((1, 3), np.float32),
        np.array([[10, 200, 90]], dtype=np.uint8), ["a thing"],
    )  # fmt: skip


@pytest.mark.parametrize("size", [64, 48, 32])
@pytest.mark.parametrize("flip", [False, True])
def test_render_agrees_with_pillow(picture: torch.Tensor, size: int, flip: bool) -> None:
    left, top = (64 - size) // 2, (64 - size) // 4
    image = Image.fromarray(picture[0].numpy())
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    canvas = Image.new("RGBA", (64, 64), (10, 200, 90, 255))
    small = image.resize((size, size), Image.Resampling.BILINEAR)
    canvas.alpha_composite(small, (left, top))
    expected = np.asarray(canvas.convert("RGB"), dtype=np.float32)

    scene = one_object(left + size / 2, top + size / 2, size, flip)
    drawn = render(scene, picture, 0, 1)
    assert drawn.shape == (1, 3, 64, 64)
    assert drawn.dtype == torch.float32
    got = ((drawn[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(got - expected).max() < 4
    assert np.abs(got - expected).mean() < 0.5


def test_render_does_not_depend_on_the_batch(sprites: list[Sprite], picture: torch.Tensor) -> None:
    scenes = sample_scenes(sprites, 40, seed=3)
    pictures = picture.repeat(len(sprites), 1, 1, 1)
    together = render(scenes, pictures, 0, 40)
    apart = torch.cat([render(scenes, pictures, at, at + 1) for at in range(40)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    assert together.abs().max() <= 1 + 1e-5


def test_recolour_paints_the_own_hue_and_leaves_others() -> None:
    rgb = torch.tensor([[[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.5]]]])
    painted = recolour(rgb, torch.tensor([0.0]), torch.tensor([[240.0, 1.0, 1.0]]))
    expected = torch.tensor([[[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.5]]]])
    torch.testing.assert_close(painted, expected, atol=1e-5, rtol=0)


def test_sampling_is_deterministic_and_says_what_is_drawn(sprites: list[Sprite]) -> None:
    first, again = sample_scenes(sprites, 3000, seed=1), sample_scenes(sprites, 3000, seed=1)
    assert first.captions == again.captions
    for field in dataclasses.fields(Scenes)[:-1]:
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    for row, text in enumerate(first.captions):
        x, y = first.x[row], first.y[row]
        assert len(text.split()) <= MAX_WORDS
        if " beside " in text:
            assert x[0] < x[1] - 20
        if " above " in text:
            assert y[0] < y[1] - 20
        if "left corner" in text or "on the left" in text:
            assert x[0] < 28
        if "at the bottom" in text or "the bottom" in text:
            assert y[0] > 36
        number = 1 + text.startswith("two ") + 2 * text.startswith("three ")
        assert (first.sprite[row] >= 0).sum() == number + (" beside " in text or " above " in text)
        assert sprites[first.sprite[row, 0]].name != "left arrow" or not first.flip[row, 0]


def test_training_never_sees_reserved_pairs(sprites: list[Sprite]) -> None:
    scenes = sample_scenes(sprites, 5000, seed=2)
    keys = np.array([text_key(colourless(sprite.name)) for sprite in sprites])
    two = [row for row, text in enumerate(scenes.captions) if {"beside", "above"} & {*text.split()}]
    pairs = keys[scenes.sprite[two, :2]]
    assert len(two) > 100
    assert not reserved(pairs[:, 0], pairs[:, 1]).any()
    first, second = np.random.default_rng(0).integers(0, 2**32, (2, 40000), dtype=np.uint64)
    assert 0.04 < reserved(first, second).mean() < 0.06
    np.testing.assert_array_equal(reserved(first, second), reserved(second, first))


@pytest.mark.parametrize(
    ("expected", "arguments"),
    [
        ("a noto emoji of a red apple", {"thing": Thing("red apple", "noto"), "emoji_of": True}),
        (
            "a small noto food emoji of a pizza",
            {"thing": Thing("pizza", "noto", "food", small=True), "emoji_of": True},
        ),
        ("an orange heart", {"thing": Thing("red heart", colour="orange")}),
        ("noto scissors", {"thing": Thing("scissors", "noto")}),
        ("two noto stars", {"thing": Thing("star", "noto"), "count": 2}),
        ("three blue foxes", {"thing": Thing("fox", colour="blue"), "count": 3}),
        ("a waving hand with dark skin tone", {"thing": Thing("waving hand", skin="dark")}),
        (
            "a small noto dog at the top on a blue background",
            {
                "thing": Thing("dog", "noto", small=True),
                "place": "at the top",
                "background": "blue",
            },
        ),
        (
            "a fluent flat cat above an owl",
            {"thing": Thing("cat", "fluent flat"), "other": Thing("owl"), "relation": "above"},
        ),
    ],
)
def test_captions(expected: str, arguments: dict[str, object]) -> None:
    assert caption(**arguments) == expected  # type: ignore[arg-type]


def test_half_of_the_emoji_captions_name_the_category(sprites: list[Sprite]) -> None:
    texts = [text for text in sample_scenes(sprites, 4000, seed=5).captions if " emoji of " in text]
    named = [text for text in texts if " object emoji of " in text]
    assert len(texts) > 400
    # Half of more than 400 draws: a deviation by 0.1 is four standard deviations.
    assert abs(len(named) / len(texts) - 0.5) < 0.1


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_subcategory_has_a_word(sprites: list[Sprite], category: str) -> None:
    words = {
        category_word(dataclasses.replace(sprites[0], category=category, subcategory=start))
        for start in ("animal-bug", "plant-other", "drink", "food-asian", "time", "heart", "hotel")
    }
    assert words <= set(CATEGORIES[category].values())


def test_names() -> None:
    assert clean_name("man: beard") == "man beard"
    assert clean_name("six o\u2019clock") == "six oclock"
    assert clean_name("piñata") == "pinata"
    assert clean_name("flag Türkiye") == "flag of turkiye"
    assert split_skin("1f44b-1f3fe") == ("1f44b", "medium dark")
    assert split_skin("1f9d1-1f3fb-1f91d-1f9d1-1f3ff") is None
    assert plural("leaf") == "leaves"
    assert plural("scissors") is None


def test_held_out_pairs_leave_the_other_styles(sprites: list[Sprite]) -> None:
    many = [
        dataclasses.replace(sprite, concept=f"{sprite.concept} {copy}")
        for copy in range(60)
        for sprite in sprites
    ]
    split = assign_splits(many)
    held = [sprite.concept for sprite in split if sprite.split == "held_out_pair"]
    assert len(held) == len(set(held))
    assert 0.04 < len(held) / len(split) < 0.08


def test_dominant_hue() -> None:
    rgba = np.zeros((64, 64, 4), dtype=np.uint8)
    rgba[8:56, 8:56] = (20, 20, 240, 255)
    hue = dominant_hue(rgba)
    assert hue is not None
    assert abs(hue - 240) < 3
    rgba[8:56, 8:56] = (128, 128, 128, 255)
    assert dominant_hue(rgba) is None
