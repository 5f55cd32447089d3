"""Runs to judge, and a chat-completions endpoint on loopback that answers them in every way."""

import base64
import hashlib
import io
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from dirotq.judge.protocol import encode
from dirotq.judge.runs import REFERENCE

SIDE = 8
FACTOR = 64  # 8 pixels to the 512 of dirotq.judge.protocol
KNOWN = "known-model"

Shown = tuple[str, tuple[str, ...]]
"""Prompt id, and names by position: what the images of a request are."""


def write_runs(folder: Path, methods: Sequence[str], prompts: Mapping[str, str]) -> list[Path]:
    """The reference `runs/base-fp16` and `runs/tiny-<method>` with 8-pixel images; returns their folders."""
    listed = folder / "prompts.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    listed.write_text(yaml.safe_dump(dict(prompts), sort_keys=False))
    runs = []
    for method in ("fp16", *methods):
        run = folder / "runs" / ("base-fp16" if method == "fp16" else f"tiny-{method}")
        (run / "images").mkdir(parents=True)
        for prompt in prompts:
            picture(prompt, method).save(run / "images" / f"{prompt}.png")
        settings = {"eval": {"prompt_set": str(listed), "prompts": None}}
        (run / "config.yaml").write_text(yaml.safe_dump(settings))
        (run / "result.json").write_text(json.dumps(result(method, len(prompts))))
        runs.append(run)
    return runs


def picture(prompt: str, method: str) -> Image.Image:
    """Random pixels that depend on both names."""
    seed = int.from_bytes(hashlib.sha256(f"{prompt}/{method}".encode()).digest()[:8], "little")
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def result(method: str, n: int) -> dict[str, Any]:
    """A valid result.json."""
    bits = 16.0 if method == "fp16" else 4.5
    return {
        "schema": 1, "model": "tiny", "method": method,
        "bits": "w16a16" if method == "fp16" else "w4a4_int4",
        "rank": None, "basis": None, "rotation": None, "rounding": None, "seed": 0,
        "effective_bits": {"weight": bits, "activation": bits},
        "metrics": {"psnr": {"value": 30.0, "ci_low": None, "ci_high": None, "n": n}},
        "paper": None, "seconds": {"total": 1.0}, "bytes": {"checkpoint": None, "peak": None},
        "env": {
            "device": "cpu", "git": None,
            "versions": dict.fromkeys(
                ("python", "torch", "diffusers", "transformers", "dirotq"), "1"
            ),
        },
        "weights": "random", "numerics": "simulated", "config": "0123456789abcdef",
    }  # fmt: skip


def without_time(report: dict[str, Any]) -> dict[str, Any]:
    """What a rerun must repeat."""
    return {name: value for name, value in report.items() if name not in ("command", "env")}


def failure(judge: Callable[..., object], capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """The one line that a failing command ends in."""
    with pytest.raises(SystemExit) as stopped:
        judge(*more)
    assert stopped.value.code == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("error: ")
    return line


@dataclass(frozen=True)
class Response:
    """What the server sends. body: JSON-encoded unless it is bytes. delay: seconds before it."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0


def says(text: str, *, delay: float = 0.0) -> Response:
    """A completion with this text."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": KNOWN}
    return Response(body={**body, "choices": [choice]}, delay=delay)


def refuses(message: str, parameter: str | None = None) -> Response:
    """Status 400 as the API has it."""
    return Response(400, {"error": {"message": message, "param": parameter, "type": "invalid"}})


def verdict(preference: str) -> str:
    return json.dumps({"reason": "seen", "preference": preference})


def equal_scores(count: int, value: int = 3) -> str:
    one = {"alignment": value, "quality": value, "artefacts": value}
    return json.dumps({"reason": "seen", **dict.fromkeys("ABCDEFGH"[:count], one)})


class Endpoint:
    """The server. `respond` decides, `bodies` and `headers` keep what came in, in order."""

    def __init__(self, runs: Sequence[Path], prompts: Sequence[str]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""
        self.prefer: Callable[[str, str, str], str] = lambda prompt, first, second: "tie"
        self.interfere: Callable[[int, dict[str, Any]], Response | None] = lambda n, body: None
        self.lock = threading.Lock()
        self._images = {
            _digest(encode(Image.open(run / "images" / f"{prompt}.png"), FACTOR)): (
                prompt,
                REFERENCE if number == 0 else run.name,
            )
            for number, run in enumerate(runs)
            for prompt in prompts
        }

    def shown(self, body: Mapping[str, Any]) -> Shown:
        """What the first message's images are, found by their pixels."""
        found = [self._images[_digest(png)] for png in pictures(body)]
        assert len({prompt for prompt, _ in found}) == 1
        return found[0][0], tuple(name for _, name in found)

    def good(self, body: Mapping[str, Any]) -> Response:
        """An answer that fits."""
        prompt, names = self.shown(body)
        if "Score each image" in texts(body):
            return says(equal_scores(len(names)))
        return says(verdict(self.prefer(prompt, *names)))

    def respond(self, headers: Mapping[str, str], body: dict[str, Any]) -> Response:
        with self.lock:
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in headers.items()})
            number = len(self.bodies) - 1
        return self.interfere(number, body) or self.good(body)


def texts(body: Mapping[str, Any]) -> str:
    """All text of the first message."""
    return "\n".join(p["text"] for p in body["messages"][0]["content"] if p["type"] == "text")


def pictures(body: Mapping[str, Any]) -> list[bytes]:
    """PNG files of the first message, in order."""
    urls = [p["image_url"]["url"] for p in body["messages"][0]["content"] if "image_url" in p]
    return [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls]


@contextmanager
def serve(endpoint: Endpoint, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """Listen on loopback; connections are cut at the end."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            response = endpoint.respond(dict(self.headers), body)
            if response.delay:
                done.wait(response.delay)
            raw = response.body
            data = raw if isinstance(raw, bytes) else json.dumps(raw).encode()
            try:
                self.send_response(response.status)
                headers = {"Content-Type": "application/json", **response.headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True  # the client did not wait

        def log_message(self, format: str, *args: object) -> None:
            pass

    done = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    # The default polls every half second for the end.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        done.set()
        server.shutdown()
        server.server_close()
        thread.join(5)


def _digest(png: bytes) -> bytes:
    """Of the pixels alone."""
    with Image.open(io.BytesIO(png)) as image:
        return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
