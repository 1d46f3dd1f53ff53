"""What a language model is to the rest of the pack: the data on the LLM socket, and how a call can fail.

A backend is a frozen dataclass with a `complete` method. It holds what is needed to call the model and never a
key: keys are looked up by profile name at the moment of the call (`profiles.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

LLM_TYPE = "ATELIER_LLM"
"""Name of the socket that carries an `LLM`."""

Mode = Literal["grammar", "schema", "json", "text"]
"""How the model is held to the answer's form: by a grammar while it decodes, by the server with the JSON
schema, by the server with any JSON, or by the words of the question alone."""


SEEING = (
    "For pictures, take a model that can see: LLM Server with one such as qwen3-vl or gemma3, or LLM from CLIP with a "
    "Qwen3-VL, Qwen3.5, Gemma 3 or Gemma 4 text encoder that has its vision part."
)
"""Advice for errors of models that cannot see."""


class LLMError(Exception):
    """A question got no answer. The text is for the user: what happened, and what to do about it."""

    trace: Any = None
    """The `Trace` of what was tried, when `ask` raised this."""


class LLMSetupError(LLMError):
    """Something is to be installed, loaded or corrected first: package, model, address, profile."""


class LLMConnectionError(LLMError):
    """The model could not be reached, was too slow, or is busy. The same question may work later."""


class LLMAnswerError(LLMError):
    """The model replied, but with nothing that can be used."""


@dataclass(frozen=True)
class Picture:
    """A picture for a model that can see: the bytes of a JPEG file. `pictures.read_picture` makes one."""

    jpeg: bytes = field(repr=False)


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, with a picture before its text or without one."""

    role: Literal["system", "user", "assistant"]
    content: str
    picture: Picture | None = None


@dataclass(frozen=True)
class Request:
    """One call: the conversation so far and the JSON schema that the reply must fit."""

    messages: tuple[Message, ...]
    schema: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What came back. Token counts are None where the backend does not tell them.

    `ended` says why the text ends: the model was done, the token limit was reached, the provider withheld it, or
    the connection ended first. `reasoned` is true if reasoning came in a channel of its own.
    """

    text: str
    mode: Mode
    ended: Literal["done", "limit", "withheld", "cut"] = "done"
    tokens_in: int | None = None
    tokens_out: int | None = None
    reasoned: bool = False


def _no_check() -> None:
    """Nobody can cancel."""


def _no_progress(total: int) -> Callable[[int], None]:
    """Nobody looks."""
    return lambda done: None


@dataclass(frozen=True)
class Hooks:
    """How a running call speaks with its surroundings.

    `check` is called several times a second and raises to cancel; what it raises goes through unchanged, also
    if it is a BaseException. `progress(total)` starts a progress display for at most `total` tokens and
    returns what takes the number of tokens so far. Both are called in the thread that asked.
    """

    check: Callable[[], None] = _no_check
    progress: Callable[[int], Callable[[int], None]] = _no_progress


class LLM(Protocol):
    """A model that can be asked, as it travels on the socket. `dataclasses.replace` sets another seed."""

    temperature: float
    """0 takes the likeliest token each time; higher is more varied."""
    seed: int
    hooks: Hooks

    @property
    def name(self) -> str:
        """What a user calls this model, for traces and messages."""
        ...

    def identity(self) -> tuple[Hashable, ...]:
        """All that the reply depends on besides the request. Equal identities may share cached answers."""
        ...

    def complete(self, request: Request) -> Reply:
        """Send one request and wait for the whole reply.

        Raises:
            LLMError: no reply came. An LLMSetupError if there is a picture and the model is known not to see.
        """
        ...
