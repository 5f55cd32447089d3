"""How metrics are called, rounded and read in tables and plots."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """A metric's name with its unit, decimals in a table, and which way is better (None: neither)."""

    title: str
    digits: int
    better: str | None

    @property
    def heading(self) -> str:
        """Title with an arrow that points to better."""
        return self.title + {"higher": " ↑", "lower": " ↓", None: ""}[self.better]


_SHOWN = {
    "psnr": Shown("PSNR dB", 2, "higher"),
    "ssim": Shown("SSIM", 3, "higher"),
    "lpips": Shown("LPIPS", 3, "lower"),
    "fid": Shown("FID", 1, "lower"),
    "clip_score": Shown("CLIP score", 2, "higher"),
    "image_reward": Shown("ImageReward", 3, "higher"),
    "emoji_perceptual": Shown("emoji_perceptual", 4, "lower"),
    "emoji_frechet": Shown("emoji_frechet", 3, "lower"),
    "latent_error": Shown("latent error", 3, "lower"),
    "sharpness": Shown("sharpness ratio", 3, None),
}


def shown(name: str) -> Shown:
    """How a metric of result.json is shown; one that is not known here by its own name, with four decimals."""
    return _SHOWN.get(name, Shown(name, 4, None))


def ordered(names: set[str]) -> list[str]:
    """The known ones in their usual order, then the others by name."""
    return [name for name in _SHOWN if name in names] + sorted(names - set(_SHOWN))
