"""Plans an edit: a compound wish becomes single instructions, in order, and a report of what was left out.

InstructPix2Pix (arXiv 2211.09800) takes one instruction at a time. What it is known to do badly, counting, moving
things (section 5) and a new viewpoint (figure 13), is kept out of a plan, because it spoils the picture for the steps
behind it.

A language model splits the wish, or the rules of `edit_clauses.py` without one. It is shown placeholders in place of
prompt syntax (`placeholders.py`). An answer that loses one, or a whole part of the wish, is sent back to the model;
when that does not help, the rules plan. What a step asks for is told by the model and by the rules of
`edit_kinds.py`: one of them is enough to leave it out.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, model_validator

from .ask import Trace, ask_traced
from .backend import LLM, LLMError
from .edit_clauses import Clause, clauses_of, mask
from .edit_kinds import WEAK, WHY, Kind, kind_of
from .language import language_of
from .llm_parser import MAX_CHARACTERS, OnError
from .placeholders import PLACEHOLDER, Hidden, hide
from .prompts import question
from .words import content_words, without_syntax

MAX_STEPS = 8
"""Steps of a plan. Each is a sampling run of its own, and drifts a little further from the picture."""
MAX_LISTED = 20
"""Of what was left out, how much a report or an error lists."""

Reason = Kind | Literal["limit"]


@dataclass(frozen=True)
class LeftOut:
    """A part of the wish that is not in the plan, and why: a key of `edit_kinds.WHY`."""

    text: str
    why: Reason


@dataclass(frozen=True)
class EditPlan:
    """A plan. Every text may hold prompt syntax of the user's, byte for byte but for line ends.

    Args:
        wish: as it was written.
        steps: the instructions, first to last; at least one, at most `MAX_STEPS`, none with a line end.
        left_out: what is not among them, in the order of the wish.
        notes: in sentences, who planned and what to mind.
        asked: the calls of a language model, None if none gave or failed to give an answer.
    """

    wish: str
    steps: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    asked: Trace | None = None

    @property
    def report(self) -> str:
        """The plan in plain text, what was left out, and the notes."""
        lines = [f"Plan, {_counted(len(self.steps), 'step')}:"]
        lines += [f"{number}. {step}" for number, step in enumerate(self.steps, 1)]
        if self.left_out:
            lines += ["", "Left out:", *_listed(self.left_out)]
        return "\n".join([*lines, "", *self.notes])


class PlannedStep(BaseModel):
    """One instruction of a wish."""

    instruction: str
    kind: Kind


class PlanAnswer(BaseModel):
    """The single instructions of a wish, in order."""

    steps: list[PlannedStep]


def plan_edit(wish: str, llm: LLM | None = None, on_error: OnError = "rules", keep_weak: bool = False) -> EditPlan:
    """Plan an edit with a model, or by rules without one.

    Args:
        wish: what to change in a picture, in any language; the rules read English.
        llm: the model to ask.
        on_error: what to do when the model gives no usable answer, or the wish is too long for it: "rules" lets the
            rules plan and says why in the notes, "stop" raises.
        keep_weak: whether counting, moving and new viewpoints stay in the plan, with a warning in the notes.

    Raises:
        ValueError: the wish is without text, or nothing in it can be done; the error says what was left out.
        LLMError: there is no answer, and `on_error` is "stop".
    """
    if not wish.strip():
        raise ValueError("The wish is empty. Write what to change, for example: make it night and turn the car red.")
    clauses, notes = _by_rules(wish)
    if llm is None:
        return _plan(wish, clauses, notes, keep_weak)
    hidden = hide(wish)
    if hidden.only_syntax:
        return _plan(wish, clauses, (*notes, "Nothing but prompt syntax: the LLM was not asked."), keep_weak)
    try:
        clauses, asked = _asked(hidden, llm, clauses)
        notes = (f"Planned by {asked.llm}, {_calls(asked)}.",)
    except LLMError as error:
        if on_error == "stop":
            raise
        why = f"The LLM was of no help, so the rules planned. {error}"
        logging.warning("Atelier: %s", why)
        notes, asked = (why, *notes), error.trace
    return replace(_plan(wish, clauses, notes, keep_weak), asked=asked)


def _plan(wish: str, clauses: Sequence[Clause], notes: tuple[str, ...], keep_weak: bool) -> EditPlan:
    """The plan of the clauses that can be done."""
    steps: list[str] = []
    left_out: list[LeftOut] = []
    warnings: list[str] = []
    for clause in clauses:
        weak = clause.kind in WEAK
        if clause.kind != "edit" and not (weak and keep_weak):
            left_out.append(LeftOut(clause.text, clause.kind))
        elif len(steps) == MAX_STEPS:
            left_out.append(LeftOut(clause.text, "limit"))
        else:
            steps.append(clause.text)
            if weak:
                warnings.append(f"Warning: step {len(steps)} may fail: {WHY[clause.kind]}.")
            elif not clause.verb:
                warnings.append(f"Step {len(steps)} has no verb that the rules know. It is in the plan as it was said.")
    if not steps:
        raise ValueError(_nothing_to_do(left_out))
    return EditPlan(wish, tuple(steps), tuple(left_out), (*notes, *warnings))


def _nothing_to_do(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "The wish does not say what to change. Write, for example: make it night and turn the car red."
    weak = any(part.why in WEAK for part in left_out)
    advice = "Ask for a change of look, colour, style or place, or for one thing added, replaced or removed"
    advice += ", or set keep_weak to try it all the same." if weak else "."
    return "\n".join(["Nothing of the wish can be done. Left out:", *_listed(left_out), advice])


def _listed(left_out: Sequence[LeftOut]) -> list[str]:
    lines = [f"- {part.text} ({WHY[part.why]})" for part in left_out[:MAX_LISTED]]
    more = len(left_out) - MAX_LISTED
    return [*lines, f"- and {more} more"] if more > 0 else lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _calls(asked: Trace) -> str:
    return "remembered from before" if asked.cached else _counted(asked.calls, "call")


# By rules


def _by_rules(wish: str) -> tuple[list[Clause], tuple[str, ...]]:
    """The clauses as the rules read them, and the notes on that."""
    if language_of(without_syntax(wish)) in ("en", "und"):
        return clauses_of(wish), ("Planned by rules.",)
    lines = [line.strip() for line in wish.splitlines() if line.strip()]
    note = "The wish is not in English, which is all that the rules read: each line is a step."
    return [Clause(line, "edit") for line in lines], (note,)


# With a language model


def _asked(hidden: Hidden, llm: LLM, by_rules: Sequence[Clause]) -> tuple[list[Clause], Trace]:
    """The clauses as a model reads them.

    Raises:
        LLMError: there is no usable answer.
    """
    if len(hidden.text) > MAX_CHARACTERS:
        raise LLMError(
            f"The wish has {len(hidden.text)} characters, and an LLM is asked about {MAX_CHARACTERS} at the most. "
            "Shorten it, or set on_error to rules."
        )
    answer, asked = ask_traced(llm, question("edit_plan", wish=hidden.text), _answer_type(hidden, by_rules))
    return [_clause(step, hidden) for step in answer.steps], asked


def _clause(step: PlannedStep, hidden: Hidden) -> Clause:
    """A step with the user's own syntax. Its kind is what the model says, or what the rules find wrong with it."""
    text = " ".join(hidden.restore(step.instruction.strip(" \t.;,")).splitlines())
    kind = kind_of(mask(text)[0]) if step.kind == "edit" else step.kind
    return Clause(text, kind)


def _answer_type(hidden: Hidden, by_rules: Sequence[Clause]) -> type[PlanAnswer]:
    """The answer type for one wish: what does not fit the wish is an error that the model gets to see."""

    class Checked(PlanAnswer):
        @model_validator(mode="after")
        def _fits(self) -> Checked:
            problem = _problem(self, hidden, by_rules)
            if problem:
                raise ValueError(problem)
            return self

    return Checked


def _problem(answer: PlanAnswer, hidden: Hidden, by_rules: Sequence[Clause]) -> str | None:
    """Why an answer cannot be one to this wish, None if it can."""
    said = "\n".join(step.instruction for step in answer.steps)
    if not said.strip():
        return "steps: there is none"
    if any(not step.instruction.strip() or "\n" in step.instruction.strip() for step in answer.steps):
        return "instruction: one is empty or has more than one line"
    wanted, found = set(PLACEHOLDER.findall(hidden.text)), set(PLACEHOLDER.findall(said))
    if wanted != found:
        lost = ", ".join(f"⟦{number}⟧" for number in sorted(wanted ^ found, key=int))
        return f"instruction: the placeholders are not those of the wish, see {lost}"
    if re.search("[⟦⟧]", PLACEHOLDER.sub("", said)):
        return "instruction: the brackets ⟦ and ⟧ may only stand around the number of a placeholder"
    if len(said) > 3 * len(hidden.text) + 200:
        return "steps: they are far longer than the wish"
    return _lost(said, hidden, by_rules) if language_of(hidden.text) == "en" else None


def _lost(said: str, hidden: Hidden, by_rules: Sequence[Clause]) -> str | None:
    """What part of an English wish no step speaks of, or which step speaks of nothing in the wish."""
    for quoted in re.findall(r'"[^"\n]+"|“[^”\n]+”', hidden.text):
        if quoted not in said:
            return f"instruction: the quotation {quoted} is not in any step as it stands"
    words = set(content_words(without_syntax(hidden.restore(said))))
    for clause in by_rules:
        own = set(content_words(without_syntax(clause.text))[1:])
        if clause.kind != "nothing" and own and not own & words:
            return f'steps: nothing is said of "{clause.text}"'
    known = set(content_words(without_syntax(hidden.restore(hidden.text))))
    for line in said.splitlines():
        own = set(content_words(without_syntax(hidden.restore(line))))
        if own and not own & known:
            return f'instruction: "{line.strip()}" is not in the wish'
    return None
