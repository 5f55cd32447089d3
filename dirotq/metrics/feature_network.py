"""The small feature network shipped with the embedded emoji model.

It was trained on the model's own images to tell emoji, styles and backgrounds apart
(`experiments/embedded/train_features.py`). Distances in its features are no FID and no LPIPS.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

FILE_NAME = "features.safetensors"
WIDTHS = (24, 48, 96, 128)

_GROUP = 8


class _Stage(nn.Module):
    """Halve the side, then one residual block."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
        self.norm1 = nn.GroupNorm(outputs // _GROUP, outputs)
        self.conv1 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(outputs // _GROUP, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        update = self.conv1(F.silu(self.norm1(x)))
        update = self.conv2(F.silu(self.norm2(update)))
        result: Tensor = x + update
        return result


class FeatureNetwork(nn.Module):
    """A convolutional network of a few stages, each at half the side of the one before."""

    def __init__(self, widths: Sequence[int] = WIDTHS) -> None:
        """Build it untrained; `widths` are the channels of the stages, multiples of 8."""
        super().__init__()
        if not widths or any(width % _GROUP for width in widths):
            raise ValueError(f"widths must be multiples of {_GROUP}, got {list(widths)}")
        self.widths = tuple(widths)
        inputs = (3, *self.widths[:-1])
        self.stages = nn.ModuleList(map(_Stage, inputs, self.widths))
        self.norm = nn.GroupNorm(self.widths[-1] // _GROUP, self.widths[-1])

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of float images [B, 3, 64, 64] in [-1, 1].

        Returns the stage maps [B, width, 32, 32], [B, width, 16, 16], ... and the last stage
        averaged over its positions, [B, widths[-1]].
        """
        maps = []
        x = images
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps, F.silu(self.norm(x)).mean(dim=(2, 3))


def save_feature_network(network: FeatureNetwork, folder: Path) -> None:
    """Write `features.safetensors` in float16 to a folder."""
    tensors = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    save_file(tensors, folder / FILE_NAME, metadata={"widths": json.dumps(network.widths)})


def load_feature_network(folder: str | Path) -> FeatureNetwork:
    """Read the network from a model folder, float32, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: the folder holds no `features.safetensors`.
        ValueError: the file is no feature network.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no feature network: {path} does not exist")
    with safe_open(path, framework="pt") as file:
        widths = (file.metadata() or {}).get("widths")
        if widths is None:
            raise ValueError(f"{path} is no feature network: it does not name its widths")
        network = FeatureNetwork(json.loads(widths))
        network.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()})  # noqa: SIM118
    return network.eval()
