"""The command `dirotq-judge`."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from dirotq.judge import report
from dirotq.judge.asking import ask_all
from dirotq.judge.clients import Client, Endpoint
from dirotq.judge.local import LocalModel
from dirotq.judge.protocol import Protocol
from dirotq.judge.runs import load_panel
from dirotq.lab.devices import resolve_device
from dirotq.lab.progress import watch_interrupts


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge what the command line says; bad input ends in one line on stderr and exit status 1."""
    watch_interrupts()
    parsed = _parser().parse_args(arguments)
    try:
        folder, table = run(parsed)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(1)
    sys.stdout.write(f"{table}\n\n{folder / 'judge.json'}\n{folder / 'answers.csv'}\n")


def run(arguments: argparse.Namespace) -> tuple[Path, str]:
    """Ask, analyse and write; returns the folder of the results and the table to show.

    Raises:
        ValueError: a setting or a run that cannot be used, a judge that cannot be reached, too
            many questions without an answer; answers so far are kept in the cache.
        OSError: a place that cannot be written.
    """
    protocol = _protocol(arguments)
    panel = load_panel(arguments.reference, arguments.runs, arguments.prompts)
    device = torch.device("cpu") if arguments.endpoint else resolve_device("auto")
    client = _client(arguments, device)
    answers = ask_all(panel, protocol, client, arguments.cache, max_failed=arguments.max_failed)
    found = report.build(panel, protocol, client.name, answers, device)
    named = re.sub(r"[^A-Za-z0-9._-]+", "-", client.name)
    default = Path("outputs/judge") / f"{named}-{report.digest(panel, protocol, client.name)}"
    folder: Path = arguments.out or default
    report.write(folder, found, answers)
    return folder, report.table(found)


def _protocol(arguments: argparse.Namespace) -> Protocol:
    for name, low in (("repeats", 1), ("retries", 0), ("seed", 0)):
        if getattr(arguments, name) < low:
            raise ValueError(
                f"--{name} {getattr(arguments, name)}, allowed are integers from {low}"
            )
    if not 0 <= arguments.temperature <= 2:
        raise ValueError(f"--temperature {arguments.temperature:g}, allowed are numbers 0 to 2")
    if not 0 < arguments.timeout < float("inf"):
        raise ValueError(f"--timeout {arguments.timeout:g}, allowed are numbers above 0")
    if not 0 <= arguments.max_failed <= 1:
        raise ValueError(f"--max-failed {arguments.max_failed:g}, allowed are shares 0 to 1")
    return Protocol(
        seed=arguments.seed, repeats=arguments.repeats, temperature=arguments.temperature
    )


def _client(arguments: argparse.Namespace, device: torch.device) -> Client:
    if arguments.local is not None:
        for name in ("model", "api_key_variable", "concurrency"):
            if getattr(arguments, name) is not None:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} belongs to --endpoint, not to --local")
        return LocalModel(arguments.local, device)
    if arguments.model is None:
        raise ValueError("--model is missing: the endpoint's name of the judge")
    concurrency = 4 if arguments.concurrency is None else arguments.concurrency
    if concurrency < 1:
        raise ValueError(f"--concurrency {concurrency}, allowed are integers from 1")
    return Endpoint(
        arguments.endpoint,
        arguments.model,
        key=_key(arguments.api_key_variable),
        timeout=arguments.timeout,
        retries=arguments.retries,
        concurrency=concurrency,
    )


def _key(variable: str | None) -> str | None:
    """The account's key, which must not stand on a command line."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ValueError(f"--api-key-variable {variable}: no such environment variable is set")
    return key


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dirotq-judge",
        description="Let a vision-language model compare runs over the same prompts, blind.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run directories of the candidates")
    add("--reference", type=Path, required=True, metavar="RUN", help="run of method=fp16")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible, ends in /v1")
    where.add_argument("--local", type=Path, metavar="FOLDER", help="a transformers model")
    add("--model", metavar="NAME", help="the endpoint's name of the judge")
    add(
        "--api-key-variable", metavar="NAME", help="environment variable that holds the endpoint's key"
    )  # fmt: skip
    add("--prompts", type=int, metavar="N", help="only the first N prompts; all by default")
    add("--repeats", type=int, default=1, metavar="N", help="ask each question N times; 1")
    add("--temperature", type=float, default=0.0, metavar="T", help="of the judge; 0")
    add("--seed", type=int, default=0, metavar="N", help="of the order of images; 0")
    add("--concurrency", type=int, metavar="N", help="requests to the endpoint at once; 4")
    add("--timeout", type=float, default=120.0, metavar="S", help="seconds for a request; 120")
    add("--retries", type=int, default=6, metavar="N", help="repeats of a failed request; 6")
    add(
        "--max-failed", type=float, default=0.1, metavar="SHARE",
        help="share of questions that may go without an answer; 0.1",
    )  # fmt: skip
    add(
        "--cache", type=Path, default=Path("outputs/cache/judge"), metavar="FOLDER",
        help="answers that are kept; outputs/cache/judge",
    )  # fmt: skip
    add(
        "--out", type=Path, metavar="FOLDER",
        help="results; outputs/judge/<judge>-<hash of runs and protocol>",
    )  # fmt: skip
    return parser
