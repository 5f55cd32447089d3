"""Ask every question of a panel once, in parallel, and stop when it can come to nothing."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from dirotq.judge.answers import Answer, AnswerCache, Outcome, parse
from dirotq.judge.clients import Client, RequestFailedError, Turn
from dirotq.judge.protocol import Protocol, Question, Request, magnification, questions, render
from dirotq.judge.rubric import correction
from dirotq.judge.runs import Panel
from dirotq.lab.progress import bar
from dirotq.prompts import Prompt

ATTEMPTS = 3
"""Replies that a judge may give to one question until it fits the schema."""

_log = logging.getLogger(__name__)


class TooManyFailuresError(ValueError):
    """More questions than allowed got no usable answer."""


def ask_all(
    panel: Panel, protocol: Protocol, client: Client, cache: Path, *, max_failed: float
) -> list[Answer]:
    """Every question about every prompt, in the order of prompts.

    Answers are kept in ``cache`` as they come; a later call asks only for the others.

    Raises:
        TooManyFailuresError: more than the share ``max_failed`` of all questions is invalid or
            failed; as soon as that is certain.
        JudgeUnavailableError: no request will get a reply.
        ValueError: an image cannot be read.
    """
    asked = {prompt.id: questions(prompt.id, panel.names, protocol) for prompt in panel.prompts}
    limit = _Limit(sum(map(len, asked.values())), max_failed)
    answers = AnswerCache(cache)
    stopped = threading.Event()

    def ask_prompt(prompt: Prompt) -> list[Answer]:
        # Images are read once a prompt, so memory holds those of as many prompts as threads.
        images = panel.encoded(prompt, protocol.minimum_side)
        magnified = magnification(panel.size, protocol.minimum_side) > 1
        found = []
        for question in asked[prompt.id]:
            if stopped.is_set():
                break
            request = render(question, prompt.text, images, protocol, magnified=magnified)
            outcome = answer(request, client, answers)
            limit.count(question, outcome)
            found.append(Answer(question, outcome))
        return found

    pool = ThreadPoolExecutor(client.concurrency)
    try:
        futures = [pool.submit(ask_prompt, prompt) for prompt in panel.prompts]
        _wait(futures)
    finally:
        # What is being asked now is still answered and kept.
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return [found for future in futures for found in future.result()]


def answer(request: Request, client: Client, cache: AnswerCache) -> Outcome:
    """The kept outcome of a request, or a new one.

    Raises:
        JudgeUnavailableError: no request will get a reply.
    """
    key = request.key(client.name)
    outcome = cache.load(key, request)
    if outcome is None:
        outcome = _converse(request, client)
        if outcome.status != "failed":
            cache.store(key, outcome)
    return outcome


def _converse(request: Request, client: Client) -> Outcome:
    """Ask until a reply fits the schema, each time saying what was wrong with the last one."""
    turns = [Turn("user", request.parts)]
    for attempt in range(1, ATTEMPTS + 1):
        try:
            reply = client.complete(turns, request)
        except RequestFailedError as error:
            return Outcome("failed", None, attempt, None, (), str(error))
        try:
            content = parse(reply.text, request.schema)
        except ValueError as error:
            wrong = str(error)
            # An empty message of the assistant is refused by some servers.
            said = reply.text or "(nothing)"
            turns += [Turn("assistant", (said,)), Turn("user", (correction(wrong),))]
        else:
            return Outcome("valid", content, attempt, reply.format, reply.omitted, None)
    return Outcome("invalid", None, ATTEMPTS, reply.format, reply.omitted, wrong)


def _wait(futures: list["Future[list[Answer]]"]) -> None:
    """Wait for all under a bar; raises what the first one to fail raised."""
    with bar("judging", len(futures)) as tick:
        for future in as_completed(futures):
            future.result()
            tick()


class _Limit:
    """Counts questions without an answer over all threads."""

    def __init__(self, total: int, share: float) -> None:
        self._allowed = share * total
        self._total = total
        self._share = share
        self._lock = threading.Lock()
        self._missing = 0

    def count(self, question: Question, outcome: Outcome) -> None:
        """Count one; raises TooManyFailuresError above the limit."""
        if outcome.status == "valid":
            return
        _log.info("%s: %s (%s)", question, outcome.status, outcome.error)
        with self._lock:
            self._missing += 1
            if self._missing > self._allowed:
                raise TooManyFailuresError(
                    f"{self._missing} of {self._total} questions got no usable answer, allowed is "
                    f"a share of {self._share:g}; the last one: {outcome.error}"
                )
