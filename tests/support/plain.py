"""Plain modules and activations: no diffusers, whose import takes seconds."""

import torch
from torch import Tensor, nn


def outlier_rows(rows: int, width: int, seed: int = 0) -> Tensor:
    """Activations [rows, width] with a few strong directions and two strong channels."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=g)
    directions = torch.randn(4, width, generator=g)
    x = x + 6 * torch.randn(rows, 4, generator=g) @ directions / width**0.5 * 4
    x[:, :2] *= 10
    return x


class Mlp(nn.Module):
    """Two branches read one input; a norm that no layout names."""

    def __init__(self, width: int = 48, hidden: int = 96, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width)
        for parameter in self.parameters():
            # An initialization by torch.manual_seed would change every other test's random numbers.
            parameter.data.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
        self.norm.weight.data.add_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.1 * self.norm(x)
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Residual(Mlp):
    """An Mlp beside its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * super().forward(x)


class Stack(nn.Module):
    """Blocks one after the other between an embedding and a head."""

    def __init__(self, blocks: int = 3, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Residual(width, seed=index) for index in range(blocks))
        self.head = nn.Linear(width, 4)
        for layer, seed in ((self.embed, 100), (self.head, 101)):
            generator = torch.Generator().manual_seed(seed)
            for parameter in layer.parameters():
                parameter.data.normal_(std=0.1, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def bytes_of(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    """Every tensor's dtype, shape and bytes: equal exactly when the tensors are, NaN included."""
    return {
        name: f"{tensor.dtype}{tuple(tensor.shape)}".encode()
        + tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for name, tensor in tensors.items()
    }
