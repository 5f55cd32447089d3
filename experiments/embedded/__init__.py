"""The embedded model `emoji`: its data, its captions, its training."""

import dirotq as _dirotq  # noqa: F401  before diffusers: it makes torchvision importable on a CPU
