"""Several voices answer one closed choice: the votes of a Tree-of-Thought step (arXiv 2305.10601, section 3).

A voice is the same model with another seed. Options are shown under ids (`c1`, `c2`, …) in a delimited slot, and the
answer is an enum of these ids: whatever an option's name says, it cannot become an instruction or a new option.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import BaseModel, Field, create_model

from .answers import one_of
from .ask import ask_traced, calls_of
from .backend import LLM, LLMAnswerError, LLMError
from .prompts import question

NONE_OF_THEM = "none"
"""The id by which a voice says that no option is meant."""

_VARIED = 0.7
"""Temperature of every voice after the first if the model's own is 0, where a seed would change nothing."""

_WISH = 2000
"""Characters of a wish that a voice reads, so that the question fits a small context."""


@dataclass(frozen=True)
class Vote:
    """What one voice said: the option's name, or None if it chose none of them. `error`: it gave no vote."""

    voice: int
    choice: str | None = None
    because: str = ""
    error: str | None = None


@dataclass(frozen=True)
class Ballot:
    """The votes of one question. `winners` are the options with the most votes; several if they are tied."""

    votes: tuple[Vote, ...]

    @property
    def winners(self) -> tuple[str | None, ...]:
        counts = Counter(vote.choice for vote in self.votes if vote.error is None)
        most = max(counts.values(), default=0)
        return tuple(choice for choice, count in counts.items() if count == most)

    def share(self) -> str:
        """How many voices of those that voted chose the first winner, in words."""
        cast, first = [vote for vote in self.votes if vote.error is None], self.winners[0]
        chose = sum(vote.choice == first for vote in cast)
        return f"{chose} of {len(cast)} {'voice' if len(cast) == 1 else 'voices'}"

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(vote) for vote in self.votes]


@dataclass
class Panel:
    """The voices of one run. It stops asking a model that cannot be reached, and counts what was asked.

    `calls` are the calls to the model that this run cost; answers from memory cost none. A `strict` panel raises
    the first failure instead.
    """

    llm: LLM | None
    voices: int = 3
    strict: bool = False
    calls: int = 0
    failure: str = ""
    errors: list[str] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        return self.llm is not None and not self.failure

    def vote(self, template: str, wish: str, options: Sequence[tuple[str, str]], none: bool) -> Ballot:
        """Ask each voice which option suits the wish.

        Args:
            template: the question in `prompts/`, with the slots `wish` and `options`.
            options: names and what is known of each.
            none: whether a voice may say that no option is meant.

        It ends early when the voices that are left cannot change the outcome. A voice that gives no usable answer is
        a lost vote.
        """
        names = {f"c{number}": name for number, (name, _) in enumerate(options, 1)}
        ids = [*names, NONE_OF_THEM] if none else [*names]
        listed = "\n".join(_line(key, name, about) for key, (name, about) in zip(names, options, strict=True))
        asked, answer = question(template, wish=wish[:_WISH], options=listed), _answer(ids)
        votes: list[Vote] = []
        for number in range(self.voices):
            if not self.ready:
                break
            try:
                said, trace = ask_traced(self._voice(number), asked, answer)
            except LLMError as error:
                self._lost(error)
                votes.append(Vote(number + 1, error=str(error)))
            else:
                self.calls += trace.calls
                votes.append(Vote(number + 1, names.get(said.choice), said.because[:300]))
            if _decided(votes, self.voices):
                break
        return Ballot(tuple(votes))

    def _voice(self, number: int) -> LLM:
        if number == 0:
            return self.llm
        seed = (self.llm.seed + number) % 2**31
        return replace(self.llm, seed=seed, temperature=self.llm.temperature or _VARIED)

    def _lost(self, error: LLMError) -> None:
        """Remember a failure. One that another voice would meet as well ends the asking: nobody waits twice."""
        if self.strict:
            raise error
        self.calls += calls_of(error)
        self.errors.append(str(error))
        if not isinstance(error, LLMAnswerError):
            self.failure = str(error)


def _answer(ids: Sequence[str]) -> type[BaseModel]:
    because = (str, Field(description="why, in one short sentence"))
    return create_model("Vote", because=because, choice=(one_of(ids), ...))


def _line(key: str, name: str, about: str) -> str:
    """One option on one line, so that a name cannot pose as another option."""
    return " ".join(f"{key}: {name}{f' — {about}' if about else ''}".split())[:400]


def _decided(votes: Sequence[Vote], voices: int) -> bool:
    counts = Counter(vote.choice for vote in votes if vote.error is None).most_common(2)
    second = counts[1][1] if len(counts) > 1 else 0
    return bool(counts) and counts[0][1] > second + voices - len(votes)
