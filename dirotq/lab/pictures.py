"""Image grids with labels, and PNG files whose bytes depend on the pixels alone."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dirotq.atomic import atomic_write_bytes

_GAP = 4
_MARGIN = 8
_LABEL_LINES = 3
_INK = (32, 32, 32)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Sheet:
    """Measures of a grid in pixels; ``cell`` is the width and height of one image."""

    cell: tuple[int, int]
    gutter: int
    line: int
    header: int
    rows: int

    @property
    def block_height(self) -> int:
        """Height of a line of column labels and the rows under it."""
        return self.header + self.rows * (self.cell[1] + _GAP)

    def size(self, columns: int, blocks: int) -> tuple[int, int]:
        """Width and height of the whole grid."""
        width = 2 * _MARGIN + self.gutter + columns * (self.cell[0] + _GAP) - _GAP
        return width, 2 * _MARGIN + blocks * (self.block_height + _MARGIN) - _MARGIN - _GAP

    def corner(self, block: int, row: int, column: int) -> tuple[int, int]:
        """Upper left corner of an image."""
        x = _MARGIN + self.gutter + column * (self.cell[0] + _GAP)
        y = _MARGIN + block * (self.block_height + _MARGIN)
        return x, y + self.header + row * (self.cell[1] + _GAP)


def grid(
    rows: Sequence[tuple[str, Sequence[Tensor]]],
    column_labels: Sequence[str],
    *,
    scale: int = 1,
    max_columns: int = 8,
    font_size: int = 13,
) -> Image.Image:
    """Draw rows of images on white, a label left of each row and above each column.

    More than ``max_columns`` columns go on in further blocks of rows below. A column label is
    broken into up to three lines as wide as its image; what does not fit ends in "...".

    Args:
        rows: label and images of each row, uint8 ``[H, W, 3]``, all of one size.
        column_labels: one for each image of a row.
        scale: whole factor of magnification, without smoothing.
        max_columns: columns side by side.
        font_size: of the labels, in pixels.

    Raises:
        TypeError: an image is not uint8.
        ValueError: no images, sizes or numbers that do not fit, or a setting below 1.
    """
    height, width = _check(rows, column_labels)
    _positive(scale=scale, max_columns=max_columns, font_size=font_size)
    font = ImageFont.load_default(size=font_size)
    cell = (width * scale, height * scale)
    labels = [_wrap(label, font, cell[0]) for label in column_labels]
    line = font_size + 3
    sheet = _Sheet(
        cell=cell,
        gutter=max(_text_width(label, font) for label, _ in rows) + 2 * _GAP,
        line=line,
        header=max(len(lines) for lines in labels) * line + _GAP,
        rows=len(rows),
    )
    columns = min(max_columns, len(column_labels))
    blocks = -(-len(column_labels) // columns)
    canvas = Image.new("RGB", sheet.size(columns, blocks), "white")
    for index, lines in enumerate(labels):
        block, column = divmod(index, columns)
        _column(canvas, sheet, font, (block, column), lines)
        for row, (_, images) in enumerate(rows):
            picture = to_image(images[index]).resize(cell, Image.Resampling.NEAREST)
            canvas.paste(picture, sheet.corner(block, row, column))
    for block in range(blocks):
        _row_labels(canvas, sheet, font, block, [label for label, _ in rows])
    return canvas


def above(picture: Tensor, image: Tensor, scale: int) -> Tensor | None:
    """The image that a :func:`grid` shows right above another one, without the grid's magnification.

    Args:
        picture: uint8 ``[H, W, 3]``, the grid.
        image: uint8 ``[h, w, 3]``, of a row below the first.
        scale: the grid's.

    Returns:
        uint8 ``[h, w, 3]``; None if the grid does not show ``image`` below another one.
    """
    shown = image.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    height, width = shown.shape[:2]
    place = _find(picture, shown)
    if place is None or place[0] < height + _GAP:
        return None
    y, x = place[0] - height - _GAP, place[1]
    return picture[y : y + height : scale, x : x + width : scale]


def _find(picture: Tensor, part: Tensor) -> tuple[int, int] | None:
    """Row and column at which ``part`` stands in ``picture``, both uint8 ``[H, W, 3]``; None if nowhere."""
    height, width = part.shape[:2]
    if height > picture.shape[0] or width > picture.shape[1]:
        return None
    rows, columns = picture.shape[0] - height + 1, picture.shape[1] - width + 1
    left = torch.ones(rows, columns, dtype=torch.bool)
    # A few pixels rule out nearly every place; what is left is compared whole.
    for y in range(0, height, max(1, height // 4)):
        for x in range(0, width, max(1, width // 4)):
            left &= (picture[y : y + rows, x : x + columns] == part[y, x]).all(dim=2)
    for y, x in left.nonzero().tolist():
        if torch.equal(picture[y : y + height, x : x + width], part):
            return y, x
    return None


def to_image(pixels: Tensor) -> Image.Image:
    """A uint8 ``[H, W, 3]`` tensor on any device as an RGB image."""
    return Image.fromarray(pixels.cpu().contiguous().numpy())


def save_png(image: Image.Image | Tensor, path: Path | str) -> None:
    """Write an image, or a uint8 ``[H, W, 3]`` tensor, as PNG, whole or not at all.

    The same pixels give the same bytes with the same Pillow and zlib: no time, no metadata.

    Raises:
        OSError: the place cannot be written.
    """
    picture = to_image(image) if isinstance(image, Tensor) else image.copy()
    # Pillow writes profiles and comments that a loaded image brought along.
    picture.info = {}
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=6)
    atomic_write_bytes(path, buffer.getvalue())


def _check(
    rows: Sequence[tuple[str, Sequence[Tensor]]], column_labels: Sequence[str]
) -> tuple[int, int]:
    """Height and width of the images, which must all be alike."""
    if not rows or not column_labels:
        raise ValueError("a grid needs at least one row and one column")
    shape = rows[0][1][0].shape if rows[0][1] else torch.Size()
    for label, images in rows:
        if len(images) != len(column_labels):
            raise ValueError(
                f"row {label!r} has {len(images)} images for {len(column_labels)} columns"
            )
        for image in images:
            if image.dtype != torch.uint8:
                raise TypeError(f"images must be uint8, got {image.dtype} in row {label!r}")
            if image.ndim != 3 or image.shape[2] != 3 or image.shape != shape:
                raise ValueError(
                    f"images must be [H, W, 3] of one size, got {list(image.shape)} in "
                    f"row {label!r} after {list(shape)}"
                )
    return shape[0], shape[1]


def _positive(**settings: int) -> None:
    for name, value in settings.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _column(
    canvas: Image.Image, sheet: _Sheet, font: Font, place: tuple[int, int], lines: list[str]
) -> None:
    """Write a column's label, its last line next to the images."""
    x, y = sheet.corner(place[0], 0, place[1])
    draw = ImageDraw.Draw(canvas)
    for up, text in enumerate(reversed(lines)):
        centre = x + (sheet.cell[0] - _text_width(text, font)) // 2
        draw.text((centre, y - _GAP - (up + 1) * sheet.line), text, fill=_INK, font=font)


def _row_labels(
    canvas: Image.Image, sheet: _Sheet, font: Font, block: int, labels: list[str]
) -> None:
    """Write the labels of a block's rows, at mid-height of their images."""
    draw = ImageDraw.Draw(canvas)
    for row, label in enumerate(labels):
        _, y = sheet.corner(block, row, 0)
        centre = y + (sheet.cell[1] - sheet.line) // 2
        draw.text((_MARGIN, centre), label, fill=_INK, font=font)


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Break ``text`` at spaces into at most three lines of at most ``width`` pixels."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _text_width(longer, font) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > _LABEL_LINES:
        lines = [*lines[: _LABEL_LINES - 1], " ".join(lines[_LABEL_LINES - 1 :])]
    return [_shorten(line, font, width) for line in lines]


def _shorten(line: str, font: Font, width: int) -> str:
    """Cut ``line`` so that it fits ``width`` pixels with "..." at its end."""
    if _text_width(line, font) <= width:
        return line
    end = len(line)
    while end > 1 and _text_width(line[:end].rstrip() + "...", font) > width:
        end -= 1
    return line[:end].rstrip() + "..."


def _text_width(text: str, font: Font) -> int:
    """Width of one line in pixels."""
    return int(font.getlength(text)) + 1
