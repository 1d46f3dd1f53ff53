"""The words of a text, folded, so that two wordings of one thing can be compared.

Folding is simple on purpose: Unicode compatibility forms, case and the English plural are the same word. Chinese,
Japanese, Korean and Thai are compared letter by letter, since they join words or hang particles on them.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from .syntax import protect

_ALONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_ALONE}]|[^\W_{_ALONE}]+(?:['’][^\W_{_ALONE}]+)*")

_EMPTY_LISTED = "a an the and of in on at by for from as with to is are was be it its this that there"
_EMPTY = frozenset(_EMPTY_LISTED.split())
"""Words without content of their own. "no", "without", "two" and "above" have some: the picture changes with them."""

_TAGS = re.compile(r"<[^<>\n]*>|\bembedding:[^\s,()\[\]{}]+|\b(?:BREAK|AND)\b")
_WEIGHTS = re.compile(r":\s*[\d.]+\s*(?=[)\]])|(?<!\\)[()\[\]{}|]|\\")


def words(text: str) -> list[str]:
    """All words as they are written, in order."""
    return _WORD.findall(unicodedata.normalize("NFC", text))


def folded_words(text: str) -> list[str]:
    """All words, folded, in order."""
    return [_fold(word) for word in words(unicodedata.normalize("NFKC", text).casefold())]


def content_words(text: str) -> list[str]:
    """The folded words that have content, in order."""
    return [word for word in folded_words(text) if word not in _EMPTY]


def missing_words(wanted: str, text: str) -> list[str]:
    """The content words that `text` holds less often than `wanted` does, each as often as it is missing."""
    return list((Counter(content_words(wanted)) - Counter(content_words(text))).elements())


def mentions(text: str, phrase: str) -> bool:
    """Whether the words of a phrase stand in a text, side by side. A phrase of signs is compared as it is."""
    wanted = folded_words(phrase)
    if not wanted:
        return phrase.strip() in text
    return f" {' '.join(wanted)} " in f" {' '.join(folded_words(text))} "


def find_words(text: str, phrase: str) -> tuple[int, int] | None:
    """Where the words of a phrase first stand in a text side by side: start and end, None if they do not."""
    wanted = folded_words(phrase)
    found = list(_WORD.finditer(text))
    folded = [" ".join(folded_words(word[0])) for word in found]
    for i in range(len(found) - len(wanted) + 1):
        if wanted and folded[i : i + len(wanted)] == wanted:
            return found[i].start(), found[i + len(wanted) - 1].end()
    return None


def phrases(text: str) -> list[str]:
    """The parts of a text between commas and line ends, without blanks around them. Syntax is not taken apart."""
    marked, pieces = protect(text)
    found, used = [], 0
    for part in re.split(r"[,\n]", marked):
        marks = sum(char >= "\U000f0000" for char in part)
        chunk = iter(pieces[used : used + marks])
        used += marks
        found.append("".join(next(chunk) if char >= "\U000f0000" else char for char in part).strip())
    return [phrase for phrase in found if phrase]


def without_syntax(text: str) -> str:
    """A text in plain words: tags go, brackets and weights leave the words that they hold."""
    return _WEIGHTS.sub(" ", _TAGS.sub(" ", text))


def _fold(word: str) -> str:
    """A word without possessive and plural ending. Not every word is folded well, but both sides are alike."""
    word = re.sub(r"['’]s?$", "", word.replace("’", "'"))
    if len(word) < 4 or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "xes", "sses", "zes")):
        return word[:-2]
    return word.removesuffix("s")
