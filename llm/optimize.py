"""The prompt optimizer: a prompt as an image model likes it, with everything in it that the user asked for.

Two writers, alone or together. A policy (`promptist.py`) knows from its training which words make pictures better, but
reads English only and no long prompts. A language model reads any language and follows instructions. Together the
language model goes first and makes the content clear, in English; the policy styles what comes out. The other way
round, the language model would rewrite the words that the policy was trained to find.

Whatever they write, `content_guard.py` drops what loses a word or a byte of syntax. If nothing is left, the prompt
comes back as it was, and a note says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, Field, create_model, model_validator

from .ask import Trace, ask_traced
from .backend import LLM, LLMError
from .content_guard import broken_promise, guarded, opening, plain_words
from .language import is_latin, language_of
from .placeholders import Hidden, hide
from .promptist import BEAMS, Policy
from .prompts import question
from .syntax import protect
from .words import content_words, folded_words, missing_words, without_syntax

MAX_CHARACTERS = 2000
"""Longest prompt that a language model is asked about."""
ADDED_WORDS = 60
"""Words that a language model's prompt may be longer by. The question says forty; models do not count well."""


RewardOf = Callable[[Sequence[tuple[str, str]], int], Sequence[float]]
"""Takes pairs of a prompt and a candidate, those of one prompt side by side, and a seed; gives a reward for each, NaN
if there is none."""


@dataclass(frozen=True)
class Candidate:
    """One prompt to choose from.

    `log_probability` is the policy's, natural logarithm; None if a language model wrote it. `scores` are by name, and
    more is better; a policy's own is "beam", by which its candidates are ordered. That of its pictures is "reward".
    """

    text: str
    log_probability: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """A prompt that was written and not taken, and why."""

    text: str
    why: str


@dataclass(frozen=True)
class Optimized:
    """The candidates, the best first and at least one; and how they came about, in sentences.

    `asked` tells the calls to the language model, None if there were none.
    """

    candidates: tuple[Candidate, ...]
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()
    asked: Trace | None = None

    @property
    def prompt(self) -> str:
        return self.candidates[0].text


@dataclass
class _Account:
    """What is told of a run while it goes on."""

    notes: list[str] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    asked: Trace | None = None


class Rewrites(BaseModel):
    """Better prompts for a model that paints pictures."""

    english: str
    prompts: list[str]


def optimize(
    prompt: str,
    policy: Policy | None,
    llm: LLM | None,
    count: int = 4,
    beams: int = BEAMS,
    strict: bool = False,
) -> Optimized:
    """Write a prompt anew, with the policy, the language model, or both.

    Args:
        prompt: any text. An empty one comes back as it is.
        policy: styles the prompt.
        llm: makes it clear and English when there is a policy, else styles it too. Its seed decides what it writes.
        count: most candidates.
        beams: of the policy's search; it gives no more candidates than beams.
        strict: whether a failure of the language model is raised instead of being told in the notes.

    Raises:
        ValueError: there is neither policy nor language model, or the policy cannot be used.
        LLMError: the language model gave no usable answer, and `strict` is set.
    """
    if policy is None and llm is None:
        raise ValueError(
            "There is nothing that could optimize the prompt. Link Load Prompt Policy into policy, a language model "
            "into llm, or both."
        )
    account = _Account()
    found = [Candidate(prompt)]
    if not folded_words(without_syntax(prompt)):
        account.notes.append("There is no word in the prompt: it is unchanged.")
    else:
        if llm is not None:
            alone = policy is None
            found = _by_llm(prompt, llm, "optimize" if alone else "clarify", count if alone else 1, strict, account)
        if policy is not None:
            found = _by_policy(found[0].text, policy, beams, account) or found
    unlike = {candidate.text: candidate for candidate in reversed(found)}
    if list(unlike) == [prompt]:
        account.notes.append("The prompt is unchanged.")
    chosen = tuple(reversed(unlike.values()))[:count]
    return Optimized(chosen, tuple(account.dropped), tuple(account.notes), account.asked)


def best_of(prompt: str, made: Optimized, reward: RewardOf, seed: int) -> Optimized:
    """The candidates and the prompt itself in the order of what their pictures are worth: best of n.

    A text whose pictures have no score goes behind all others; if none has one, the order stays.

    Args:
        reward: `training.host_prompt_rl.PictureReward`, or another.
    """
    texts = {candidate.text: candidate for candidate in (*made.candidates, Candidate(prompt))}
    if len(texts) == 1:
        return made
    worth = dict(zip(texts, reward([(prompt, text) for text in texts], seed), strict=True))
    known = {text: value for text, value in worth.items() if math.isfinite(value)}
    scored = [
        replace(one, scores={**one.scores, "reward": known[text]} if text in known else one.scores)
        for text, one in texts.items()
    ]
    ordered = sorted(scored, key=lambda one: -one.scores.get("reward", -math.inf)) if known else list(made.candidates)
    if not known:
        note = "None of the pictures got a score: the order is that of the writer."
    elif ordered[0].text == prompt:
        note = "No candidate's pictures score higher than those of the prompt as it was."
    else:
        gain = f" {known[ordered[0].text] - known[prompt]:+.3g} over the prompt as it was" if prompt in known else ""
        note = f"Chosen by the pictures of {len(known)} prompts:{gain or ' the highest score'}."
    return replace(made, candidates=tuple(ordered), notes=(*made.notes, note))


# With a policy


def _by_policy(prompt: str, policy: Policy, beams: int, account: _Account) -> list[Candidate]:
    """What the policy writes and the guard lets through, the best first."""
    if not is_latin(without_syntax(prompt)):
        account.notes.append(
            f"The policy reads English, and the prompt is in another language ({language_of(prompt)}): it passes "
            "through. A language model in llm translates it."
        )
        return []
    head, rest = opening(prompt, policy.count, policy.read_tokens)
    shown = plain_words(head)
    if not folded_words(shown):
        account.notes.append("The prompt begins with syntax that the policy cannot read: it passes through.")
        return []
    if rest.strip(" \t\n,;"):
        account.notes.append(
            f"The policy read {policy.count(shown)} of {policy.count(plain_words(prompt))} tokens "
            f"(it reads {policy.read_tokens} at the most, up to the first BREAK or AND). The rest follows unchanged."
        )
    taken: list[Candidate] = []
    written = policy.rephrase(shown, beams)
    for one in written:
        kept = guarded(head, one.text)
        text = _joined(kept.text, rest, prompt) if kept.text is not None else None
        if text is None:
            account.dropped.append(Dropped(one.text, kept.why or "it changes the syntax of the rest"))
        else:
            taken.append(Candidate(text, one.log_probability, {"beam": one.score}))
    account.notes.append(f"{policy.name} wrote {len(written)} prompts; {len(taken)} keep all of yours.")
    return taken


def _joined(text: str, rest: str, prompt: str) -> str | None:
    """A styled opening with the rest of the prompt behind it; None if brackets of the two make a new pair."""
    joined = text.rstrip(" \t\n,;") + rest if rest.strip(" \t\n,;") else text
    return joined if protect(joined)[1] == protect(prompt)[1] else None


# With a language model


def _by_llm(prompt: str, llm: LLM, template: str, count: int, strict: bool, account: _Account) -> list[Candidate]:
    """What the language model writes and the guard lets through, or the prompt, with the reason in the notes."""
    hidden = hide(prompt)
    try:
        if len(hidden.text) > MAX_CHARACTERS:
            raise LLMError(
                f"The prompt has {len(hidden.text)} characters, and a language model is asked about {MAX_CHARACTERS} "
                "at the most."
            )
        asked = question(template, prompt=hidden.text, number=str(count))
        answer, account.asked = ask_traced(llm, asked, _answer_type(hidden, count))
    except LLMError as error:
        if strict:
            raise
        account.asked = error.trace
        account.notes.append(f"The language model was of no help. {error}")
        return [Candidate(prompt)]
    wanted = _wanted(answer, hidden)
    if wanted != hidden.text:
        account.notes.append(f"Translated by {llm.name}: {hidden.restore(wanted)}")
    taken = []
    for text in map(str.strip, answer.prompts):
        if problem := _problem(text, wanted, hidden):
            account.dropped.append(Dropped(hidden.restore(text) if hidden.problem(text) is None else text, problem))
        else:
            taken.append(Candidate(hidden.restore(text)))
    account.notes.append(f"{llm.name} wrote {len(answer.prompts)} prompts; {len(taken)} keep all of yours.")
    return taken


def _answer_type(hidden: Hidden, count: int) -> type[Rewrites]:
    """The answer type for one prompt: if none of the rewrites can be taken, the model gets to see why."""

    class Checked(Rewrites):
        @model_validator(mode="after")
        def _fits(self) -> Checked:
            wanted = _wanted(self, hidden)
            if not is_latin(wanted):
                raise ValueError("english: the prompt is in another language, and its translation is missing")
            if wanted != hidden.text and (problem := hidden.problem(wanted)):
                raise ValueError(f"english: {problem}")
            problems = [_problem(text, wanted, hidden) for text in self.prompts]
            if all(problems):
                raise ValueError(f"prompts: {problems[0]}")
            return self

    return create_model("Rewrites", __base__=Checked, prompts=(list[str], Field(min_length=1, max_length=count)))


def _wanted(answer: Rewrites, hidden: Hidden) -> str:
    """What the rewrites have to keep the words of: the prompt, or its translation if it is in another language.

    Some models repeat an English prompt as its translation: it is one only if most words are others.
    """
    english = answer.english.strip()
    if not english or language_of(without_syntax(hidden.text)) == "en":
        return hidden.text
    words = content_words(hidden.text)
    return english if 2 * len(missing_words(hidden.text, english)) > len(words) else hidden.text


def _problem(text: str, wanted: str, hidden: Hidden) -> str | None:
    """Why a rewrite cannot be taken, None if it can."""
    if problem := broken_promise(hidden, text, wanted):
        return problem
    more = len(folded_words(text)) - len(folded_words(wanted))
    return f"it is {more} words longer than the prompt" if more > ADDED_WORDS else None
