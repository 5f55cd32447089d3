"""Relative error of latents."""

import pytest
import torch

from dirotq.metrics.trajectory import latent_errors


def test_errors_are_norms_over_a_prompt_s_latents() -> None:
    reference = torch.zeros(2, 3, 1, 2, 2, dtype=torch.bfloat16)
    reference[..., 0, 0], reference[..., 1, 1] = 3, 4
    latents = reference.clone()
    latents[0, 1] *= 2
    latents[1, 2, 0, 0, 1] = 1
    expected = torch.tensor([[0, 1, 0], [0, 0, 0.2]], dtype=torch.float64)
    torch.testing.assert_close(latent_errors(latents, reference), expected)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2, 4\] and \[1, 3, 4\]"):
        latent_errors(torch.ones(1, 2, 4), torch.ones(1, 3, 4))
