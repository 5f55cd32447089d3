"""The main job on the tiny pipeline."""

from pathlib import Path

from dirotq.config import Job, build_job, compose_config

PROMPTS = {"first": "a cat", "second": "two dogs", "third": "a house"}


def overrides(pipeline: Path, folder: Path, *more: str) -> list[str]:
    """Command line of a job on `pipeline`; its cache and prompt files go into `folder`."""
    evaluation, calibration = folder / "evaluation.yaml", folder / "calibration.txt"
    evaluation.write_text("".join(f"{key}: {text}\n" for key, text in PROMPTS.items()))
    calibration.write_text("a tree\nsome water\n")
    return [
        f"model={pipeline}",
        "model.name=tiny",
        "model.weights=random",
        "model.size=16",
        "model.steps=3",
        "model.guidance=2.0",
        "+model.call.use_resolution_binning=false",
        "+model.call.clean_caption=false",
        "+model.call.max_sequence_length=8",
        f"calib.prompt_set={calibration}",
        "calib.prompts=2",
        "calib.records=4",
        "calib.batch=2",
        f"eval.prompt_set={evaluation}",
        "eval.batch=2",
        "runtime.device=cpu",
        "runtime.preflight=false",
        f"runtime.cache={folder / 'cache'}",
        *more,
    ]


def job(pipeline: Path, folder: Path, *more: str) -> Job:
    """The same as a checked job."""
    return build_job(compose_config(overrides(pipeline, folder, *more)))
