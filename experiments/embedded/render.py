"""Drawing scenes: antialiased placing, recolouring and compositing of sprites, in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from experiments.embedded.captions import COLOURS
from experiments.embedded.sprites import SIZE

if TYPE_CHECKING:
    from experiments.embedded.scenes import Scenes

_PAINTS = np.array(list(COLOURS.values()), dtype=np.float32)
# Hues this near to a sprite's own are repainted; the leaf of an apple stays green.
_NEAR, _FAR = 45.0, 70.0
_MARGIN = 4


def _resampling(centre: Tensor, size: Tensor, flip: Tensor | None) -> Tensor:
    """Matrices that scale and move one axis of a sprite with a triangle filter.

    centre, size: float32 [n], in pixels; flip: bool [n]. Returns float32 [n, 64 out, 64 in].
    When shrinking, the filter is as wide as an output pixel, so that nothing aliases.
    """
    axis = torch.arange(SIZE, device=centre.device, dtype=torch.float32) + 0.5
    source = (axis - (centre - size / 2)[:, None]) * (SIZE / size)[:, None]
    if flip is not None:
        source = torch.where(flip[:, None], SIZE - source, source)
    margin = torch.arange(-_MARGIN, SIZE + _MARGIN, device=centre.device) + 0.5
    radius = (SIZE / size).clamp_min(1.0)[:, None, None]
    weight = (1 - (margin - source[..., None]).abs() / radius).clamp_min(0)
    weight = weight / weight.sum(-1, keepdim=True).clamp_min(1e-6)
    return weight[..., _MARGIN:-_MARGIN]


def recolour(rgb: Tensor, own_hue: Tensor, paint: Tensor) -> Tensor:
    """Repaint pictures in a named colour, keeping light, shade and other colours.

    rgb: float32 [n, h, w, 3] in [0, 1]; own_hue: float32 [n], degrees; paint: float32 [n, 3],
    the target's hue in degrees, chroma factor and value exponent. Returns the shape of `rgb`.
    """
    own_hue, (target, chroma, exponent) = own_hue[:, None, None], paint.T[:, :, None, None]
    value, low = rgb.amax(-1), rgb.amin(-1)
    spread = (value - low).clamp_min(1e-6)
    red, green, blue = ((value[..., None] - rgb) / spread[..., None]).unbind(-1)
    sector = torch.where(rgb[..., 0] == value, blue - green, 4 + green - red)
    middle = (rgb[..., 1] == value) & (rgb[..., 0] != value)
    hue = 60 * torch.where(middle, 2 + red - blue, sector)

    turn = torch.remainder(hue - own_hue + 180, 360) - 180
    share = ((_FAR - turn.abs()) / (_FAR - _NEAR)).clamp(0, 1)[..., None]
    new_hue = target + 0.4 * turn
    new_value = value.clamp_min(1e-6) ** exponent
    saturation = (value - low) / value.clamp_min(1e-6) * chroma
    shift = torch.tensor([5.0, 3.0, 1.0], device=rgb.device)
    wheel = torch.remainder(shift + new_hue[..., None] / 60, 6)
    fall = torch.minimum(wheel, 4 - wheel).clamp(0, 1)
    painted = new_value[..., None] * (1 - saturation[..., None] * fall)
    return torch.lerp(rgb, painted, share)


def _objects(scenes: Scenes, sprites: Tensor, rows: np.ndarray, slot: int) -> Tensor:
    """The placed objects of one slot, float32 [n, 4, 64, 64], premultiplied, in [0, 1]."""
    device = sprites.device

    def move(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    rgba = sprites[move(scenes.sprite[rows, slot])].float() / 255
    painted = np.flatnonzero(scenes.colour[rows, slot] >= 0)
    if len(painted):
        chosen = rows[painted]
        paint = move(_PAINTS[scenes.colour[chosen, slot]])
        at = move(painted)
        rgba[at, ..., :3] = recolour(rgba[at][..., :3], move(scenes.hue[chosen, slot]), paint)
    rgba[..., :3] *= rgba[..., 3:].clone()
    size = move(scenes.size[rows, slot])
    across = _resampling(move(scenes.x[rows, slot]), size, move(scenes.flip[rows, slot]))
    down = _resampling(move(scenes.y[rows, slot]), size, None)
    return down[:, None] @ rgba.permute(0, 3, 1, 2) @ across.mT[:, None]


@torch.no_grad()
def render(scenes: Scenes, sprites: Tensor, start: int, stop: int) -> Tensor:
    """Draw scenes `start` to `stop`; returns float32 [stop - start, 3, 64, 64] in [-1, 1].

    sprites: uint8 [N, 64, 64, 4], RGBA, not premultiplied; drawing happens on their device.
    """
    stop = min(stop, len(scenes))
    colour = torch.from_numpy(scenes.background[start:stop]).to(sprites.device)
    canvas = (colour.float() / 255)[:, :, None, None].repeat(1, 1, SIZE, SIZE)
    with torch.autocast(sprites.device.type, enabled=False):
        for slot in range(scenes.sprite.shape[1]):
            rows = start + np.flatnonzero(scenes.sprite[start:stop, slot] >= 0)
            if not len(rows):
                continue
            drawn = _objects(scenes, sprites, rows, slot)
            at = torch.from_numpy(rows - start).to(sprites.device, non_blocking=True)
            canvas[at] = drawn[:, :3] + (1 - drawn[:, 3:]) * canvas[at]
    return canvas * 2 - 1
