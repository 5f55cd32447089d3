"""The randomized Hadamard transform against float64, and its codes: on a GPU or in Triton's interpreter."""

import pytest
import torch
from dirotq_kernels.hadamard import (
    hadamard,
    hadamard_quantize,
    hadamard_quantize_ref,
    hadamard_ref,
    unfit,
)
from torch import Tensor

from dirotq.transforms import Hadamard
from dirotq.transforms.paley import construct
from tests.support.draws import draw

# NumPy says so in the interpreter, of rows that are not finite.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Widths of one, two and three factors, powers of two and not, groups of 32 within the last factor's rows and across.
WIDTHS = [16, 28, 192, 1152, 2240, 3072, 12288]


def transform(width: int) -> tuple[Hadamard, Tensor, list[int]]:
    """A transform of the library, and what the kernel takes of it."""
    made = Hadamard(width, generator=torch.Generator().manual_seed(width))
    factors = [construct(order).flatten() for order in made.orders]
    return made, torch.cat(factors), list(made.orders)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_it_is_the_library_s_transform(width: int, dtype: torch.dtype) -> None:
    made, factors, orders = transform(width)
    x = draw(5, width, seed=1).to(dtype)
    expected, _ = made.online(x.double())
    args = [t.to(DEVICE) for t in (x, made.signs, factors)]
    got = hadamard(*args, orders).cpu()
    assert got.dtype == torch.float32
    # Sums in float32 of terms that are exact to 2^-24; PyTorch's own lie as far from float64.
    assert float((got.double() - expected).norm() / expected.norm()) < 2.0**-20
    reference = hadamard_ref(x, made.signs, factors, orders).double()
    torch.testing.assert_close(reference, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", ["fp4h", "fp8"])
def test_codes_are_those_of_the_transformed_rows(width: int, kind: str) -> None:
    if kind == "fp4h" and width % 32:
        pytest.skip("groups of 32 do not divide the width")
    made, factors, orders = transform(width)
    x = (draw(7, width, seed=2) * draw(7, 1, seed=3).exp()).bfloat16()
    x[2] = 0.0
    args = [t.to(DEVICE) for t in (x, made.signs, factors)]
    a, scale = (t.cpu() for t in hadamard_quantize(*args, orders, kind))
    wanted, wanted_scale = hadamard_quantize_ref(x, made.signs, factors, orders, kind)
    assert torch.equal(scale, wanted_scale)
    # Sums in another order fall on the other side of a tie now and then.
    assert float((a.float() != wanted.float()).double().mean()) < 2e-3


@pytest.mark.parametrize("kind", ["fp4h", "fp8"])
@pytest.mark.parametrize("width", [192, 1152])
def test_rows_that_are_not_finite_have_no_scale_and_others_theirs(width: int, kind: str) -> None:
    made, factors, orders = transform(width)
    x = draw(3, width, seed=3).bfloat16()
    x[0, 7], x[2, 9] = float("nan"), float("inf")
    args = [t.to(DEVICE) for t in (x, made.signs, factors)]
    scale = hadamard_quantize(*args, orders, kind)[1]
    assert scale.isnan().flatten().tolist() == [True, False, True]


def test_rows_that_lie_apart_and_more_rows_than_a_program_has() -> None:
    made, factors, orders = transform(192)
    x = draw(70, 256, seed=4).bfloat16()[:, :192]
    args = [t.to(DEVICE) for t in (x, made.signs, factors)]
    expected, _ = made.online(x.double())
    torch.testing.assert_close(
        hadamard(*args, orders).cpu().double(), expected, rtol=1e-5, atol=1e-5
    )
    assert hadamard(args[0][:0], *args[1:], orders).shape == (0, 192)


def test_what_does_not_fit_is_said() -> None:
    made, factors, orders = transform(192)
    x = torch.zeros(2, 192)
    with pytest.raises(
        ValueError, match=r"hadamard: factors \[5\] of torch.int8, allowed is \[400\]"
    ):
        hadamard(x, made.signs, factors[:5], orders)
    with pytest.raises(ValueError, match="hadamard: 192 columns by orders"):
        hadamard(x, made.signs, factors, [12, 12])
    with pytest.raises(ValueError, match=r"hadamard: x of torch\.float64"):
        hadamard(x.double(), made.signs, factors, orders)
    with pytest.raises(ValueError, match="hadamard_quantize: kind='int4'"):
        hadamard_quantize(x, made.signs, factors, orders, "int4")
    assert unfit(2**16, [256, 256]) is not None


def test_operators_compile_as_a_whole_and_keep_their_promises() -> None:
    made, factors, orders = transform(192)
    args = [t.to(DEVICE) for t in (draw(2, 192).bfloat16(), made.signs, factors)]
    torch.library.opcheck(hadamard, (*args, orders))
    torch.library.opcheck(hadamard_quantize, (*args, orders, "fp4h"))
    compiled = torch.compile(
        lambda *a: hadamard_quantize(*a, orders, "fp4h")[0].float() + 1,
        fullgraph=True,
        backend="aot_eager",
    )
    assert torch.equal(compiled(*args), hadamard_quantize(*args, orders, "fp4h")[0].float() + 1)
