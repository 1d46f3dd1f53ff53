"""Hides prompt syntax behind readable placeholders, so that a language model can copy what it must not touch.

`hide` turns "a (red:1.2) star <lora:x:1>" into "a ⟦1⟧ star ⟦2⟧". `Hidden.problem` says whether a reply still has
each placeholder once, and `Hidden.restore` puts the pieces back byte for byte.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from .syntax import protect, restore

PLACEHOLDER = re.compile(r"⟦([1-9][0-9]{0,5})⟧")
_MARKS = re.compile("([\U000f0000-\U0010ffff⟦⟧])")
_LONGEST_NAME = 80
"""Characters between two escaped brackets that still count as one piece, as in `miku \\(vocaloid\\)`."""


@dataclass(frozen=True)
class Hidden:
    """A text with placeholders, and what they stand for: `⟦1⟧` is the first piece."""

    text: str
    pieces: tuple[str, ...]

    @property
    def only_syntax(self) -> bool:
        """Whether nothing but placeholders can be read."""
        return not any(char.isalnum() for char in PLACEHOLDER.sub("", self.text))

    def problem(self, text: str, wanted: str | None = None) -> str | None:
        """What is wrong with the placeholders of a text that must hold each one of `wanted` exactly once.

        `wanted` is a text with placeholders; None means the hidden text, so all of them.
        """
        expected = Counter(PLACEHOLDER.findall(self.text if wanted is None else wanted))
        found = Counter(PLACEHOLDER.findall(text))
        for number in expected | found:
            if found[number] != expected[number]:
                times = "is missing" if not found[number] else f"stands there {found[number]} times"
                return f"the placeholder ⟦{number}⟧ {times}, it must stand there {_times(expected[number])}"
        if _MARKS.search(PLACEHOLDER.sub("", text)):
            return "the brackets ⟦ and ⟧ may only stand around the number of a placeholder"
        return None

    def restore(self, text: str) -> str:
        """The text with the pieces in place of their placeholders. Check it with `problem` first."""
        return PLACEHOLDER.sub(lambda match: self.pieces[int(match[1]) - 1], text)


def hide(text: str) -> Hidden:
    """The text with each piece of prompt syntax as a placeholder. Brackets ⟦ ⟧ of the user's own are pieces too.

    Raises:
        ValueError: there are more pieces than `syntax.protect` can mark.
    """
    marked, pieces = protect(text)
    parts = _MARKS.split(marked)  # text, mark, text, mark, …, text
    shown, found = [parts[0]], []
    at = 1
    while at < len(parts):
        piece = restore(parts[at], pieces)
        following = restore(parts[at + 2], pieces) if at + 2 < len(parts) else ""
        between = parts[at + 1]
        if (piece, following) == (r"\(", r"\)") and len(between) <= _LONGEST_NAME and "\n" not in between:
            piece += between + following
            at += 2
        found.append(piece)
        shown += [f"⟦{len(found)}⟧", parts[at + 1]]
        at += 2
    return Hidden("".join(shown), tuple(found))


def _times(number: int) -> str:
    return "exactly once" if number == 1 else "not at all"
