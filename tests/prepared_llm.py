"""A language model that gives prepared replies, for tests of what the pack makes of good and bad ones."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from uuid import uuid4

from atelier.llm.backend import Hooks, Reply, Request


@dataclass
class Prepared:
    """One reply per call, the last one for ever; an exception is raised instead. `requests` are those it got."""

    replies: tuple[str | BaseException, ...]
    temperature: float = 0.0
    seed: int = 0
    hooks: Hooks = field(default_factory=Hooks)
    name: str = "prepared"
    requests: list[Request] = field(default_factory=list)
    own: str = field(default_factory=lambda: uuid4().hex)

    def identity(self) -> tuple[Hashable, ...]:
        return (self.own,)

    def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        reply = self.replies[min(len(self.requests), len(self.replies)) - 1]
        if isinstance(reply, BaseException):
            raise reply
        return Reply(reply, "schema")
