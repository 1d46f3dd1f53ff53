"""Splits a compound wish for an edit into single instructions, in the order in which they are to be done, by rules.

A wish is split where an instruction begins: at a full stop, semicolon or new line, at "then", and at a comma or "and"
before a verb of editing. "And" before anything else belongs to the instruction: "black and white", "a hat and a
scarf". A part that lacks its verb gets that of the part before, if both are complete: "make the sky pink and the
grass blue". "First", "finally", "before that", "after removing …" and "before adding …" set the order.

The rules read English. They cut text and reword little: "turning" to "turn", "I want the sky to be pink" to "make the
sky pink". Prompt syntax and quotations come through byte for byte. Time is linear in the length of the wish.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from .edit_kinds import Kind, kind_of
from .edit_verbs import BASE_OF, DETERMINER, FORM, UNKNOWN_VERB, VERB, is_complete
from .syntax import protect, restore

_FIRST_MARK, _LAST_MARK = 0xF0000, 0x10FFFD
MOST_PARTS = 24
"""Parts of one instruction that are looked at for a missing verb; with more, it is a list and stays whole."""


def _pattern(*pattern: str) -> re.Pattern[str]:
    """Compile; case is ignored."""
    return re.compile("".join(pattern), re.IGNORECASE)


_QUOTED = re.compile(r'"[^"\n]{1,400}"|“[^”\n]{1,400}”|«[^»\n]{1,400}»|(?<![^\s(])[\'‘][^\'’\n]{1,200}[\'’](?!\w)')
_ITEM = re.compile(r"\A(?:\(?\d{1,2}[.):]|[-*•–]|step \d{1,2}[.:]?)\s+", re.IGNORECASE)
_SENTENCE_END = _pattern(
    rf"[.,;]? \d{{1,2}}[.)] (?={VERB})", r"|(?:;|[!?]+|(?<!\bst)(?<!\bmr)(?<!\bdr)(?<!\bmrs)(?<!\b[a-z])\.+)(?= |\Z) ?"
)
_HEADING = _pattern(
    rf"[^:,]{{0,60}}\b(?:edits?|changes?|following|steps?|tasks?|instructions?|to ?do|this|these|plan|wish(?:es)?): "
    rf"(?={VERB})"
)

_FILLER = r"(?:(?:also|(?:can|could|would|will) you|please|just|now|kindly|maybe|perhaps|even),? )*"
_AND = r"(?:, ?(?:(?:and|but|plus) )?| (?:and|but|plus|&) )"
_NAME_OF_DOER = r"(?:you|we|i)(?:['’]ve| have)? "
_WISH = (
    r"(?:(?:i|we) (?:want|need)|(?:i['’]d|we['’]d|i would) like|there (?:should|must|has to|needs to) be"
    rf"|{DETERMINER} (?:[a-z'’-]+ ){{1,4}}should)\b"
)
_JOINTS = _pattern(
    rf"(?P<before_that>{_AND}{_FILLER}(?:before (?:that|this|all that)|beforehand|first(?: of all)?|firstly),? )",
    rf"|(?P<last>{_AND}(?:then )?(?:finally|lastly|at the (?:very )?end|last of all),? )",
    rf"|(?P<then>(?:{_AND}| )(?:then|after (?:that|this)|afterwards|(?:next|later)(?=,)),? {_FILLER})",
    rf"|(?P<prior>,? (?:but )?(?:only )?(?:after|once) (?:(?={FORM})|{_NAME_OF_DOER}(?={FORM}|{VERB})))",
    rf"|(?P<later>,? (?:but )?before (?:(?={FORM})|{_NAME_OF_DOER}(?={FORM}|{VERB})))",
    r"|(?P<keep>,? (?:(?:while|but|and|by) )?",
    r"(?=(?:keeping|leaving|preserving|without (?:changing|touching|altering))\b))",
    rf"|(?P<next>{_AND}(?={_FILLER}(?:{VERB}|{_WISH})))",
)
_OPENINGS = _pattern(
    r"(?:(?P<first>first(?:ly)?(?: of all)?|to (?:start|begin) with|before (?:that|all that|this))"
    r"|(?P<last>finally|lastly|last of all|at the (?:very )?end|in the end)"
    r"|and|but|also|please|kindly|just|now|so|okay|ok|well|hi|hello|hey(?: there)?|maybe|perhaps|then|next"
    r"|second(?:ly)?|third(?:ly)?|afterwards|later|after (?:that|this)"
    r"|(?:can|could|would|will) (?:you|we)|(?:i['’]d|i would) (?:like|love) (?:you )?to(?! (?:see|have)\b)"
    r"|(?:i|we) (?:want|need) (?:you )?to(?! (?:see|have)\b)|let['’]s|(?:you|we) (?:should|can|could)|would you mind"
    r"|(?:how|what) about|try to|go ahead and|it would be (?:nice|great) to)(?:, ?| |\Z)(?!(?:of|to)\b)",
)
_CLOSING = _pattern(
    r"(?:,? (?:please|(?:will|would|could) you|thanks(?: a lot| in advance)?|thank you(?: very much)?|too|as well"
    r"|if (?:possible|you can|you like)|for me|(?P<first>first|beforehand)|(?P<last>last|at the (?:very )?end)))\Z"
)
_COURTESY = _pattern(
    r"(?:please|thanks|thank you|cheers|hi|hello|hey|ok|okay)\b(?: (?:a lot|very much|so much|there|in advance))?\Z"
)
_STARTS = _pattern(rf"(?:(?P<prior>after|once)|(?P<held>before)) (?:(?={FORM})|{_NAME_OF_DOER}(?={FORM}|{VERB}))")
_CARRIES = _pattern(rf"(?:, and|,| and) (?=(?:{DETERMINER}|one|two|three|four|five|\d{{1,3}}) )")
_EDGES = ",;:. "

_WANTED = _pattern(
    rf"(?:(?:i|we) (?:want|need)|(?:i['’]d|i would|we['’]d) (?:like|love))(?: to (?:see|have))? "
    rf"(?=(?:{DETERMINER}|it|him|them|everything) )"
)
_NEW = _pattern(r"(?:an?|some|another|more)\b")
_THERE = _pattern(r"there (?:should|could|must|has to|needs to) be (?=(?:an?|some|another|more) )")
_SHOULD = _pattern(rf"({DETERMINER} [^,]{{1,80}}?|it) (?:should|must|has to|have to|needs? to) (?:be(?:come)? )?")
_TO_BE = _pattern(r" to be(?:come)?(?= )")
_FORM = _pattern(FORM)
_IS_INSTRUCTION = _pattern(rf"(?:{VERB}|{FORM}|{UNKNOWN_VERB})")
_STATEMENT = _pattern(
    r"(?:(?:i|we|you|he|she|they|what|why|how|who|where|when|nice|great|wow|cool|there|i['’]m|it['’]s|that['’]s"
    rf"|this is|that is)\b|{DETERMINER} .{{1,120}}? (?:is|are|was|were|looks?) |it (?:is|was|looks?) )"
)


@dataclass(frozen=True)
class Clause:
    """One instruction of a wish, and what it asks for. `verb` is whether the rules found a verb in it."""

    text: str
    kind: Kind
    verb: bool = True


@dataclass
class _Order:
    """The clauses so far. `at` is where the next ones go, `previous` where the last ones went.

    `held` are those of "before …" at the head of a sentence: they wait for what comes before them. `last` are those
    that are to be done when all else is done.
    """

    placed: list[Clause] = field(default_factory=list)
    last: list[Clause] = field(default_factory=list)
    held: list[Clause] = field(default_factory=list)
    at: int = 0
    previous: int = 0

    def put(self, clauses: Sequence[Clause], at: int | None = None) -> None:
        self.at = self.at if at is None else at
        self.previous = self.at
        self.placed[self.at : self.at] = clauses
        self.at += len(clauses)
        if self.held:
            held, self.held = self.held, []
            self.placed[self.at : self.at] = held
            self.at += len(held)

    def put_before_previous(self, clauses: Sequence[Clause]) -> None:
        self.placed[self.previous : self.previous] = clauses
        self.at += len(clauses)

    def end(self) -> None:
        """A sentence is over: what it held back is due, and the next one follows all that is placed."""
        self.put([])
        self.at = self.previous = len(self.placed)


def mask(text: str) -> tuple[str, tuple[str, ...]]:
    """The text with each piece of prompt syntax and each quotation as one mark, and the pieces in order.

    `syntax.restore` puts them back.
    """
    text, found = protect(text)
    pieces = list(found)

    def hide(match: re.Match[str]) -> str:
        if _FIRST_MARK + len(pieces) > _LAST_MARK:
            return match[0]
        pieces.append(restore(match[0], found))
        return chr(_FIRST_MARK + len(pieces) - 1)

    return _QUOTED.sub(hide, text), tuple(pieces)


def clauses_of(wish: str) -> list[Clause]:
    """The single instructions of an English wish, in order, without courtesy. The end of a line ends an instruction.

    Raises:
        ValueError: there are more pieces of prompt syntax than `syntax.protect` can mark.
    """
    order = _Order()
    for line in wish.splitlines():
        marked, pieces = mask(line)
        text = _ITEM.sub("", " ".join(marked.split()), count=1)
        for sentence, end in _sentences(text):
            _place(sentence, "?" in end, pieces, order)
            order.end()
    return order.placed + order.last


def _sentences(text: str) -> Iterator[tuple[str, str]]:
    """Each sentence and what ends it."""
    at = 0
    for end in _SENTENCE_END.finditer(text):
        yield text[at : end.start()], end[0]
        at = end.end()
    yield text[at:], ""


def _place(sentence: str, asks: bool, pieces: Sequence[str], order: _Order) -> None:
    """Put the clauses of one sentence where they belong. `asks` is whether it ends in a question mark."""
    heading = _HEADING.match(sentence)
    at, rank = _opened(sentence, heading.end() if heading else 0)
    begin = order.at = 0 if rank == "first" else len(order.placed)
    at_last = rank == "last"
    for how, part in _parts(sentence, at):
        clauses, rank = _read(part, asks, pieces)
        at_last = at_last or how == "last"
        if at_last or rank == "last":
            order.last += clauses
        elif how == "held":
            order.held += clauses
        elif rank == "first":
            order.put(clauses, at=0)
        elif how == "before_that":
            order.put(clauses, at=begin)
        elif how == "prior":
            order.put_before_previous(clauses)
        else:
            order.put(clauses)


def _parts(sentence: str, at: int) -> Iterator[tuple[str, str]]:
    """The parts of a sentence from a place on, each with the joint before it, by its name in `_JOINTS`."""
    start = _STARTS.match(sentence, at)
    how = "next"
    if start:
        at, how = start.end(), "held" if start["held"] else "next"
    for joint in _JOINTS.finditer(sentence, at):
        yield how, sentence[at : joint.start()]
        at, how = joint.end(), str(joint.lastgroup)
    yield how, sentence[at:]


def _opened(text: str, at: int = 0) -> tuple[int, str]:
    """Where a text begins after courtesy and words of order, and "first" or "last" if one of these said so."""
    rank = ""
    while opening := _OPENINGS.match(text, at):
        at = opening.end()
        rank = opening.lastgroup or rank
    return at, rank


def _read(part: str, asks: bool, pieces: Sequence[str]) -> tuple[list[Clause], str]:
    """The clauses of a part, more than one if verbs were missing, and "first" or "last" if it ends so."""
    part = part.strip(_EDGES)
    text = part[_opened(part)[0] :]
    rank = ""
    while closing := _CLOSING.search(text, max(0, len(text) - 40)):
        rank = closing.lastgroup or rank
        text = text[: closing.start()].strip(_EDGES)
    if not text or _COURTESY.match(text):
        return [], rank
    return [_clause(single, asks, pieces) for single in _with_verbs(_imperative(text))], rank


def _clause(text: str, asks: bool, pieces: Sequence[str]) -> Clause:
    verb = bool(_IS_INSTRUCTION.match(text))
    kind = kind_of(text)
    if not verb and kind == "edit" and (asks or _STATEMENT.match(text)):
        kind = "nothing"
    return Clause(restore(text, pieces), kind, verb)


def _imperative(text: str) -> str:
    """A wording that is no imperative as one, where that is sure: "turning it red", "the sky should be red"."""
    if wanted := _WANTED.match(text):
        rest = text[wanted.end() :]
        return f"add {rest}" if _NEW.match(rest) else "make " + _TO_BE.sub("", rest)
    if there := _THERE.match(text):
        return f"add {text[there.end() :]}"
    if should := _SHOULD.match(text):
        return f"make {should[1]} {text[should.end() :]}"
    if _FORM.match(text):
        form, blank, rest = text.partition(" ")
        return BASE_OF.get(form.casefold(), "get") + blank + rest
    return text


def _with_verbs(text: str) -> list[str]:
    """An instruction as several, if its parts lack their verb: "make the sky pink and the grass blue"."""
    verb, _, words = text.partition(" ")
    joints = list(islice(_CARRIES.finditer(words), MOST_PARTS))
    if len(joints) == MOST_PARTS:
        return [text]
    starts, ends = [0, *(joint.end() for joint in joints)], [*(joint.start() for joint in joints), len(words)]
    found = [(starts[0], ends[0])]
    for start, end in zip(starts[1:], ends[1:], strict=True):
        before = words[slice(*found[-1])]
        if is_complete(verb.casefold(), before) and is_complete(verb.casefold(), words[start:end]):
            found.append((start, end))
        else:
            found[-1] = (found[-1][0], end)
    return [f"{verb} {words[start:end]}" if words else verb for start, end in found]
