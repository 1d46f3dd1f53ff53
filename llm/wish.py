"""A wish that has been read in full, and how the rules read one.

`parser.py` has the rules for kind, prompt and negative. Here they are joined by what rules can tell of the rest:
style words from the library's list, an edit instruction where the wording is clear, and the language where the
script or common words show it. What rules cannot tell stays empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from .ask import Trace
from .edits import edit_instruction
from .language import language_of
from .parser import Kind, parse
from .tags import STYLE_WORDS
from .words import folded_words, without_syntax


@dataclass(frozen=True)
class Wish:
    """What a wish says. Every text may hold prompt syntax of the user's, byte for byte as it was written.

    Args:
        wish: as it was written.
        kind: one of the four kinds of DiffusionGPT (arXiv 2401.10061, section 3.1).
        prompt: what to show, in the language of the wish. The wish itself if that is a prompt.
        negative: what to leave out, separated by commas; in English if a language model read the wish.
        style_words: how it is to be drawn, in English.
        edit_instruction: what to change in a picture that is there already; empty for a wish for a new one.
        language: BCP-47 code, `und` if it cannot be told.
        english: the prompt in English; equal to `prompt` if that is English, empty if nobody could translate it.
        trace: in sentences, how this came about.
        asked: the calls of a language model, None if none was asked.
    """

    wish: str
    kind: Kind
    prompt: str
    negative: str
    style_words: tuple[str, ...]
    edit_instruction: str
    language: str
    english: str
    trace: tuple[str, ...]
    asked: Trace | None = None


def read_by_rules(wish: str) -> Wish:
    """Read a wish without a language model.

    Raises:
        ValueError: the wish is without text, or says only what to leave out.
    """
    parsed = parse(wish)
    trace = list(parsed.trace)
    edit, rule = edit_instruction(wish)
    if edit:
        trace.append(f"An edit of a picture ({rule}).")
    language = language_of(without_syntax(wish))
    return Wish(
        wish=wish,
        kind=parsed.kind,
        prompt=parsed.prompt,
        negative=parsed.negative,
        style_words=style_words(parsed.prompt),
        edit_instruction=edit,
        language=language,
        english=parsed.prompt if language == "en" else "",
        trace=tuple(trace),
    )


def style_words(prompt: str) -> tuple[str, ...]:
    """The words of a prompt that name a style, lower-case; those side by side are one: "oil painting"."""
    words = without_syntax(prompt).casefold().replace(",", " , ").split()
    runs = groupby(words, key=lambda word: bool(STYLE_WORDS.intersection(folded_words(word), [word])))
    return tuple(dict.fromkeys(" ".join(run).strip(".;:!?\"'") for is_style, run in runs if is_style))
