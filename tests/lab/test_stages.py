"""Stages of the main job: what is drawn from where, and what JSON cannot hold."""

import json
from pathlib import Path

from dirotq.lab import stages
from dirotq.lab.stages import Stages
from tests.support.jobs import job


def test_records_are_spread_over_batches_and_steps() -> None:
    assert stages._spread(20, 4) == {2, 7, 12, 17}
    assert stages._spread(3, 10) == {0, 1, 2}
    assert stages._spread(5, 5) == set(range(5))


def test_infinite_ratios_survive_json(tiny_pipeline: Path, tmp_path: Path) -> None:
    _, report = Stages(job(tiny_pipeline, tmp_path, "method=rtn", "bits=w4a16_int4")).quantized()
    assert {row.act_snr_db for row in report.layers} == {float("inf")}
    text = json.dumps(stages._finite({"a": [float("inf"), float("-inf"), 1.0]}))
    assert text == '{"a": ["inf", "-inf", 1.0]}'
