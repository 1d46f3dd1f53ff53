"""A language model that knows the answers, to count what it is asked."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from _wishes import Wish
from atelier.llm.backend import Hooks, Reply, Request


@dataclass(frozen=True)
class Scripted:
    """Reads one wish rightly, votes for the branch or model of its style, and leaves prompts as they are."""

    wish: Wish
    temperature: float = 0.0
    seed: int = 0
    hooks: Hooks = field(default_factory=Hooks)
    name = "scripted"

    def identity(self) -> tuple[str, ...]:
        return (self.name,)

    def complete(self, request: Request) -> Reply:
        return Reply(json.dumps(self._answer(request)), "schema")

    def _answer(self, request: Request) -> dict[str, Any]:
        asked, text = request.schema["properties"], request.messages[1].content
        if "choice" in asked:
            options = dict(line.split(": ", 1) for line in text.splitlines() if line.startswith("c"))
            style = "any style" if self.wish.style == "flat" else self.wish.style
            fitting = [key for key, about in options.items() if style in about]
            return {"because": "it is named", "choice": (fitting or [*options])[0]}
        if "kind" in asked:
            empty = dict.fromkeys(("negative", "edit_instruction", "english"), "")
            return {"language": "en", "kind": self.wish.form, "prompt": self.wish.caption, "style_words": []} | empty
        return {"prompt": text.partition("<prompt>\n")[2].partition("\n</prompt>")[0]}
