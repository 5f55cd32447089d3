"""What images by kernels are compared with: exact transforms, and images of a prompt averaged before prompts are."""

import pytest
import torch
from torch import Tensor, nn

import dirotq
from dirotq.linear import QuantInput
from dirotq.prompts import Prompt
from experiments.kernel_images import compared, repeated, use_exact_transforms


def layer() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 32))
    inputs = torch.randn(2, 64, 96)
    settings = ("bits=w4a4_fp4h", "protect=fp8x2", "rank=16", "rounding=rtn")
    dirotq.quantize(model, dirotq.recipe(*settings), [(inputs[0],)])
    return model, inputs[1]


@torch.no_grad()
def test_transforms_are_summed_in_float64_and_rounded_once() -> None:
    model, x = layer()
    (quantized,) = (module for module in model.modules() if isinstance(module, QuantInput))
    transform = quantized.transform
    low, high = transform.online(x.double())
    assert high is not None
    wanted = quantized.quantized(low.float(), high.float())
    before = model(x)
    use_exact_transforms(model)
    found = quantized.compute(x)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    # What float32's sums round, and it is there to be found: not the same codes' sums, but nearly.
    single = transform.online(x)[0]
    assert not torch.equal(single, low.float())
    assert (model(x) - before).norm() < 0.05 * before.norm()


def test_draws_have_ids_of_their_own() -> None:
    prompts = [Prompt("a", "one"), Prompt("b", "two")]
    assert repeated(prompts, 1) == prompts
    found = repeated(prompts, 3)
    assert found[:2] == prompts
    assert [prompt.text for prompt in found] == 3 * ["one", "two"]
    assert len({prompt.seed() for prompt in found}) == 6


def test_draws_of_a_prompt_are_averaged_before_prompts_are_resampled() -> None:
    reference = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    step = torch.tensor([1, 2, 4, 8], dtype=torch.uint8)[:, None, None, None]
    images = reference + step  # of prompts a, b, a, b
    found = compared(reference, images, images, images + step, prompts=2)
    decibels = [20 * torch.log10(torch.tensor(255.0 / value)).item() for value in (1, 2, 4, 8)]
    simulated = found["psnr_to_16_bit"]["simulated"]
    assert simulated["n"] == 2
    assert simulated["value"] == pytest.approx(sum(decibels) / 4, abs=1e-4)
    # Either prompt alone is the farthest that a resampled mean of two can be.
    assert simulated["ci_low"] >= (decibels[1] + decibels[3]) / 2 - 1e-4
    assert simulated["ci_high"] <= (decibels[0] + decibels[2]) / 2 + 1e-4
    kernels = found["psnr_to_16_bit"]["kernels_minus_simulated"]
    assert kernels["value"] == pytest.approx(-20 * torch.log10(torch.tensor(2.0)).item(), abs=1e-4)
    assert kernels["distinguishable"]
    floor = found["psnr_to_16_bit"]["floor_minus_simulated"]
    assert (floor["value"], floor["distinguishable"]) == (0.0, False)
    assert found["bitwise_equal_to_simulated"] == {"floor": 4, "kernels": 0}
