"""What benchmarks of kernels share, as far as it needs no GPU."""

import pytest

pytest.importorskip("triton")
from dirotq_kernels.benching import copies


@pytest.mark.parametrize("nbytes", [1, 1000, (1 << 28) - 1, 1 << 28, 1 << 40])
def test_inputs_that_take_turns_do_not_fit_a_cache(nbytes: int) -> None:
    assert copies(nbytes) * nbytes >= 1 << 28
    assert copies(nbytes) == 2 or (copies(nbytes) - 1) * nbytes < 1 << 28
