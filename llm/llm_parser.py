"""Reads a wish with a language model, and checks what comes back against the wish.

After DiffusionGPT (arXiv 2401.10061, section 3.1): the model tells which of four kinds a wish is and what its core
is; here also style, edit and language. One question, one answer with a closed choice for the kind. Prompt syntax
is hidden behind placeholders (`placeholders.py`) before the wish is shown. An answer that loses one, or that has
nothing to do with the wish, is sent back to the model; when that does not help, the rules read the wish.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from .ask import Trace, ask_traced
from .backend import LLM, LLMError
from .language import is_latin
from .parser import Kind
from .placeholders import PLACEHOLDER, Hidden, hide
from .prompts import question
from .wish import Wish, read_by_rules
from .words import content_words, folded_words, phrases, without_syntax, words

OnError = Literal["rules", "stop"]

MAX_CHARACTERS = 2000
"""Longest wish that a model is asked about. It has to repeat the wish, and many small models take 8,000 tokens in all.
A longer text is mostly a finished prompt, which the rules leave as it is."""


def _language_code(code: str) -> str:
    """A BCP-47 code in its usual spelling: language in small letters."""
    primary, *rest = code.strip().replace("_", "-").split("-")
    spelled = "-".join([primary.lower(), *rest])
    if not re.fullmatch(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8}){0,4}", spelled):
        raise ValueError(f"{code!r} is no BCP-47 code such as en, de, ko or zh-Hant; und if you cannot tell")
    return spelled


class WishAnswer(BaseModel):
    """What a model reads in a wish."""

    language: Annotated[str, AfterValidator(_language_code)] = Field(description="BCP-47 code, such as en, de, ko")
    kind: Kind
    prompt: str
    negative: str
    style_words: list[str]
    edit_instruction: str
    english: str


def read_wish(wish: str, llm: LLM | None = None, on_error: OnError = "rules") -> Wish:
    """Read a wish with a model, or by rules without one.

    Args:
        wish: what somebody wants to see, in any language.
        llm: the model to ask.
        on_error: what to do when the model gives no usable answer, or the wish is too long for it: "rules" lets the
            rules read it and says why in the trace, "stop" raises.

    Raises:
        ValueError: the wish is without text, or says only what to leave out.
        LLMError: there is no answer, and `on_error` is "stop".
    """
    by_rules = read_by_rules(wish)
    if llm is None:
        return by_rules
    hidden = hide(wish)
    if hidden.only_syntax:
        return replace(by_rules, trace=(*by_rules.trace, "Nothing but prompt syntax: the LLM was not asked."))
    try:
        if len(hidden.text) > MAX_CHARACTERS:
            raise LLMError(
                f"The wish has {len(hidden.text)} characters, and an LLM is asked about {MAX_CHARACTERS} at the most. "
                "Shorten it, or set on_error to rules."
            )
        answer, asked = ask_traced(llm, question("wish", wish=hidden.text), _answer_type(hidden, by_rules.language))
    except LLMError as error:
        if on_error == "stop":
            raise
        why = f"The LLM was of no help, so the rules read the wish. {error}"
        logging.warning("Atelier: %s", why)
        return replace(by_rules, trace=(why, *by_rules.trace), asked=error.trace)
    return _reading(by_rules, hidden, answer, asked)


def _answer_type(hidden: Hidden, language: str) -> type[WishAnswer]:
    """The answer type for one wish: what does not fit the wish is an error that the model gets to see."""

    class Checked(WishAnswer):
        @model_validator(mode="after")
        def _fits(self) -> Checked:
            problem = _problem(self, hidden, language)
            if problem:
                raise ValueError(problem)
            return self

    return Checked


def _problem(answer: WishAnswer, hidden: Hidden, language: str) -> str | None:
    """Why an answer cannot be one to this wish, None if it can. `language` is what the letters of the wish say."""
    if problem := hidden.problem(f"{answer.prompt} {answer.negative}"):
        return f"prompt and negative: {problem} in one of them"
    if not answer.prompt.strip():
        return "prompt: it is empty"
    foreign = language not in ("en", "und")
    if foreign and answer.language in ("en", "und"):
        return f"language: the wish is not in English, its letters look like {language}"
    if _is_english(answer.language):
        english = ""
    else:
        english = answer.english
        if (foreign or answer.language != "und") and not english.strip():
            return f"english: it is empty, but the wish is in {answer.language}"
        if english and not is_latin(without_syntax(english)):
            return "english: it is not in English"
        if english and (problem := hidden.problem(english, answer.prompt)):
            return f"english: {problem}"
    extras = " ".join([answer.edit_instruction, *answer.style_words])
    if unknown := set(PLACEHOLDER.findall(extras)) - set(PLACEHOLDER.findall(hidden.text)):
        return f"edit_instruction and style_words: there is no placeholder {', '.join(sorted(unknown))}"
    if max(len(answer.prompt), len(english) // 3) > 2 * len(hidden.text) + 200:
        return "prompt: it is far longer than the wish"
    asks = answer.kind in ("prompt", "instruction") and content_words(hidden.text)
    if asks and not set(content_words(answer.prompt)) & set(content_words(hidden.text)):
        return "prompt: it has none of the words of the wish"
    return None


def _reading(by_rules: Wish, hidden: Hidden, answer: WishAnswer, asked: Trace) -> Wish:
    """The wish as the model read it, with the user's own syntax and without what the model made up."""
    trace = [f"{answer.kind}: read by {asked.llm}, {_calls(asked)}."]
    prompt, negative = answer.prompt.strip(), answer.negative.strip()
    english = answer.english.strip()
    in_english = _is_english(answer.language)
    if in_english:
        negative = _said(negative, hidden.text, trace)
    if answer.kind == "prompt":
        cut = _is_cut(prompt, hidden.text, negative, in_english)
        prompt, negative = _unchanged(by_rules, hidden, prompt, negative, cut, trace)
    else:
        prompt, negative = hidden.restore(prompt), hidden.restore(negative)
    return Wish(
        wish=by_rules.wish,
        kind=answer.kind,
        prompt=prompt,
        negative=negative,
        style_words=_style_words(answer, hidden, trace),
        edit_instruction=hidden.restore(answer.edit_instruction.strip()),
        language=answer.language,
        english=prompt if in_english else hidden.restore(english),
        trace=tuple(trace),
        asked=asked,
    )


def _unchanged(
    by_rules: Wish, hidden: Hidden, prompt: str, negative: str, cut: bool, trace: list[str]
) -> tuple[str, str]:
    """Prompt and negative of a wish that is a prompt: byte for byte, or word for word with the negative `cut` out."""
    if not negative:
        trace.append("A prompt: returned unchanged.")
        return by_rules.wish, ""
    if cut:
        trace.append(f"left out (read by the LLM): {hidden.restore(negative)}.")
        return hidden.restore(prompt), hidden.restore(negative)
    trace.append("A prompt, but the LLM changed more than that: the rules decided what to leave out.")
    if by_rules.kind == "prompt":
        return by_rules.prompt, by_rules.negative
    return by_rules.wish, ""


def _said(negative: str, wish: str, trace: list[str]) -> str:
    """The negative without phrases that the wish has no word of: models like to add "blurry, low quality"."""
    said = set(folded_words(wish))
    parts = phrases(negative)
    kept = [part for part in parts if PLACEHOLDER.search(part) or said & set(content_words(part))]
    if len(kept) == len(parts):
        return negative
    trace.append(f"Not in the wish, so not left out: {', '.join(part for part in parts if part not in kept)}.")
    return ", ".join(kept)


def _style_words(answer: WishAnswer, hidden: Hidden, trace: list[str]) -> tuple[str, ...]:
    """The style words that the wish, or its English version, has."""
    said = set(folded_words(f"{hidden.text} {answer.english}"))
    found = [style.strip() for style in answer.style_words if style.strip()]
    kept = [style for style in found if set(content_words(style)) <= said]
    if made_up := [style for style in found if style not in kept]:
        trace.append(f"Style words that are not in the wish, dropped: {', '.join(made_up)}.")
    return tuple(dict.fromkeys(hidden.restore(style) for style in kept))


def _is_cut(prompt: str, wish: str, negative: str, in_english: bool) -> bool:
    """Whether a prompt is the wish without what the negative says: no word is moved or added, and none else is lost.

    A piece that is gone does not reach over a comma. In English each has a word of the negative. In other languages,
    where the negative is a translation, no more pieces are gone than the negative has phrases.
    """
    left = iter(words(prompt))
    expected = next(left, None)
    gone: list[list[str]] = []
    for phrase in phrases(wish):
        gone.append([])
        for word in words(phrase):
            if word == expected:
                expected = next(left, None)
                gone.append([])
            else:
                gone[-1].append(word)
    pieces = [" ".join(piece) for piece in gone if piece]
    if expected is not None:
        return False
    if in_english:
        unwanted = set(content_words(negative))
        return all(unwanted & set(content_words(piece)) for piece in pieces)
    return len(pieces) <= len(phrases(negative))


def _is_english(language: str) -> bool:
    return language.split("-")[0] == "en"


def _calls(asked: Trace) -> str:
    if asked.cached:
        return "remembered from before"
    return "one call" if asked.calls == 1 else f"{asked.calls} calls"
