"""Pairs of what a user might type and a good prompt, from good prompts alone (arXiv 2212.09611, section 2.1).

A good prompt is its content, which says what to show, and modifiers, which say how. Three ways lead back to what a
user might have typed: the modifiers are trimmed; some of them are dropped and the rest shuffled; a language model
rephrases the content and the whole prompt. A policy learns to write the good prompt for each of them.

Prompts are taken in plain words: weights, tags and escapes belong to one model, and a policy reads none.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel

from ..llm.ask import ask
from ..llm.backend import LLM, LLMAnswerError
from ..llm.content_guard import plain_words
from ..llm.extend import QUALITY_WORDS
from ..llm.prompts import question
from ..llm.tags import STYLE_WORDS
from ..llm.words import content_words, folded_words, phrases

Way = Literal["trim", "shuffle", "rephrase"]

MODIFIER_WORDS = (
    STYLE_WORDS | QUALITY_WORDS | frozenset(folded_words("artstation deviantart pixiv octane unreal engine"))
)
"""A phrase with one of these words says how a picture is made."""

KEPT = 0.5
"""Probability that the second way keeps a modifier."""


@dataclass(frozen=True)
class Pair:
    """What a user might type, the good prompt for it, and the way that led from one to the other."""

    source: str
    target: str
    way: Way


@dataclass(frozen=True)
class Pairs:
    """Pairs in the order of their prompts, and by prompt why some gave none, or none in one way."""

    pairs: tuple[Pair, ...]
    skipped: dict[str, str] = field(default_factory=dict)


class Rephrased(BaseModel):
    """A prompt in the words of somebody who has never seen one."""

    content: str
    prompt: str


def make_pairs(
    prompts: Iterable[str],
    seed: int = 0,
    llm: LLM | None = None,
    modifier_words: frozenset[str] = MODIFIER_WORDS,
    check: Callable[[], None] = lambda: None,
) -> Pairs:
    """The pairs of all ways from good prompts.

    Args:
        prompts: good prompts, as they were written.
        seed: of the second way. A prompt gives the same pair whatever stands before it.
        llm: rephrases; None leaves the third way out.
        modifier_words: folded words that make a phrase a modifier.
        check: called before each prompt; raises to cancel.

    Raises:
        LLMError: the language model cannot be reached. A prompt that it gives no usable answer to is skipped.
    """
    pairs: dict[tuple[str, str], Pair] = {}
    skipped: dict[str, str] = {}
    for prompt in prompts:
        check()
        target = plain_words(prompt)
        content, modifiers = split_prompt(target, modifier_words)
        if not content or not modifiers:
            skipped[prompt] = "it has no modifiers" if content else "it has no content"
            continue
        made = [
            Pair(content, target, "trim"),
            Pair(_shuffled(content, modifiers, f"{seed} {target}"), target, "shuffle"),
        ]
        if llm is not None:
            try:
                made += _rephrased(content, target, llm)
            except LLMAnswerError as error:
                skipped[prompt] = f"not rephrased: {error}"
        for pair in made:
            if _teaches(pair):
                pairs.setdefault((pair.source, pair.target), pair)
    return Pairs(tuple(pairs.values()), skipped)


def split_prompt(prompt: str, modifier_words: frozenset[str] = MODIFIER_WORDS) -> tuple[str, tuple[str, ...]]:
    """Content and modifiers of a prompt in plain words.

    The first phrase between commas is content, and so are those behind it up to the first modifier: a phrase that has
    one of the words, or that names who made it. All from there on are modifiers.
    """
    parts = phrases(prompt)
    modifier = (i for i, part in enumerate(parts) if i and _is_modifier(part, modifier_words))
    cut = next(modifier, len(parts))
    return ", ".join(parts[:cut]), tuple(parts[cut:])


def _is_modifier(phrase: str, modifier_words: frozenset[str]) -> bool:
    said = folded_words(phrase)
    return bool(modifier_words & set(said)) or said[:1] == ["by"] or said[:4] == ["in", "the", "style", "of"]


def _shuffled(content: str, modifiers: tuple[str, ...], seed: str) -> str:
    """The content with some of the modifiers in another order; at least one is left out."""
    rng = random.Random(seed)  # a text as seed gives the same numbers on every platform
    kept = [modifier for modifier in modifiers if rng.random() < KEPT]
    if len(kept) == len(modifiers):
        kept.pop(rng.randrange(len(kept)))
    rng.shuffle(kept)
    return ", ".join([content, *kept])


def _rephrased(content: str, target: str, llm: LLM) -> list[Pair]:
    answer = ask(llm, question("rephrase", content=content, prompt=target), Rephrased)
    said = (plain_words(" ".join(text.split())) for text in (answer.content, answer.prompt))
    return [Pair(source, target, "rephrase") for source in said]


def _teaches(pair: Pair) -> bool:
    """Whether something can be learnt: the source is another text, not longer, and speaks of the same thing."""
    source, target = folded_words(pair.source), folded_words(pair.target)
    shared = set(content_words(pair.source)) & set(content_words(pair.target))
    return bool(shared) and source != target and len(source) <= len(target)
