"""One streamed call over the OpenAI client: bounded in size, without redirects, and its reply put together."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from .backend import Mode, Reply

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

CONNECT_SECONDS = 10.0
MAX_TEXT = 1_000_000
"""Characters of answer and reasoning together. An answer has a few hundred, long reasoning a hundred thousand."""
MAX_BYTES = 16_000_000
"""Bytes on the wire. A streamed token takes about 300."""
MAX_DELAY = 20.0
"""The longest wait, in seconds, that a server may ask for with Retry-After."""
NO_KEY = "none"
"""Given to the client, which insists on a key and would else take OPENAI_API_KEY. It is not sent."""
PLAIN_HEADERS = frozenset(
    ("host", "content-type", "content-length", "transfer-encoding", "accept", "connection", "user-agent")
) | {"x-stainless-raw-response"}
"""The headers that are sent besides the key. By the last one the client itself recognises a raw call."""


class ReplyTooLarge(Exception):
    """A reply went over a limit and was cut off. `limit` names it."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


def open_client(url: str, key: str | None, timeout: float) -> AsyncOpenAI:
    """A client for one server, to be used as an async context.

    It follows no redirect, so that the key stays with this server; it sends no key, account or header that the
    client would take from the environment; it goes to this machine without a proxy; and it never retries by itself,
    since retries share one time limit.
    """
    import httpx2
    from openai import AsyncOpenAI

    async def strip(request: httpx2.Request) -> None:
        for name in set(request.headers) - PLAIN_HEADERS:
            del request.headers[name]
        if key is not None:
            request.headers["Authorization"] = f"Bearer {key}"
        request.headers["Accept-Encoding"] = "identity"  # compressed, a small reply could unpack into a huge one

    async def bound(response: httpx2.Response) -> None:
        response.stream = _bounded(response.stream)

    limits = httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout))
    http = httpx2.AsyncClient(
        timeout=limits,
        follow_redirects=False,
        event_hooks={"request": [strip], "response": [bound]},
        # A proxy from the environment does not lead to this machine.
        mounts=dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]")),
    )
    return AsyncOpenAI(base_url=url, api_key=NO_KEY, timeout=limits, max_retries=0, http_client=http)


def _bounded(stream: Any) -> Any:
    """The response stream, which raises ReplyTooLarge after `MAX_BYTES`."""
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in stream:
                size += len(chunk)
                if size > MAX_BYTES:
                    raise ReplyTooLarge(f"{MAX_BYTES // 1_000_000} MB")
                yield chunk

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()


async def read_stream(client: AsyncOpenAI, body: dict[str, Any], mode: Mode, count: Callable[[int], None]) -> Reply:
    """Make one call and put its reply together. `count` takes the number of pieces, about one per token.

    Raises:
        openai.OpenAIError: the server refused or failed.
        ReplyTooLarge: the reply went over a limit; the connection is closed then.
        ValueError: what came is not the protocol.
    """
    raw = await client.chat.completions.with_raw_response.create(**body, stream=True)
    kind = raw.headers.get("content-type", "")
    pieces = _Pieces(count)
    if kind.startswith("text/html"):
        raise ValueError("a web page")
    if kind.startswith("application/json"):  # a server that does not stream
        whole = json.loads(await raw.http_response.aread())
        _raise_error_in(whole, raw.http_request)
        pieces.add(whole)
    else:
        async with raw.parse() as stream:
            async for chunk in stream:
                # What is no object comes out of the client as it came in.
                pieces.add(chunk.to_dict(warnings=False) if hasattr(chunk, "to_dict") else chunk)
    return pieces.reply(mode)


def _raise_error_in(whole: Any, request: httpx2.Request) -> None:
    """Some servers answer 200 with an error. In a stream, the client itself looks for one."""
    from openai import APIError

    if isinstance(whole, dict) and whole.get("error") and not whole.get("choices"):
        raise APIError("an error with status 200", request, body=whole["error"])


class _Part(BaseModel):
    """A part of a content that is a list. Thinking has another type."""

    type: str = "text"
    text: str | None = None


class _Held(BaseModel):
    """What a choice holds, of a whole reply or of one piece."""

    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    delta: _Held | None = None
    message: _Held | None = None
    finish_reason: str | None = None


class _Chunk(BaseModel):
    """A streamed piece or a whole reply, as far as it is read. Servers differ in what they leave out."""

    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None


class _Pieces:
    """Collects what the chunks of one reply bring."""

    def __init__(self, count: Callable[[int], None]) -> None:
        self.count = count
        self.text: list[str] = []
        self.size = 0
        self.seen = 0
        self.reasoned = False
        self.refused = False
        self.finish: str | None = None
        self.usage: dict[str, Any] = {}

    def add(self, data: Any) -> None:
        """Take one chunk. Raises ValueError if it is none."""
        chunk = _Chunk.model_validate(data)
        self.usage = chunk.usage or self.usage
        for choice in (chunk.choices or [])[:1]:
            held = choice.delta or choice.message or _Held()
            parts = [_Part(text=held.content)] if isinstance(held.content, str) else held.content or []
            content = "".join(part.text or "" for part in parts if part.type == "text")
            reasoning = held.reasoning_content or held.reasoning or ""
            reasoned = bool(reasoning) or any(part.type != "text" for part in parts)
            self.reasoned |= reasoned
            self.text.append(content)
            self.size += len(content) + len(reasoning)
            self.seen += bool(content) or reasoned
            self.refused |= bool(held.refusal)
            self.finish = choice.finish_reason or self.finish
        if self.size > MAX_TEXT:
            raise ReplyTooLarge(f"{MAX_TEXT // 1000},000 characters")
        self.count(self.seen)

    def reply(self, mode: Mode) -> Reply:
        ends = {"length": "limit", "content_filter": "withheld", None: "cut"}
        return Reply(
            "".join(self.text),
            mode,
            "withheld" if self.refused else ends.get(self.finish, "done"),
            self._tokens("prompt_tokens"),
            self._tokens("completion_tokens"),
            self.reasoned,
        )

    def _tokens(self, name: str) -> int | None:
        return self.usage[name] if isinstance(self.usage.get(name), int) else None


def retry_delay(headers: Mapping[str, str], attempt: int) -> float | None:
    """Seconds to wait before the next attempt; None if the server asks for more than `MAX_DELAY`.

    Retry-After is a number of seconds or a date (RFC 9110, 10.2.3). Without it the wait doubles each time.
    """
    asked = headers.get("retry-after", "").strip()
    try:
        delay = float(asked) if asked else 0.5 * 2**attempt
    except ValueError:
        delay = _seconds_until(asked)
    return max(0.0, delay) if delay <= MAX_DELAY else None


def _seconds_until(date: str) -> float:
    """Seconds until an HTTP date; 1 for what is none."""
    try:
        return (parsedate_to_datetime(date) - datetime.now(timezone.utc)).total_seconds()
    except (ValueError, TypeError):
        return 1.0
