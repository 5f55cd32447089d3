"""Answers of a real HTTP server: good, slow, wrong, limited, refused and garbage.

Three images a prompt make one scoring question and six preferences.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.judging import (
    KNOWN,
    Endpoint,
    Response,
    equal_scores,
    failure,
    refuses,
    says,
    texts,
    verdict,
    without_time,
)

Judge = Callable[..., dict[str, Any]]


def test_a_slow_answer_is_asked_for_again(judge: Judge, endpoint: Endpoint) -> None:
    endpoint.interfere = lambda n, body: Response(delay=5) if n == 0 else None
    report = judge("--prompts=1", "--timeout=1.5")
    assert report["answers"]["valid"] == 7
    assert endpoint.bodies[0] == endpoint.bodies[1]
    assert len(endpoint.bodies) == 8


def test_an_answer_that_never_comes_is_left_out(judge: Judge, endpoint: Endpoint) -> None:
    slow: list[dict[str, Any]] = []

    def interfere(n: int, body: dict[str, Any]) -> Response | None:
        slow.extend([body] if n == 1 else [])
        return Response(delay=5) if body in slow else None

    endpoint.interfere = interfere
    report = judge("--prompts=1", "--timeout=1.5", "--retries=1", "--max-failed=0.2")
    assert (report["answers"]["valid"], report["answers"]["failed"]) == (6, 1)
    # The other order of the pair does not count without this one.
    assert sum(pair["win_rate"] is None for pair in report["pairs"]) == 1
    endpoint.interfere = lambda n, body: None
    asked = len(endpoint.bodies)
    assert judge("--prompts=1")["answers"]["valid"] == 7
    assert len(endpoint.bodies) == asked + 1


def test_a_wrong_answer_is_corrected(judge: Judge, endpoint: Endpoint) -> None:
    def interfere(n: int, body: dict[str, Any]) -> Response | None:
        if len(body["messages"]) > 1:
            return None
        return says('{"reason": "x", "preference": "C"}')

    endpoint.interfere = interfere
    report = judge("--prompts=1")
    assert (report["answers"]["valid"], report["answers"]["repaired"]) == (7, 7)
    assert len(endpoint.bodies) == 14
    told = [body["messages"] for body in endpoint.bodies if len(body["messages"]) > 1]
    assert [[turn["role"] for turn in turns] for turns in told] == [
        ["user", "assistant", "user"]
    ] * 7
    assert "'C' is not one of ['A', 'B', 'tie']" in told[1][2]["content"][0]["text"]


def test_garbage_is_invalid_counted_and_not_asked_again(judge: Judge, endpoint: Endpoint) -> None:
    def interfere(n: int, body: dict[str, Any]) -> Response | None:
        return says(["", "{", "B, clearly."][n % 3]) if "Score each" not in texts(body) else None

    endpoint.interfere = interfere
    report = judge("--prompts=1", "--max-failed=1")
    assert (report["answers"]["valid"], report["answers"]["invalid"]) == (1, 6)
    assert len(endpoint.bodies) == 1 + 6 * 3
    assert report["position_bias"] is None
    assert {pair["verdict"] for pair in report["pairs"]} == {"too few prompts"}
    # What the judge says at temperature 0 it would say again.
    assert without_time(judge("--prompts=1", "--max-failed=1")) == without_time(report)
    assert len(endpoint.bodies) == 1 + 6 * 3


def test_a_run_with_too_many_failures_fails(
    judge: Judge, endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.interfere = lambda n, body: says("I cannot help with that.")
    line = failure(judge, capsys, "--max-failed=0.25")
    assert line.startswith(
        "error: 8 of 28 questions got no usable answer, allowed is a share of 0.25; "
        "the last one: not JSON"
    )
    assert len(endpoint.bodies) == 8 * 3  # certain after the eighth
    assert not (tmp_path / "out").exists()


def test_bodies_that_are_no_completion_are_failures(judge: Judge, endpoint: Endpoint) -> None:
    bodies = [b"<html>busy</html>", b'{"choices": [', b"{}", b'{"choices": []}', b'"text"', b"null"]

    def interfere(n: int, body: dict[str, Any]) -> Response | None:
        kind = "text/html" if n == 0 else "application/json"
        return Response(body=bodies[n], headers={"Content-Type": kind}) if n < 6 else None

    endpoint.interfere = interfere
    counts = judge("--prompts=1", "--max-failed=1")["answers"]
    assert (counts["failed"], counts["valid"]) == (6, 1)
    assert judge("--prompts=1")["answers"]["valid"] == 7
    assert len(endpoint.bodies) == 7 + 6


def test_rate_limits_and_server_errors_are_waited_for(judge: Judge, endpoint: Endpoint) -> None:
    times: list[float] = []

    def interfere(n: int, body: dict[str, Any]) -> Response | None:
        times.append(time.monotonic())
        if n == 0:
            return Response(429, {"error": {"message": "slow down"}}, {"Retry-After": "1"})
        if n in (2, 3):
            return Response(503, {"error": {"message": "overloaded"}})
        return None

    endpoint.interfere = interfere
    assert judge("--prompts=1")["answers"]["valid"] == 7
    assert len(times) == 7 + 3
    assert times[1] - times[0] >= 1
    # Half a second, then twice that, each less up to a quarter.
    assert times[3] - times[2] >= 0.375
    assert times[4] - times[3] >= 0.75


def test_weaker_formats_where_the_schema_is_refused(judge: Judge, endpoint: Endpoint) -> None:
    def interfere(n: int, body: dict[str, Any]) -> Response | None:
        kind = body.get("response_format", {}).get("type", "text")
        return refuses(f"{kind} is not supported") if kind in refused else None

    endpoint.interfere = interfere
    refused = {"json_schema"}
    assert judge("--prompts=1")["answers"]["formats"] == {"json_object": 7}
    assert len(endpoint.bodies) == 1 + 7  # refused once and remembered
    refused = {"json_schema", "json_object"}
    assert judge("--prompts=2")["answers"]["formats"] == {"json_object": 7, "text": 7}
    assert len(endpoint.bodies) == 1 + 7 + 2 + 7


def test_parameters_that_are_refused_by_name(judge: Judge, endpoint: Endpoint) -> None:
    def interfere(n: int, body: dict[str, Any]) -> Response | None:
        for name in ("max_tokens", "temperature"):
            if name in body:
                return refuses(f"unsupported parameter {name}", name)
        return None

    endpoint.interfere = interfere
    report = judge("--prompts=1")
    assert report["answers"]["omitted"] == ["temperature"]
    assert report["answers"]["formats"] == {"json_schema": 7}
    assert endpoint.bodies[-1]["max_completion_tokens"] == 1024
    assert len(endpoint.bodies) == 2 + 7


def test_one_refused_request_does_not_weaken_the_others(judge: Judge, endpoint: Endpoint) -> None:
    """Such as one that is too long."""

    def interfere(n: int, body: dict[str, Any]) -> Response | None:
        return refuses("too long") if "Score each" in texts(body) else None

    endpoint.interfere = interfere
    report = judge("--prompts=1", "--max-failed=0.2")
    assert report["answers"]["failed"] == 1
    assert report["answers"]["formats"] == {"json_schema": 6}


@pytest.mark.parametrize(
    ("status", "expected"), [(401, "refuses the key"), (403, "refuses the key"), (404, KNOWN)]
)
def test_a_hopeless_endpoint_is_asked_once(
    judge: Judge,
    endpoint: Endpoint,
    capsys: pytest.CaptureFixture[str],
    status: int,
    expected: str,
) -> None:
    endpoint.interfere = lambda n, body: Response(status, {"error": {"message": "no\nway"}})
    assert expected in failure(judge, capsys)
    assert len(endpoint.bodies) == 1


def test_fenced_json_is_accepted(judge: Judge, endpoint: Endpoint) -> None:
    def interfere(n: int, body: dict[str, Any]) -> Response:
        scored = "Score each" in texts(body)
        return says(f"```json\n{equal_scores(3, 4) if scored else verdict('A')}\n```\n")

    endpoint.interfere = interfere
    report = judge("--prompts=1")
    assert report["answers"]["valid"] == 7
    assert report["position_bias"]["value"] == 1.0
    assert report["order_consistency"]["value"] == 0.0
