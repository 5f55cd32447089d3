"""How far the quantized model's latents are from the 16-bit ones, step by step."""

from torch import Tensor
from torch.linalg import vector_norm


def latent_errors(latents: Tensor, reference: Tensor) -> Tensor:
    """Relative error ``|z - z_16| / |z_16|`` in the Euclidean norm over a prompt's latents after a step.

    Args:
        latents: ``[prompts, steps, ...]``, any float dtype.
        reference: the 16-bit model's, of the same shape, from the same noise.

    Returns:
        float64 ``[prompts, steps]``.

    Raises:
        ValueError: shapes differ.
    """
    if latents.shape != reference.shape:
        shapes = f"{list(latents.shape)} and {list(reference.shape)}"
        raise ValueError(f"latents to compare differ in shape: {shapes}")
    exact = reference.double().flatten(2)
    difference = latents.double().flatten(2) - exact
    errors: Tensor = vector_norm(difference, dim=2) / vector_norm(exact, dim=2)
    return errors
