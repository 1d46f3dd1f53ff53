"""Any OpenAI-compatible server as an LLM: Ollama, LM Studio, llama.cpp, vLLM, transformers, hosted ones.

What a server understands is found out by asking it, once per server and model: it may refuse JSON schemas, then
JSON mode is tried, then plain text; and it may refuse a parameter, which is then left out. A refusal costs one
short call and is remembered for the life of the process.
"""

from __future__ import annotations

import asyncio
import base64
import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backend import Hooks, LLMError, LLMSetupError, Message, Mode, Reply, Request
from .faults import expected_errors, explain, own_words, without_key
from .ollama import keep_loaded
from .profiles import resolve
from .running import run_watched
from .transport import open_client, read_stream, retry_delay

if TYPE_CHECKING:
    from openai import AsyncOpenAI

INSTALL_HINT = (
    "LLM Server needs the OpenAI client, version 3 or newer. Run in ComfyUI's Python environment: "
    'pip install "openai>=3"'
)
RETRIES = 3
"""How often a busy or failing server is asked again, with back-off."""
MODES: tuple[Mode, ...] = ("schema", "json", "text")
OPTIONAL = ("stream_options", "seed", "max_tokens", "temperature")
"""Parameters that some server refuses and that an answer can do without, in the order of looking for them."""
KEEP_DEFAULT = -1
"""`keep_alive` that leaves it to the server how long the model stays loaded."""


@dataclass(frozen=True)
class Dialect:
    """What a server takes for a model: how it holds a reply to a form, and which parameters it refuses."""

    mode: Mode = "schema"
    refused: frozenset[str] = frozenset()

    def lower(self, parameter: str | None, message: str) -> Dialect | None:
        """The dialect to try after a refusal that names a parameter or does not; None if there is none left."""
        for name in OPTIONAL:
            if name not in self.refused and (name == parameter or name in message):
                return replace(self, refused=self.refused | {name})
        if self.mode == "text":
            return None
        return replace(self, mode=MODES[MODES.index(self.mode) + 1])


@functools.cache
def known_dialects() -> dict[tuple[str, str], Dialect]:
    """The dialects that worked, by address and model."""
    return {}


@dataclass(frozen=True)
class ServerLLM:
    """A model on an OpenAI-compatible server.

    Args:
        base_url: address up to and with `/v1`; may be empty if the profile names one.
        model: the model's name on that server.
        profile: names the key, see `profiles.py`. Without one no key is sent.
        timeout: seconds that one call may take, retries and waits included.
        max_tokens: longest reply, reasoning included.
        keep_alive: for Ollama, seconds that the model stays loaded after a reply; 0 unloads it at once.
        profiles_folder: folder of `llm_profiles.json`.
    """

    base_url: str
    model: str
    profile: str = ""
    temperature: float = 0.0
    seed: int = 0
    timeout: float = 120.0
    max_tokens: int = 2048
    keep_alive: int = KEEP_DEFAULT
    profiles_folder: Path | None = field(default=None, repr=False)
    hooks: Hooks = field(default=Hooks(), repr=False, compare=False)

    @property
    def name(self) -> str:
        return f"{self.model} at {self.base_url or f'profile {self.profile}'}"

    def identity(self) -> tuple[Hashable, ...]:
        return self.base_url, self.profile, self.model, self.max_tokens

    def check(self) -> None:
        """Raise LLMSetupError unless package, address, model name and profile are there. Calls nobody."""
        if not self.model.strip():
            raise LLMSetupError("model is empty. Write the model's name on that server, for example qwen3:4b.")
        resolve(self.base_url, self.profile, self.profiles_folder)
        try:
            import httpx2  # noqa: F401  # comes with version 3
            import openai  # noqa: F401
        except ImportError:
            raise LLMSetupError(INSTALL_HINT) from None

    def complete(self, request: Request) -> Reply:
        self.check()
        url, key = resolve(self.base_url, self.profile, self.profiles_folder)
        outcome = run_watched(lambda count: _outcome(self, url, key, request, count), self.hooks, self.max_tokens)
        # Raised here and not where it came up: the client's own errors hold the request, and that holds the key.
        if isinstance(outcome, LLMError):
            raise outcome
        return outcome


async def _outcome(
    llm: ServerLLM, url: str, key: str | None, request: Request, count: Callable[[int], None]
) -> Reply | LLMError:
    """The reply, or the error to raise, with the key taken out of both."""
    async with open_client(url, key, llm.timeout) as client:
        try:
            reply = await asyncio.wait_for(_negotiate(client, llm, url, request, count), llm.timeout)
        except expected_errors() as error:
            return await explain(error, client, llm, url, key)
        if llm.keep_alive != KEEP_DEFAULT:
            await keep_loaded(client, url, llm.model, llm.keep_alive)
    return replace(reply, text=without_key(key, reply.text))


async def _negotiate(
    client: AsyncOpenAI, llm: ServerLLM, url: str, request: Request, count: Callable[[int], None]
) -> Reply:
    """Ask in the best dialect that the server takes."""
    from openai import BadRequestError, UnprocessableEntityError

    dialect = known_dialects().get((url, llm.model), Dialect())
    while True:
        try:
            reply = await _persist(client, llm, dialect, request, count)
        except (BadRequestError, UnprocessableEntityError) as error:
            lower = dialect.lower(error.param, own_words(error))
            if lower is None:
                raise
            dialect = lower
        else:
            known_dialects()[url, llm.model] = dialect
            return reply


async def _persist(
    client: AsyncOpenAI, llm: ServerLLM, dialect: Dialect, request: Request, count: Callable[[int], None]
) -> Reply:
    """Ask again, later and later, while the server is busy or fails."""
    from openai import InternalServerError, RateLimitError

    for attempt in range(RETRIES + 1):
        try:
            return await read_stream(client, parameters(llm, dialect, request), dialect.mode, count)
        except (RateLimitError, InternalServerError) as error:
            delay = retry_delay(error.response.headers, attempt)
            if attempt == RETRIES or delay is None:
                raise
        await asyncio.sleep(delay)
    raise AssertionError("the loop returns or raises")


def _content(message: Message) -> str | list[dict[str, Any]]:
    """A turn as the protocol has it: a text, or a list of parts when there is a picture."""
    if message.picture is None:
        return message.content
    url = f"data:image/jpeg;base64,{base64.b64encode(message.picture.jpeg).decode()}"
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": message.content}]


def parameters(llm: ServerLLM, dialect: Dialect, request: Request) -> dict[str, Any]:
    """The body of one call."""
    body: dict[str, Any] = {
        "model": llm.model,
        "messages": [{"role": message.role, "content": _content(message)} for message in request.messages],
        "temperature": llm.temperature,
        "seed": llm.seed,
        "max_tokens": llm.max_tokens,
        "stream_options": {"include_usage": True},
    }
    for name in dialect.refused:
        del body[name]
    if "max_tokens" in dialect.refused:
        body["max_completion_tokens"] = llm.max_tokens  # what OpenAI's reasoning models take instead
    if dialect.mode == "schema":
        form = {"name": "answer", "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    elif dialect.mode == "json":
        body["response_format"] = {"type": "json_object"}
    return body
