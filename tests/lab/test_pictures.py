"""Grids hold the pixels they were given, and PNG files are reproducible."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont, PngImagePlugin
from torch import Tensor

from dirotq.lab import pictures
from dirotq.lab.pictures import grid, save_png, to_image


def picture(seed: int, side: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (side, side, 3), generator=generator, dtype=torch.uint8)


def find(canvas: Image.Image, image: Tensor, scale: int = 1) -> tuple[int, int]:
    """Upper left corner (x, y) of the one place where the magnified image lies in the canvas."""
    pixels, wanted = np.asarray(canvas), image.numpy().repeat(scale, 0).repeat(scale, 1)
    height, width = wanted.shape[:2]
    places = [
        (int(x), int(y))
        for y, x in zip(*np.nonzero((pixels == wanted[0, 0]).all(axis=2)), strict=True)
        if np.array_equal(pixels[y : y + height, x : x + width], wanted)
    ]
    assert len(places) == 1
    return places[0]


def test_every_image_is_there_in_order() -> None:
    rows = [
        ("16-bit", [picture(i) for i in range(3)]),
        ("W4A4", [picture(9 + i) for i in range(3)]),
    ]
    canvas = grid(rows, ["a", "b", "c"])
    places = [[find(canvas, image) for image in images] for _, images in rows]
    assert canvas.mode == "RGB"
    for row in places:
        assert len({y for _, y in row}) == 1
        assert sorted(x for x, _ in row) == [x for x, _ in row]
    assert places[0][0][0] == places[1][0][0]
    assert places[1][0][1] >= places[0][0][1] + 32


def test_scale_repeats_pixels() -> None:
    image = picture(0, side=8)
    find(grid([("row", [image])], ["a"], scale=5), image, scale=5)


def test_more_than_eight_columns_wrap() -> None:
    images = [picture(i) for i in range(19)]
    rows = [("first", images), ("second", [255 - image for image in images])]
    canvas = grid(rows, [str(i) for i in range(19)])
    heights = [find(canvas, image)[1] for image in images]
    assert [heights.count(height) for height in sorted(set(heights))] == [8, 8, 3]
    assert find(canvas, rows[1][1][0])[1] < heights[8]
    assert canvas.width == grid([("first", images[:8]), ("second", images[:8])], "abcdefgh").width


def test_labels_are_drawn_beside_the_images_only() -> None:
    white = torch.full((32, 32, 3), 255, dtype=torch.uint8)
    canvas = np.asarray(grid([("row label", [white] * 2)], ["left", "right"]))
    ink = canvas.min(axis=2) < 128
    assert ink.any()
    assert not ink[-33:, -70:].any()
    assert (canvas[0] == 255).all()
    assert (canvas[:, -1] == 255).all()
    assert (np.asarray(grid([("", [white])], [""])) == 255).all()


def test_long_labels_stay_within_their_image() -> None:
    font = ImageFont.load_default(size=13)
    text = "flat emoji of a very smiling-face-with-sunglasses person in three skin tones"
    lines = pictures._wrap(text, font, 100)
    assert len(lines) == 3
    assert lines[-1].endswith("...")
    assert all(pictures._text_width(line, font) <= 100 for line in lines)
    assert pictures._wrap("red heart", font, 100) == ["red heart"]
    assert pictures._wrap("red heart", font, 40) == ["red", "heart"]


def test_png_bytes_depend_on_pixels_alone(tmp_path: Path) -> None:
    image = picture(0)
    save_png(image, tmp_path / "images" / "a.png")
    marked = PngImagePlugin.PngInfo()
    marked.add_text("date", "today")
    buffer = io.BytesIO()
    to_image(image).save(buffer, format="PNG", pnginfo=marked, dpi=(300, 300))
    with Image.open(io.BytesIO(buffer.getvalue())) as loaded:
        save_png(loaded, tmp_path / "b.png")
        assert loaded.info["date"] == "today"
    data = (tmp_path / "images" / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes()
    assert b"tIME" not in data
    with Image.open(tmp_path / "b.png") as written:
        assert np.array_equal(np.asarray(written), image.numpy())


def test_same_grid_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save_png(grid([("row", [picture(0)])], ["a"]), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_views_are_accepted() -> None:
    image = picture(0).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert np.array_equal(np.asarray(to_image(image)), image.numpy())


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        grid([], [])
    with pytest.raises(ValueError, match="row 'a' has 1 images for 2 columns"):
        grid([("a", [picture(0)])], ["x", "y"])
    with pytest.raises(ValueError, match=r"got \[16, 16, 3\] in row 'b' after \[32, 32, 3\]"):
        grid([("a", [picture(0)]), ("b", [picture(0, side=16)])], ["x"])
    with pytest.raises(ValueError, match=r"got \[3, 32, 32\] in row 'a'"):
        grid([("a", [picture(0).permute(2, 0, 1)])], ["x"])
    with pytest.raises(TypeError, match=r"torch\.float32 in row 'a'"):
        grid([("a", [picture(0).float()])], ["x"])
    for name in ("scale", "max_columns", "font_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            grid([("a", [picture(0)])], ["x"], **{name: 0})
