"""Word dropout: a prompt without some of its words, so that a batch under feedback does not collapse to one picture.

Each word is left out by itself with the probability p, as FABRIC does it against the loss of diversity
(arXiv 2307.10159). A word is what stands between blanks, commas and semicolons. Prompt syntax is never touched.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from .syntax import protect, restore

_WORD = re.compile(r"[^\s,;]+")
_MARK = re.compile("[\U000f0000-\U0010ffff]")


@dataclass(frozen=True)
class Dropped:
    """A prompt after word dropout, and the words that were left out, in order."""

    prompt: str
    words: tuple[str, ...]


def drop_words(prompt: str, p: float, seed: int) -> Dropped:
    """Leave out each word of the prompt with the probability p, but never all of them.

    Args:
        prompt: any text. What stays of it stays byte for byte. Of the separators on both sides of a word that went,
            the stronger one stays.
        p: probability from 0 to 1. At 1 one word stays.
        seed: the same one gives the same words, on every platform.
    """
    marked, pieces = protect(prompt)
    words, separators = _WORD.findall(marked), _WORD.split(marked)
    plain = [i for i, word in enumerate(words) if not _MARK.search(word)]
    rng = random.Random(seed)  # the Mersenne Twister, which is the same everywhere
    gone = [i for i in plain if rng.random() < p]
    if gone and len(gone) == len(plain):
        gone.remove(rng.choice(plain))
    kept = restore(_without(words, separators, set(gone)), pieces)
    return Dropped(kept, tuple(words[i] for i in gone))


def _without(words: list[str], separators: list[str], gone: set[int]) -> str:
    """The text of all words but some. `separators` stand before, between and after the words."""
    out, between = [], separators[0]
    for i, word in enumerate(words):
        after = separators[i + 1]
        if i not in gone:
            out += [between, word]
            between = after
        elif i + 1 == len(words):
            between = after
        elif out:
            between = max(between, after, key=_strength)
    return "".join([*out, between])


def _strength(separator: str) -> int:
    """How much a separator keeps apart: a line end more than a comma, a comma more than a blank."""
    return 2 * ("\n" in separator) + any(mark in separator for mark in ",;")
