"""What no rewrite may take away: each content word of the user's, each sign such as ★, and each byte of prompt syntax.

A language model that follows instructions copies placeholders in place of syntax (`placeholders.py`). One that only
continues texts, such as Promptist's, does not know them: it reads the prompt in plain words, and where those words
stand side by side in what it writes, the user's own bytes are put back in their place.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .placeholders import PLACEHOLDER, Hidden, hide
from .syntax import protect, restore
from .words import find_words, folded_words, missing_words, without_syntax

_DIVIDERS = ("BREAK", "AND")
_PLAIN = re.compile(r"[^\s,;]+")


@dataclass(frozen=True)
class Guarded:
    """A rewrite that keeps everything, or None and why it does not."""

    text: str | None
    why: str = ""


def plain_words(text: str) -> str:
    """A text as a model may read it that knows no prompt syntax; without syntax it is the text itself."""
    if not protect(text)[1]:
        return text.strip()
    plain = re.sub(r"\s+(?=[,;.)])", "", " ".join(without_syntax(text).split()))
    return re.sub(r",[,\s]*,", ",", plain).strip(" ,;")  # commas with nothing between them


def guarded(prompt: str, rewrite: str) -> Guarded:
    """A rewrite of `plain_words(prompt)` with the prompt's syntax back in it, if nothing of the prompt is lost.

    Syntax that the rewrite has of its own gives way to its words.
    """
    hidden, rewrite = hide(prompt), plain_words(rewrite)
    woven = _woven(hidden, plain_words(prompt), rewrite)
    if woven is None:
        lost = missing_words(plain_words(prompt), rewrite)
        return Guarded(None, _told_lost(lost) if lost else "the prompt's syntax has no place in it")
    if problem := broken_promise(hidden, woven):
        return Guarded(None, problem)
    return Guarded(hidden.restore(woven))


def broken_promise(hidden: Hidden, text: str, wanted: str | None = None, own: str = "") -> str | None:
    """What a rewrite with placeholders breaks, or None.

    Args:
        hidden: the user's text with placeholders.
        text: the rewrite.
        wanted: what the rewrite has to keep the words of, with all placeholders: a translation of the user's text;
            None for the text itself.
        own: text whose syntax the rewrite may have as well.
    """
    wanted = hidden.text if wanted is None else wanted
    if problem := hidden.problem(text):
        return problem
    if PLACEHOLDER.findall(text) != PLACEHOLDER.findall(wanted):
        return "the placeholders are not in their order"
    if lost := _lost(hidden, wanted, text):
        return _told_lost(lost)
    if added := [piece for piece in protect(text)[1] if piece not in own]:
        return f"this is prompt syntax that was not there: {added[0]}"
    return None


def opening(prompt: str, count: Callable[[str], int], most: int) -> tuple[str, str]:
    """The part of a prompt that a model reads, and the rest; together they are the prompt byte for byte.

    The part ends before the first BREAK or AND, and holds at most `most` tokens as `count` counts them. It is cut
    before a comma, semicolon or line end if there is one in its second half, else behind a word, and never inside
    syntax.
    """
    marked, pieces = protect(prompt)
    tokens = cut = end = 0
    for word in _PLAIN.finditer(marked):
        between = marked[end : word.start()]
        said = restore(word[0], pieces)
        if any(piece in _DIVIDERS for piece in protect(said)[1]):
            cut = end
            break
        if re.search(r"[,;\n]", between):
            cut = end
        tokens += count(between) + count(f" {plain_words(said)}")
        if tokens > most:
            cut = cut if 2 * cut > end else end
            break
        end = word.end()
    else:
        cut = len(marked)
    return restore(marked[:cut], pieces), restore(marked[cut:], pieces)


def _woven(hidden: Hidden, plain: str, rewrite: str) -> str | None:
    """The rewrite with the hidden text in place of the words that it stands for; None if they are not side by side.

    What stands behind the last word of the hidden text, a LoRA's tag for example, comes last.
    """
    if not hidden.pieces:
        return rewrite
    run = find_words(rewrite, plain)
    if run is None:
        return None
    end = _end_of_words(hidden)
    text = f"{rewrite[: run[0]]}{hidden.text[:end]}{rewrite[run[1] :]}"
    rest = hidden.text[end:]
    return text.rstrip(" \t\n,;") + rest if PLACEHOLDER.search(rest) else text


def _end_of_words(hidden: Hidden) -> int:
    """Where the last word of a hidden text ends, be it plain or in a piece of syntax."""
    end = 0
    for part in re.finditer(rf"{PLACEHOLDER.pattern}|\w+", hidden.text):
        if folded_words(without_syntax(hidden.restore(part[0]))):
            end = part.end()
    return end


def _lost(hidden: Hidden, wanted: str, text: str) -> list[str]:
    """The content words and signs that a rewrite loses, or carries over a BREAK or AND, which divide a prompt."""
    dividers = [number for number, piece in enumerate(hidden.pieces, 1) if piece in _DIVIDERS]
    pattern = "|".join(f"⟦{number}⟧" for number in dividers) or r"(?!)"
    before, after = re.split(pattern, wanted), re.split(pattern, text)
    lost = [word for part, rewritten in zip(before, after, strict=True) for word in missing_words(part, rewritten)]
    return [*lost, *(Counter(_signs(hidden.text)) - Counter(_signs(text))).elements()]


def _signs(text: str) -> list[str]:
    """Signs that are no letters and mean something: ★, ♥, emoji."""
    return [char for char in text if unicodedata.category(char) == "So"]


def _told_lost(lost: list[str]) -> str:
    return f"these words of the prompt are missing: {', '.join(dict.fromkeys(lost))}"
