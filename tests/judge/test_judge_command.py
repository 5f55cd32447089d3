"""The command: what it sends and writes, what a rerun costs, and where it stops.

Three images a prompt make one scoring question and six preferences; four prompts make 28 questions.
"""

import csv
import itertools
import json
import multiprocessing
import re
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.judging import (
    KNOWN,
    Endpoint,
    Response,
    failure,
    pictures,
    serve,
    without_time,
)

QUESTIONS = 28
Judge = Callable[..., dict[str, Any]]


def test_judges_and_asks_nothing_twice(
    judge: Judge, endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prefer(prompt: str, first: str, second: str) -> str:
        ranking = ["16-bit", "tiny-dirotq", "tiny-svdquant"]
        return "A" if ranking.index(first) < ranking.index(second) else "B"

    endpoint.prefer = prefer
    report = judge("--concurrency=3")
    assert len(endpoint.bodies) == QUESTIONS
    counts = report["answers"]
    assert (counts["asked"], counts["valid"], counts["formats"]) == (28, 28, {"json_schema": 28})
    rates = {(p["first"], p["second"]): p["win_rate"]["value"] for p in report["pairs"]}
    assert rates == {
        ("tiny-svdquant", "16-bit"): 0.0,
        ("tiny-dirotq", "16-bit"): 0.0,
        ("tiny-dirotq", "tiny-svdquant"): 1.0,
    }
    assert {pair["verdict"] for pair in report["pairs"]} == {"too few prompts"}
    assert report["position_bias"]["value"] == 0.5
    assert report["order_consistency"]["value"] == 1.0
    assert report["scores"]["tiny-dirotq"]["quality"]["value"] == 3.0
    assert report["protocol"]["magnification"] == 64
    table = capsys.readouterr().out
    assert "tiny-dirotq    against tiny-svdquant   1.000 [0.398, 1.000]  4 won" in table

    files = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(files) == {"judge.json", "answers.csv"}
    assert len(list(csv.DictReader(files["answers.csv"].decode().splitlines()))) == QUESTIONS
    assert without_time(judge("--concurrency=2")) == without_time(report)
    assert (tmp_path / "out" / "answers.csv").read_bytes() == files["answers.csv"]
    assert len(endpoint.bodies) == QUESTIONS


def test_what_is_sent(judge: Judge, endpoint: Endpoint) -> None:
    judge("--prompts=1", "--repeats=2")
    assert {body["temperature"] for body in endpoint.bodies} == {0.0}
    assert Counter(body["seed"] for body in endpoint.bodies) == {0: 7, 1: 7}
    assert {body["max_tokens"] for body in endpoint.bodies} == {1024}
    assert {body["model"] for body in endpoint.bodies} == {KNOWN}
    formats = [body["response_format"] for body in endpoint.bodies]
    assert {one["type"] for one in formats} == {"json_schema"}
    assert all(one["json_schema"]["strict"] for one in formats)


def test_the_judge_is_blind(judge: Judge, endpoint: Endpoint, runs: list[Path]) -> None:
    judge()
    told = {run.name for run in runs} | {str(run) for run in runs}
    told |= {"p-zebra", "p-yak", "fp16", "svdquant", "dirotq", "tiny", "16-bit", "bit", "quant"}
    told |= {"reference", "original", "w4a4", "images/"}
    for body in endpoint.bodies:
        plain = re.sub(r"base64,[A-Za-z0-9+/=]+", "", json.dumps(body)).lower()
        plain = plain.replace("preference", "")
        assert "image a:" in plain
        assert [word for word in told if word in plain] == []
        for png in pictures(body):
            assert set(chunks(png)) == {b"IHDR", b"IDAT", b"IEND"}
    orders = {endpoint.shown(body) for body in endpoint.bodies}
    asked = [shown for shown in orders if len(shown[1]) == 2]
    assert len(asked) == 4 * 6
    assert all((prompt, names[::-1]) in orders for prompt, names in asked)
    for headers in endpoint.headers:
        assert [word for word in told if word in json.dumps(headers).lower()] == []


def chunks(png: bytes) -> list[bytes]:
    """Names of a PNG file's chunks."""
    place, found = 8, []
    while place < len(png):
        length, name = struct.unpack(">I4s", png[place : place + 8])
        found.append(name)
        place += 12 + length
    return found


def test_an_endpoint_that_goes_down_in_the_middle(
    judge: Judge, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Endpoint([], [])
    first.shown, first.prefer = endpoint.shown, endpoint.prefer  # type: ignore[method-assign]
    with serve(first) as server:
        port = server.server_port

        def interfere(n: int, body: dict[str, Any]) -> Response | None:
            if n == 9:
                server.socket.close()  # no new connection ...
                raise ConnectionAbortedError  # ... and this one ends without a word
            return None

        first.interfere = interfere
        url = first.url
        server.handle_error = lambda *_: None  # type: ignore[method-assign, assignment]
        line = failure(judge, capsys, f"--endpoint={url}", "--retries=1")
    assert line == f"error: no connection to {url}"
    second = Endpoint([], [])
    second.shown = endpoint.shown  # type: ignore[method-assign]
    with serve(second, port):
        assert judge(f"--endpoint={url}")["answers"]["valid"] == QUESTIONS
    assert len(second.bodies) == QUESTIONS - 9
    answered = [json.dumps(body) for body in first.bodies[:9]]
    assert not set(answered) & {json.dumps(body) for body in second.bodies}


def test_a_killed_run_resumes(judge: Judge, endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.interfere = lambda n, body: Response(delay=60) if n == 12 else None
    child = multiprocessing.get_context("fork").Process(target=judge)
    child.start()
    deadline = time.monotonic() + 60
    while len(endpoint.bodies) < 13:
        assert child.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    child.join(10)
    assert not (tmp_path / "out").exists()
    endpoint.interfere = lambda n, body: None
    assert judge()["answers"]["valid"] == QUESTIONS
    assert len(endpoint.bodies) == QUESTIONS + 1  # only the one in flight is asked again


def test_the_key_comes_from_the_named_variable_alone(
    judge: Judge,
    endpoint: Endpoint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "not-for-this-server")
    judge("--prompts=1")
    monkeypatch.setenv("JUDGE_KEY", "for-this-server")
    judge("--prompts=2", "--api-key-variable=JUDGE_KEY")
    assert "not-for-this-server" not in json.dumps(endpoint.headers)
    keys = [headers["authorization"] for headers in endpoint.headers]
    assert keys == ["Bearer none"] * 7 + ["Bearer for-this-server"] * 7
    written = itertools.chain(tmp_path.glob("out/*"), tmp_path.glob("cache/*/*"))
    assert not any("for-this-server" in path.read_text() for path in written)
    monkeypatch.delenv("JUDGE_KEY")
    capsys.readouterr()
    line = failure(judge, capsys, "--api-key-variable=JUDGE_KEY")
    assert line == "error: --api-key-variable JUDGE_KEY: no such environment variable is set"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--repeats=0"], "--repeats 0, allowed are integers from 1"),
        (["--prompts=5"], "--prompts 5, allowed are 1 to 4"),
        (["--max-failed=2"], "--max-failed 2, allowed are shares 0 to 1"),
        (["--timeout=0"], "--timeout 0, allowed are numbers above 0"),
        (["--temperature=-1"], "--temperature -1, allowed are numbers 0 to 2"),
        (["--concurrency=0"], "--concurrency 0, allowed are integers from 1"),
        (
            ["--endpoint=localhost:80"],
            "--endpoint localhost:80, allowed are http:// and https:// addresses",
        ),
    ],
)
def test_bad_settings_end_in_one_line(
    judge: Judge,
    endpoint: Endpoint,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    assert failure(judge, capsys, *arguments) == f"error: {expected}"
    assert endpoint.bodies == []
