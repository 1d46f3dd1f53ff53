"""Keeps prompt syntax away from the rules that rewrite a wish.

`protect` swaps every piece of prompt syntax for one private-use character, so that a rule can move
text about without seeing inside it; `restore` puts the pieces back byte for byte. Protected are:

- weights and groups, `(word:1.2)`, `((x))`, `[x]`, and choices, `{a|b}`: the outermost balanced pair;
- escapes, a backslash before a bracket or another backslash;
- tags in angle brackets, `<lora:name:0.8>`, and `embedding:name`;
- the words `BREAK` and `AND` in capitals.

A bracket without a partner is ordinary text. Both functions take linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_FIRST, _LAST = 0xF0000, 0x10FFFD
"""Unicode's two supplementary private-use planes: 131,070 marks, which ordinary text does not hold."""

_PAIRS = {")": "(", "]": "[", "}": "{"}

_ATOMS = re.compile(
    r"\\[\\()\[\]{}<>]"
    r"|<\w{1,32}:[^<>\n]*>"
    r"|\bembedding:[^\s,()\[\]{}<>]+"
    r"|\b(?:BREAK|AND)\b"
    r"|[\U000F0000-\U0010FFFF]"
)
"""Syntax without nesting. A mark that was already in the text is syntax too, so it comes back as it was."""


def protect(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the text with each piece of prompt syntax as one mark, and the pieces in order.

    Raises ValueError when there are more pieces than marks.
    """
    parts: list[str] = []
    pieces: list[str] = []
    end = 0
    for start, stop in _spans(text):
        if _FIRST + len(pieces) > _LAST:
            raise ValueError("The wish holds more than 131,070 pieces of prompt syntax. Shorten it.")
        parts += (text[end:start], chr(_FIRST + len(pieces)))
        pieces.append(text[start:stop])
        end = stop
    parts.append(text[end:])
    return "".join(parts), tuple(pieces)


def restore(text: str, pieces: Sequence[str]) -> str:
    """Put the pieces of `protect` back where their marks are now."""
    return re.sub("[\U000f0000-\U0010ffff]", lambda mark: pieces[ord(mark[0]) - _FIRST], text)


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield start and stop of each piece, in order and without overlap: outermost groups, then atoms."""
    atoms = [match.span() for match in _ATOMS.finditer(text)]
    groups = _groups(text, atoms)
    end = 0
    for start, stop in sorted(groups + atoms):
        if start >= end:
            yield start, stop
            end = stop


def _groups(text: str, atoms: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Start and stop of each balanced bracket pair whose brackets are not part of an atom."""
    inside = {at for start, stop in atoms for at in range(start, stop)}
    open_at: list[int] = []
    groups: list[tuple[int, int]] = []
    for match in re.finditer(r"[()\[\]{}]", text):
        at, bracket = match.start(), match[0]
        if at in inside:
            continue
        if bracket not in _PAIRS:
            open_at.append(at)
        elif open_at and text[open_at[-1]] == _PAIRS[bracket]:
            groups.append((open_at.pop(), at + 1))
    return groups
