"""Layer errors of recipes on inputs of their own."""

from pathlib import Path

import torch

from dirotq.lab.stages import Stages
from experiments.layer_error import measure
from tests.support.jobs import job


def test_errors_follow_the_bits(tiny_pipeline: Path, tmp_path: Path) -> None:
    stages = Stages(job(tiny_pipeline, tmp_path, "method=rtn"))
    statistics = stages.statistics()
    before = [parameter.clone() for parameter in stages.pipeline.transformer.parameters()]
    errors = {
        bits: measure(stages, f"method=rtn bits={bits}", 0, statistics, statistics)["error"]
        for bits in ("w16a16", "w8a8_int8", "w4a4_int4")
    }
    assert errors["w16a16"] < 1e-6  # float32 products in another order
    assert errors["w16a16"] < errors["w8a8_int8"] < 0.05 < errors["w4a4_int4"] < 1
    after = stages.pipeline.transformer.parameters()
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
