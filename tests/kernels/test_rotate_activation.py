"""Activations that `rotate_quantize` applies: on a GPU where there is one, else in Triton's interpreter."""

import pytest
import torch
from dirotq_kernels.rotate_quantize import rotate_quantize, rotate_quantize_ref
from dirotq_kernels.transform_slack import transform_slack

from tests.support.compacts import DEVICE, arguments, build
from tests.support.draws import draw64

# NumPy says so in the interpreter, of exponentials that overflow.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rank", [16, 144])
def test_an_activation_comes_first(dtype: torch.dtype, rank: int) -> None:
    """As if PyTorch had applied it: but where its rounding differs, which it does for one value in some hundreds."""
    compact = build(96, rank, 32)
    x = (draw64(33, 96 + rank) * draw64(33, 1, seed=5).exp2() * 3).to(dtype)
    apart = torch.cat([x, x], dim=1)[:, : x.shape[1]]
    tail = (transform_slack(compact), 32, "fp8")
    a, scale = rotate_quantize(apart.to(DEVICE), *arguments(compact), *tail, "gelu_tanh")
    activated = torch.nn.functional.gelu(x.double(), approximate="tanh").to(dtype).to(DEVICE)
    expected, its_scale = rotate_quantize(activated, *arguments(compact), *tail)
    decoded, wanted = a.float() * scale, expected.float() * its_scale
    assert float((decoded - wanted).norm() / wanted.norm()) < 4e-3
    assert float((decoded == wanted).float().mean()) > 0.9
    reference = rotate_quantize_ref(x.to(DEVICE), *arguments(compact), *tail, "gelu_tanh")
    decoded = reference[0].float() * reference[1]
    assert float((decoded - wanted).norm() / wanted.norm()) < 4e-3


def test_an_activation_of_extreme_inputs() -> None:
    x = torch.tensor([-3e38, -100.0, -20.0, -0.0, 0.0, 1e-30, 20.0, 1e18])
    compact = build(64, 16)
    tail = (transform_slack(compact), 64, "fp8", "gelu_tanh")
    for value in x:
        row = torch.full((1, 80), float(value))
        a, scale = rotate_quantize(row.to(DEVICE), *arguments(compact), *tail)
        expected = rotate_quantize_ref(row.to(DEVICE), *arguments(compact), *tail)
        assert torch.equal(scale, expected[1])
        torch.testing.assert_close(a.float(), expected[0].float(), rtol=0.13, atol=0.13)
