"""A judge behind an OpenAI-compatible endpoint: vLLM, llama.cpp, a hosted model."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dirotq.judge.protocol import Request

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

FORMATS = ("json_schema", "json_object", "text")
"""How an endpoint is held to the schema, strictest first; `text` leaves it to the instructions."""


@dataclass(frozen=True)
class Turn:
    """A message of a conversation. parts: texts and PNG files in order."""

    role: Literal["user", "assistant"]
    parts: tuple[str | bytes, ...]


@dataclass(frozen=True)
class Reply:
    """A judge's text. format: one of FORMATS. omitted: settings that the endpoint did not take."""

    text: str
    format: str
    omitted: tuple[str, ...] = ()


class RequestFailedError(Exception):
    """One request got no reply; others may."""


class JudgeUnavailableError(ValueError):
    """No request will get a reply: wrong address, key or model, or nobody listens."""


class Client(Protocol):
    """A judge. name: of the model, part of every answer's key. concurrency: most requests at once."""

    name: str
    concurrency: int

    def complete(self, turns: Sequence[Turn], request: Request) -> Reply:
        """The judge's next message.

        Raises:
            RequestFailedError: this request got no reply.
            JudgeUnavailableError: no request will get one.
        """
        ...


@dataclass(frozen=True)
class _Dialect:
    """What an endpoint takes. limit: the name it has for the longest answer."""

    format: str = FORMATS[0]
    limit: str = "max_tokens"
    omitted: tuple[str, ...] = ()

    def without(self, parameter: str | None) -> "_Dialect | None":
        """The next one to try after a refusal that names a parameter, or none; None if no one is left."""
        if parameter == self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        if parameter in ("temperature", "seed") and parameter not in self.omitted:
            return replace(self, omitted=(*self.omitted, parameter))
        if self.format != FORMATS[-1]:
            return replace(self, format=FORMATS[FORMATS.index(self.format) + 1])
        return None


class Endpoint:
    """A chat-completions endpoint.

    The `openai` package repeats requests that time out, lose the connection or end in 408, 409,
    429 or 5xx, after the pause that Retry-After asks for or one that doubles, with jitter.

    What an endpoint refuses with 400 or 422 is asked again with less: a parameter that the refusal
    names is renamed or left out, else the next weaker of FORMATS is taken. What worked is kept.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key: str | None = None,
        timeout: float = 120.0,
        retries: int = 6,
        concurrency: int = 4,
    ) -> None:
        """Say where and who; nothing is sent yet.

        Args:
            url: what `/chat/completions` is appended to, such as `http://localhost:8000/v1`.
            model: name that the endpoint knows.
            key: of the account; None for an endpoint that asks for none.
            timeout: seconds for one request.
            retries: how often a request is repeated.
            concurrency: requests at once.

        Raises:
            ValueError: the `openai` package is missing, or the address is none.
        """
        try:
            from openai import Omit, OpenAI
        except ImportError as error:
            raise ValueError(
                "--endpoint needs the package openai, an extra: dirotq[judge]"
            ) from error
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"--endpoint {url}, allowed are http:// and https:// addresses")
        self.name = model
        self.concurrency = concurrency
        self._url = url
        self._dialect = _Dialect()
        # The package takes these three from variables meant for its own service.
        own_service = {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
        self._client = OpenAI(
            base_url=url,
            api_key=key or "none",
            timeout=timeout,
            max_retries=retries,
            default_headers=own_service,  # type: ignore[arg-type]
        )

    def complete(self, turns: Sequence[Turn], request: Request) -> Reply:
        """See Client."""
        from openai import BadRequestError, UnprocessableEntityError

        dialect: _Dialect | None = self._dialect
        refusal: Exception | None = None
        while dialect is not None:
            try:
                text = _text(self._send(turns, request, dialect))
            except (BadRequestError, UnprocessableEntityError) as error:
                refusal = refusal or error
                dialect = dialect.without(error.param)
                continue
            self._dialect = dialect
            return Reply(text, dialect.format, dialect.omitted)
        raise RequestFailedError(_line(refusal))

    def _send(self, turns: Sequence[Turn], request: Request, dialect: _Dialect) -> "ChatCompletion":
        """One request, repeated by the package; refusals come through as they are."""
        import openai

        arguments: dict[str, Any] = {
            "temperature": request.temperature,
            "seed": request.seed,
            dialect.limit: request.max_tokens,
        }
        if dialect.format != "text":
            arguments["response_format"] = _response_format(dialect.format, request.schema)
        for name in dialect.omitted:
            del arguments[name]
        try:
            completion: ChatCompletion = self._client.chat.completions.create(
                model=self.name, messages=[_message(turn) for turn in turns], **arguments
            )
            return completion
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            raise
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise JudgeUnavailableError(f"{self._url} refuses the key: {_line(error)}") from error
        except openai.NotFoundError as error:
            raise JudgeUnavailableError(
                f"{self._url} knows no model {self.name} or is no such endpoint: {_line(error)}"
            ) from error
        except openai.APITimeoutError as error:
            raise RequestFailedError("timed out") from error
        except openai.APIConnectionError as error:
            raise JudgeUnavailableError(f"no connection to {self._url}") from error
        except (openai.OpenAIError, ValueError) as error:
            # ValueError: a body that calls itself JSON and is none.
            raise RequestFailedError(_line(error)) from error


def _message(turn: Turn) -> Any:
    """A turn as the chat-completions API has it."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": _data_url(part)}}
        for part in turn.parts
    ]
    # Several servers take a list of parts from the user only.
    return {"role": turn.role, "content": content if turn.role == "user" else turn.parts[0]}


def _data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _response_format(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    if name == "json_object":
        return {"type": "json_object"}
    named = {"name": "judgement", "strict": True, "schema": schema}
    return {"type": "json_schema", "json_schema": named}


def _text(completion: object) -> str:
    """The first choice's text, empty for a refusal; the package does not check what came back."""
    try:
        content = completion.choices[0].message.content  # type: ignore[attr-defined]
    except (AttributeError, IndexError, TypeError) as error:
        raise RequestFailedError(
            "the endpoint answered something else than a completion"
        ) from error
    return content if isinstance(content, str) else ""


def _line(error: object) -> str:
    """An error in one line of bounded length; servers answer with whole pages."""
    return " ".join(str(error).split())[:300]
