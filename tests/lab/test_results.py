"""result.json: what is accepted, what is refused and how that is said."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from dirotq.lab import results
from dirotq.lab.results import (
    Result,
    environment,
    metric,
    read_result,
    source_commit,
    validate,
    write_result,
)
from dirotq.metrics.statistics import Estimate


@pytest.fixture
def result() -> Result:
    return Result(
        schema=1,
        model="emoji",
        method="dirotq",
        bits="w4a4_int4",
        rank=0.125,
        basis="pca",
        rotation="dense",
        rounding="gptq",
        seed=0,
        effective_bits={"weight": 4.75, "activation": 4.25},
        metrics={"psnr": metric(Estimate(24.5, 23.9, 25.1, 16))},
        paper=None,
        seconds={"calibrate": 12.5},
        bytes={"checkpoint": 9_000_000, "peak": None},
        env=environment(),
        weights="trained",
        numerics="simulated",
    )


def changed(result: Result, place: str, value: object) -> dict[str, Any]:
    copied: dict[str, Any] = copy.deepcopy(dict(result))
    *folders, name = place.split(".")
    target = copied
    for folder in folders:
        target = target[folder]
    target[name] = value
    return copied


def test_schema_is_a_schema() -> None:
    text = Path(results.__file__).with_name("result.schema.json").read_text()
    Draft202012Validator.check_schema(json.loads(text))


def test_schema_and_types_agree() -> None:
    schema = json.loads(Path(results.__file__).with_name("result.schema.json").read_text())
    assert set(schema["required"]) == Result.__required_keys__
    assert set(schema["properties"]) == Result.__required_keys__ | Result.__optional_keys__
    for name, keys in (
        ("effective_bits", results.EffectiveBits.__required_keys__),
        ("bytes", results.Bytes.__required_keys__),
        ("env", results.Environment.__required_keys__),
        ("prompts", results.Prompts.__required_keys__),
    ):
        assert set(schema["properties"][name]["required"]) == keys


def test_write_and_read(tmp_path: Path, result: Result) -> None:
    path = tmp_path / "run" / "result.json"
    write_result(path, result)
    assert read_result(path) == result
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("rank", None),
        ("rank", 32),
        ("rank", 0),
        ("basis", None),
        ("rounding", None),
        ("paper", {"fid": 19.2, "psnr": 17}),
        ("command", "dirotq method=rtn"),
        ("config", "0123456789abcdef"),
        ("prompts", {"set": "quick", "n": 16}),
        ("metrics", {}),
        ("metrics.psnr", metric(Estimate(24.5, None, None, 1))),
        ("env.git", "0123456789ab+dirty"),
        ("env.git", None),
        ("env.versions.triton", "3.9.0"),
        ("numerics", "kernel"),
    ],
)
def test_accepted(result: Result, place: str, value: object) -> None:
    validate(changed(result, place, value))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("schema", 2, "schema: 1 was expected"),
        ("extra", 1, "'extra' was unexpected"),
        ("rank", 1.5, "rank: 1.5 is"),
        ("rank", -1, "rank: -1 is"),
        ("seed", "0", "seed: '0' is not of type 'integer'"),
        ("weights", "trianed", "weights: 'trianed' is not one of"),
        ("effective_bits.weight", 0, "effective_bits.weight: 0 is less"),
        ("metrics.psnr.n", 0, "metrics.psnr.n: 0 is less"),
        ("metrics.psnr.value", None, "metrics.psnr.value: None is not of type 'number'"),
        ("metrics.psnr.std", 1.0, "metrics.psnr: .*'std' was unexpected"),
        ("paper", {"fid": None}, "paper.fid: None is not of type 'number'"),
        ("seconds.generate", -1.0, "seconds.generate: -1.0 is less"),
        ("env.git", "/home/user/x", "env.git: '/home/user/x' does not match"),
        ("env.host", "x", "env: .*'host' was unexpected"),
        ("config", "no digest", "config: 'no digest' does not match"),
    ],
)
def test_refused(result: Result, place: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validate(changed(result, place, value))


def test_missing_field(result: Result) -> None:
    broken = dict(result)
    del broken["bytes"]
    with pytest.raises(ValueError, match="'bytes' is a required property"):
        validate(broken)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("place", ["metrics.psnr.value", "metrics.psnr.ci_low", "seconds.generate"])
def test_numbers_that_are_not_finite(
    tmp_path: Path, result: Result, place: str, number: float
) -> None:
    broken = changed(result, place, number)
    with pytest.raises(ValueError, match=f"{place} is {number}"):
        write_result(tmp_path / "result.json", broken)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_reading_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"result\.json: Expecting"):
        read_result(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"result\.json: \[\] is not of type 'object'"):
        read_result(path)


def test_environment_names_no_path() -> None:
    env = environment("cpu")
    assert set(env["versions"]) == {"python", "torch", "diffusers", "transformers", "dirotq"}
    assert env["versions"]["torch"] == torch.__version__
    assert env["device"].startswith("cpu (")
    assert str(Path.home()) not in json.dumps(env)
    assert "/" not in json.dumps(env)


def test_missing_package_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "_PACKAGES", ("torch", "no-such-package-as-this"))
    assert environment()["versions"]["no-such-package-as-this"] is None


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    command = ["git", *identity, "-c", "core.hooksPath=/dev/null", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(name, raising=False)
    git(tmp_path, "init", "--quiet")
    (tmp_path / "code.py").write_text("a = 1\n")
    return tmp_path


def test_source_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = checkout / "code.py"
    assert source_commit(code) is None
    git(checkout, "add", "code.py")
    assert source_commit(code) is None
    git(checkout, "commit", "--quiet", "-m", "x")
    head = git(checkout, "rev-parse", "--short=12", "HEAD").strip()
    assert source_commit(code) == head
    (checkout / "untracked.py").write_text("")
    assert source_commit(code) == head
    assert source_commit(checkout / "untracked.py") is None
    code.write_text("a = 2\n")
    assert source_commit(code) == f"{head}+dirty"
    monkeypatch.setenv("GIT_DIR", "/nonexistent")
    assert source_commit(code) == f"{head}+dirty"
    monkeypatch.setenv("PATH", "")
    assert source_commit(code) is None
