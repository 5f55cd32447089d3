"""How the work of `rotate_quantize` is cut into programs."""

from dirotq_kernels.rotate_plan import share


def test_work_is_shared_in_full_waves() -> None:
    for outer, inner, slots in [(47, 72, 528), (191, 72, 528), (1, 47, 264), (36, 48, 264)]:
        each = share(outer, inner, slots, inner)
        waves = -(-outer * -(-inner // each) // slots)
        assert waves * each * slots <= 1.5 * outer * inner + slots
