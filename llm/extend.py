"""Prompt extension: a prompt in the manner of the prompts that the chosen model was made with.

After DiffusionGPT (arXiv 2401.10061, section 3.4), where a language model enriches the prompt after the example
prompts of the chosen model. What is promised here whatever the model replies: every content word of the user's
remains, as often as it was there; prompt syntax stays byte for byte and in order; nothing comes in that the user
leaves out. A rewrite that breaks a promise goes back to the model, and is dropped if that does not help.

Without a language model, and wherever it is of no help, the embedded default appends: the trigger words that are
missing, then the words for style and quality that at least half of the example prompts share.

The model's own negative prompt is added to the user's, without what the user wants to see.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import BaseModel, model_validator

from .ask import Trace, ask_traced, calls_of
from .backend import LLM, LLMError
from .content_guard import broken_promise
from .placeholders import Hidden, hide
from .prompts import question
from .records import ModelRecord
from .syntax import protect
from .tags import STYLE_WORDS
from .words import content_words, folded_words, mentions, phrases, without_syntax

MAX_CHARACTERS = 2000
"""Longest prompt that a model is asked to rewrite; a longer one gets the embedded default."""
SHARED_PHRASES = 5
"""Phrases that the embedded default takes from the example prompts at the most."""
SHOWN_EXAMPLES = 5
SHOWN_CHARACTERS = 300
"""Of one example prompt, so that five of them fit into any context."""
ADDED_WORDS = 40
"""Words that a rewrite may be longer by. The question says thirty; models do not count well."""
LONGEST_PHRASE = 5
"""Words of a phrase that still counts as style and not as content."""

_QUALITY_LISTED = """
masterpiece quality detailed details intricate focus highres absurdres resolution 4k 8k hdr uhd lighting bokeh depth
contrast vibrant tones texture textured grain dramatic moody aesthetic strokes brushstrokes outlines shading
"""
_MODIFIERS_LISTED = """
best highly very high ultra extremely style styled drawn painted work soft sharp loose thick thin clean bold fine warm
cool dark bright pale muted natural simple colours colors field shallow film studio rim volumetric
black white grey gray red blue green golden monochrome
"""


@dataclass(frozen=True)
class Extended:
    """A prompt in the model's manner, its negative prompt, in sentences how they came about, and calls to the LLM."""

    prompt: str
    negative: str
    trace: tuple[str, ...]
    calls: int = 0


class ExtendedPrompt(BaseModel):
    """A prompt in the manner of a model's example prompts."""

    prompt: str


def extend(prompt: str, negative: str, record: ModelRecord, llm: LLM | None, strict: bool = False) -> Extended:
    """Write a prompt after the example prompts and trigger words of a model, and take its negative prompt.

    It can be called again, for the next model of a chain: what is there already is not added twice.

    Args:
        prompt: the user's; not empty.
        negative: the user's, may be empty. It stays as it is, the model's follows.
        record: the chosen model.
        llm: rewrites the prompt; None for the embedded default.
        strict: whether a failure of the LLM is raised instead of leaving the embedded default.

    Raises:
        LLMError: the LLM gave no usable rewrite, and `strict` is set.
    """
    trace: list[str] = []
    written, calls = prompt, 0
    if llm is not None:
        written, calls = _rewritten(prompt, negative, record, llm, strict, trace)
    styled = written != prompt
    additions = [words for words in record.trigger_words if not mentions(written, words)]
    additions = _not_left_out(additions, negative, trace)
    if additions:
        trace.append(f"Trigger words of the model: {', '.join(additions)}.")
    if not styled:
        shared = _not_left_out(_shared_style(written, additions, record), negative, trace)
        if shared:
            trace.append(f"Shared by its example prompts: {', '.join(shared)}.")
        additions += shared
    written = _append(written, additions)
    if written == prompt:
        trace.append("The model asks for nothing more: the prompt is unchanged.")
    return Extended(written, _negative(prompt, negative, record.negative, trace), tuple(trace), calls)


def _append(text: str, additions: Iterable[str]) -> str:
    """The text with phrases behind it. Only blanks and commas at its end give way."""
    additions = list(additions)
    return ", ".join([text.rstrip(" \t\n,"), *additions]) if additions else text


def _not_left_out(additions: Iterable[str], negative: str, trace: list[str]) -> list[str]:
    """The additions that the user does not leave out."""
    kept = []
    for phrase in additions:
        unwanted = _unwanted(phrase, negative)
        if unwanted:
            trace.append(f'Not added: {phrase}. The negative leaves out "{unwanted}".')
        else:
            kept.append(phrase)
    return kept


def _unwanted(text: str, negative: str) -> str:
    """The first phrase of the negative that a text mentions, or an empty text."""
    return next((phrase for phrase in phrases(without_syntax(negative)) if mentions(text, phrase)), "")


def _negative(prompt: str, negative: str, models: str, trace: list[str]) -> str:
    """The user's negative and behind it what the model's has more, except for what the prompt wants."""
    added: list[str] = []
    wanted: list[str] = []
    plain_prompt = without_syntax(prompt)
    for phrase in phrases(models):
        plain = without_syntax(phrase).strip() or phrase
        if any(content_words(part) and mentions(plain_prompt, part) for part in phrases(plain)):
            wanted.append(phrase)
        elif not mentions(without_syntax(negative) if plain != phrase else negative, plain) and phrase not in added:
            added.append(phrase)
    if wanted:
        trace.append(f"Of the model's negative prompt, the prompt wants: {', '.join(wanted)}. Not taken.")
    if not added:
        return negative
    trace.append(f"Negative prompt of the model: {', '.join(added)}.")
    return _append(negative, added) if negative.strip() else ", ".join(added)


# The embedded default


def _shared_style(prompt: str, additions: list[str], record: ModelRecord) -> list[str]:
    """Phrases for style and quality that at least half of the example prompts have, two at the least.

    A prompt that names a style keeps to it: then only words for quality are taken.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    spelled: dict[tuple[str, ...], str] = {}
    for example in record.example_prompts:
        found = {tuple(folded_words(phrase)): phrase for phrase in phrases(without_syntax(example))}
        counts.update(found.keys())
        spelled = found | spelled
    enough = max(2, (len(record.example_prompts) + 1) // 2)
    has_style = bool(STYLE_WORDS & set(folded_words(without_syntax(prompt))))
    there = ", ".join([without_syntax(prompt), *additions])
    shared: list[str] = []
    for words, count in counts.most_common():
        phrase = re.sub(r"\s+", " ", spelled[words])
        wanted = count >= enough and _is_style(words, has_style) and not mentions(there, phrase)
        if wanted and not protect(phrase)[1]:
            shared.append(phrase)
    return shared[:SHARED_PHRASES]


def _is_style(words: tuple[str, ...], quality_only: bool) -> bool:
    """Whether a phrase speaks of how a picture looks, and with no word of what is in it."""
    content = set(content_words(" ".join(words)))
    if len(words) > LONGEST_PHRASE or not content <= STYLE_WORDS | QUALITY_WORDS | _MODIFIERS:
        return False
    if STYLE_WORDS & content:
        return not quality_only
    return bool(QUALITY_WORDS & content)


QUALITY_WORDS = frozenset(folded_words(_QUALITY_LISTED))
_MODIFIERS = frozenset(folded_words(_MODIFIERS_LISTED))


# With a language model


def _rewritten(
    prompt: str, negative: str, record: ModelRecord, llm: LLM, strict: bool, trace: list[str]
) -> tuple[str, int]:
    """The prompt as the language model writes it, or as it was, with the reason in the trace; and the calls."""
    hidden = hide(prompt)
    why = ""
    if not record.example_prompts:
        why = "the model has no example prompts"
    elif len(hidden.text) > MAX_CHARACTERS:
        why = f"the prompt has more than {MAX_CHARACTERS} characters"
    elif hidden.only_syntax:
        why = "there is nothing but prompt syntax"
    if why:
        trace.append(f"The LLM was not asked: {why}.")
        return prompt, 0
    examples = "\n".join(_shown(example) for example in record.example_prompts[:SHOWN_EXAMPLES])
    asked = question(
        "extend",
        prompt=hidden.text,
        leave_out=negative,
        trigger_words="\n".join(record.trigger_words),
        example_prompts=examples,
    )
    try:
        answer, calls = ask_traced(llm, asked, _answer_type(hidden, negative, record))
    except LLMError as error:
        if strict:
            raise
        trace.append(f"The LLM's rewrite was dropped. {error}")
        return prompt, calls_of(error)
    trace.append(_told(calls))
    return hidden.restore(answer.prompt.strip()), calls.calls


def _shown(example: str) -> str:
    """An example prompt on one line, in plain words: its own weights and tags are not to be imitated."""
    return " ".join(without_syntax(example).split())[:SHOWN_CHARACTERS]


def _answer_type(hidden: Hidden, negative: str, record: ModelRecord) -> type[ExtendedPrompt]:
    """The answer type for one prompt: a rewrite that breaks a promise is an error that the model gets to see."""

    class Checked(ExtendedPrompt):
        @model_validator(mode="after")
        def _fits(self) -> Checked:
            problem = _problem(self.prompt, hidden, negative, record)
            if problem:
                raise ValueError(problem)
            return self

    return Checked


def _problem(text: str, hidden: Hidden, negative: str, record: ModelRecord) -> str | None:
    """What a rewrite breaks, or None."""
    own = "\n".join(record.trigger_words)
    if problem := broken_promise(hidden, text, own=own):
        return problem
    more = len(folded_words(text)) - len(folded_words(hidden.text)) - len(folded_words(own))
    if more > ADDED_WORDS:
        return f"it is {more} words longer than the prompt"
    unwanted = _unwanted(text, negative)
    if unwanted and not mentions(hidden.text, unwanted):
        return f'it has "{unwanted}", which is to be left out'
    return None


def _told(calls: Trace) -> str:
    how = "remembered from before" if calls.cached else "one call" if calls.calls == 1 else f"{calls.calls} calls"
    return f"Rewritten by {calls.llm}, {how}."
