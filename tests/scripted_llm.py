"""A language model that answers as a test says, for tests of what is asked and what is made of the answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from atelier.llm.backend import Hooks, Reply, Request

Said = dict[str, Any] | str | BaseException
"""A reply: an object, a raw text, or an error to raise."""


@dataclass(frozen=True)
class Scripted:
    """`answer(options, seed)` gets the listed options, id to text, and gives the reply. `asked` is what it was asked.

    A copy with another seed is the same model, and its requests are in the same list.
    """

    answer: Callable[[dict[str, str], int], Said]
    temperature: float = 0.0
    seed: int = 0
    hooks: Hooks = field(default_factory=Hooks)
    asked: list[Request] = field(default_factory=list, compare=False)
    own: str = field(default_factory=lambda: uuid4().hex)
    name = "scripted"

    def identity(self) -> tuple[Hashable, ...]:
        return (self.own,)

    def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        said = self.answer(listed(request), self.seed)
        if isinstance(said, BaseException):
            raise said
        return Reply(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False), "schema")


def replying(*replies: Said) -> Scripted:
    """Gives one reply per call, the last one for ever."""
    left = iter(replies[:-1])
    return Scripted(lambda options, seed: next(left, replies[-1]))


def listed(request: Request) -> dict[str, str]:
    """The options of a question: id to the rest of its line."""
    return dict(re.findall(r"^([cm]\d+): (.*)$", request.messages[1].content, re.MULTILINE))


def choosing(*words: str) -> Callable[[dict[str, str], int], dict[str, Any]]:
    """Chooses the first option that holds one of the words; "none" if there is none."""

    def answer(options: dict[str, str], seed: int) -> dict[str, Any]:
        fits = [key for word in words for key, text in options.items() if word in text.casefold()]
        return {"because": "it says so", "choice": fits[0] if fits else "none"}

    return answer
