"""Reads a wish: of which kind it is, what to show, and what to leave out.

The four kinds are those of DiffusionGPT (arXiv 2401.10061, section 3.1), where a language model tells
them apart; here rules do, and they are data:

- prompt: "a red star, chalk". Comes back unchanged.
- instruction: "I want a picture of a red star". The asking goes.
- inspiration: "I feel like seeing rain on a Sunday". The feeling goes, its object stays.
- hypothesis: "If I were a bird, what would I see?". The condition and the consequence stay.

What to leave out is recognised where it is a clause of its own, ", no people", "but not blurry", "don't show
cars", or is marked, "negative: …", "--no …". Inside a sentence only "without …" counts, and only its own
few words. "A man with no hat" stays as it is. A list after "no" ends at its first comma.

The rules read English. They only cut text out, they never reword it, except for a question of what someone
sees. Each pattern is anchored or bounded, so time is linear in the length of the wish.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .syntax import protect, restore

Kind = Literal["prompt", "instruction", "inspiration", "hypothesis"]
KINDS: tuple[Kind, ...] = ("prompt", "instruction", "inspiration", "hypothesis")


@dataclass(frozen=True)
class ParsedPrompt:
    """A wish that has been read. `trace` tells in sentences which rules did what."""

    kind: Kind
    prompt: str
    negative: str
    trace: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """A pattern, and in words what it stands for. `kind` is None for a rule about what to leave out."""

    what: str
    pattern: re.Pattern[str]
    kind: Kind | None = None


def _pattern(pattern: str) -> re.Pattern[str]:
    """Compile: a space is one to eight blanks, ~ is up to eight, ' is either apostrophe, case is ignored."""
    spelled = pattern.replace("'", "['’]").replace(" ", r"[ \t]{1,8}").replace("~", r"[ \t]{0,8}")
    return re.compile(spelled, re.IGNORECASE)


def _rule(what: str, *pattern: str, kind: Kind | None = None) -> Rule:
    return Rule(what, _pattern("".join(pattern)), kind)


_REST = r"((?:(?! (?:but|please|and (?:no|not|without|avoid|do not|don't))\b)[^,.;!?\n]|\.(?=\d))+)"
"""The rest of a clause. A point before a digit does not end one."""

_CLAUSE = r"(?:(?:^|[,.;!?\n])~| (?=(?:but|and) ))(?:(?:but|and|please) ){0,2}"
"""The start of a clause, or "and" or "but" inside one."""

MARKED: tuple[Rule, ...] = (
    _rule("negative:", r"(?:^|[,.;\n])~negative(?: prompt)?~:([^\n]*)"),
    _rule("--no", r"(?:^|[\s,])--no ([^\n]*?)(?= --\w|\n|$)"),
)

PHRASES: tuple[Rule, ...] = (
    _rule("a clause with no or without", _CLAUSE, r"(?:with no|without(?: any)?|no) (?!one\b)", _REST),
    _rule("a clause with not", r"(?:[,.;!?\n]~(?:(?:but|and) )?| (?:but|and) )not ", _REST),
    _rule(
        "a clause with avoid or don't",
        _CLAUSE,
        r"(?:avoid|(?:do not|don't) (?:include|show|add|draw|use|want|put|have)) ",
        _REST,
    ),
    _rule(
        "without inside a sentence",
        r" without (?:any )?((?:an? |the )?[^\s,.;!?]+",
        r"(?: (?!(?:in|on|at|to|with|by|under|over|above|below|beside|behind|near|from|for|of|left",
        r"|right|next|as|while|when|where|who|that|which|but",
        r"|drawn|painted|made|standing|sitting|and (?:an?|the))\b)",
        r"[^\s,.;!?]+){0,4})",
    ),
)

_COURTESY = (
    r"\s{0,64}(?:(?:hi|hello|hey)(?: there)?[,.!]?~)?(?:please,?~)?"
    r"(?:(?:can|could|would|will) you (?:please )?|i(?: want|'d like| would like) you to )?"
)
_I_WANT = r"i(?: (?:just|really))?(?: want| need| wish for|'d (?:like|love)| would (?:like|love)) "
_PICTURE = r"(?:an?|the|one|some|(?:an? )?new) (?:picture|image|pic)s? (?:of|showing|(?:that|which) shows|with) "
_COUNTED = r"(?=(?:an?|the|some|my|our|your|his|her|their|this|that|these|those|one|two|three|four|five|\d+)\b)"
"""A determiner follows: "paint a wall" asks for a picture, "paint splashes" may be one's subject."""

OPENINGS: tuple[Rule, ...] = (
    _rule("if", r"\s{0,64}(?:what (?:would happen )?)?if (?:only )?(?=\S)", kind="hypothesis"),
    _rule("suppose", r"\s{0,64}(?:suppose|supposing|assume|assuming)(?: that)? ", kind="hypothesis"),
    _rule(
        "something that feels like",
        _COURTESY,
        rf"(?:{_I_WANT}|(?:give|show|make|draw|paint)(?: me)? )?(?:to see )?something (?:(?:that|which) )?",
        r"(?:feels? like|looks? like|reminds? me of|inspired by|like) ",
        kind="inspiration",
    ),
    _rule(
        "a mood or a longing",
        r"\s{0,64}(?:i feel like|i(?:'m| am) (?:in the mood for|dreaming of|longing for)",
        r"|i (?:dream|dreamt|dreamed) of|i long for|i miss|i wish i could",
        rf"|{_I_WANT}to(?= (?:see|look|feel|imagine)\b)) ",
        r"(?:(?:to )?(?:seeing|see|looking at|look at|feeling|feel|imagining|imagine) )?(?:like )?",
        kind="inspiration",
    ),
    _rule(
        "a request for inspiration",
        _COURTESY,
        r"(?:give me(?: some)? (?:inspiration|an? idea|ideas)|inspire me|surprise me)",
        r"(?:(?: (?:with|for|about)|[:,.]) |[.!]{0,3}\Z)",
        kind="inspiration",
    ),
    _rule("imagine", _COURTESY, r"(?:imagine|picture this:|think of) ", _COUNTED, kind="inspiration"),
    _rule("I want", _COURTESY, _I_WANT, rf"(?:you to \w+ )?(?:{_PICTURE})?", kind="instruction"),
    _rule(
        "show or give me",
        _COURTESY,
        rf"(?:show|give|get|bring) (?:me|us) (?:{_PICTURE})?",
        kind="instruction",
    ),
    _rule(
        "a verb of making",
        _COURTESY,
        r"(?:draw|paint|make|create|generate|render|produce|design|sketch|illustrate|depict) ",
        rf"(?:(?:me|us) (?:{_PICTURE})?|{_PICTURE}|{_COUNTED})",
        kind="instruction",
    ),
)

_CLOSING_INSPIRATION = _pattern(
    r"[,.;!]?~(?:please )?(?:give me(?: some)? (?:inspiration|ideas)|inspire me)"
    r"~(?:please)?[.!]{0,3}\s{0,64}\Z"
)
_CLOSING_COURTESY = _pattern(r"(?:[,.!?]?~\b(?:please|thank you|thanks))?~[.!?]?\Z")

_CONDITION = _pattern(
    r"(?:i (?:were|was|am|had|have|could (?:be|have|see))|there (?:were|was|is|are)"
    r"|you (?:give|gave|show|showed) me) "
)
_CONSEQUENCE = _pattern(
    r"(?:then )?(?:i(?:'d|'ll| would| will) (?:see |be |have )?|(?:it|there|you) (?:would|will) be )"
)
_QUESTION = _pattern(r"(?:then )?(?:what|how|where|who)\b[^?,.!\n]{0,80}(?:[?,.!\n]|\Z)")
_SEEN = _pattern(r"(?:then )?what (?:would|will|do|could|might) (?:i|you|we|he|she|it|they) (?:see|look at)\b")

_EDGES = " \t\n,.;"
_LETTERS_OF_ENGLISH = re.compile(r"[^\W\d_\u00AA-\U0010FFFF]")
_LETTERS = re.compile(r"[^\W\d_]")


def parse(wish: str) -> ParsedPrompt:
    """Read a wish by rules.

    Raises ValueError for a wish without text, and for one that says only what to leave out.
    """
    if not wish.strip():
        raise ValueError("The wish is empty. Write what you want to see, for example: a red star above a blue square.")
    text, pieces = protect(wish)
    trace: list[str] = []
    text, negatives = _cut(text, MARKED, trace)
    if not text.strip(_EDGES):
        raise ValueError("The wish says only what to leave out. Write also what you want to see.")
    kind: Kind = "prompt"
    if _in_english(text):
        text, unwanted = _cut_phrases(text, trace)
        negatives += unwanted
        kind, text = _read(text, trace)
    else:
        trace.append("Most letters are of another script and the rules read English: the text was left as it is.")
    trace = [restore(line, pieces) for line in trace]
    if not negatives and kind == "prompt":
        return ParsedPrompt(kind, wish, "", (*trace, "A prompt: returned unchanged."))
    negative = ", ".join(dict.fromkeys(negatives))
    return ParsedPrompt(kind, restore(text.strip(), pieces), restore(negative, pieces), tuple(trace))


def _cut_phrases(text: str, trace: list[str]) -> tuple[str, list[str]]:
    """Cut what the wording leaves out, unless nothing else is there or it is part of a condition."""
    rule, _ = _opening(text)
    if rule is not None and rule.kind == "hypothesis":
        return text, []
    rest, unwanted = _cut(text, PHRASES, found := [])
    if not rest.strip(_EDGES):
        trace.append("What looks like something to leave out is all that there is: kept.")
        return text, []
    trace += found
    return rest, unwanted


def _read(text: str, trace: list[str]) -> tuple[Kind, str]:
    """The kind and the core of an English text."""
    rule, opening = _opening(text)
    core = text[opening.end() :].strip() if opening else text
    closing = _CLOSING_INSPIRATION.search(text, max(0, len(text) - 200))
    if closing and closing.start() > 0:
        trace.append("inspiration: a request for inspiration at the end.")
        core = text if rule is None or rule.kind == "hypothesis" else core
        return "inspiration", core.removesuffix(closing[0].rstrip())
    if rule is None:
        return "prompt", text
    core = _hypothesis(core) if rule.kind == "hypothesis" else _courteous_end(core)
    if not core.strip(_EDGES + "!?"):
        trace.append(f"It opens like a wish ({rule.what}), but nothing follows: kept as a prompt.")
        return "prompt", text
    trace.append(f"{rule.kind}: {rule.what}.")
    return rule.kind, core


def _opening(text: str) -> tuple[Rule | None, re.Match[str] | None]:
    """The first rule that the text opens with."""
    for rule in OPENINGS:
        if match := rule.pattern.match(text):
            return rule, match
    return None, None


def _courteous_end(text: str) -> str:
    """The text without thanks and without its last full stop."""
    return _CLOSING_COURTESY.sub("", text, count=1) if not text.endswith("..") else text


def _cut(text: str, rules: tuple[Rule, ...], trace: list[str]) -> tuple[str, list[str]]:
    """Take out what the rules match; return what is left and what is not wanted, in order of the rules."""
    unwanted: list[str] = []
    for rule in rules:
        found = [match[1].strip(_EDGES) for match in rule.pattern.finditer(text)]
        found = [phrase for phrase in found if phrase]
        if found:
            text = rule.pattern.sub("", text).lstrip(_EDGES).rstrip(_EDGES.replace(".", ""))
            unwanted += found
            trace.append(f"left out ({rule.what}): {', '.join(found)}.")
    return text, unwanted


def _hypothesis(text: str) -> str:
    """What is left of "if …" to draw: the condition and the consequence without their verbs of being.

    A question after the condition holds nothing to draw, except that of what someone sees; what comes after
    the question stays.
    """
    condition, _, consequence = text.partition(",")
    condition = _CONDITION.sub("", condition.strip().rstrip("?.!"), count=1)
    consequence = consequence.strip()
    if question := _QUESTION.match(consequence):
        condition = f"the view of {condition}" if _SEEN.match(consequence) else condition
        consequence = consequence[question.end() :].strip()
    consequence = _CONSEQUENCE.sub("", consequence, count=1).rstrip("?.!")
    return ", ".join(part for part in (condition, consequence) if part)


def _in_english(text: str) -> bool:
    """Whether at least half of the letters are those of English."""
    return 2 * len(_LETTERS_OF_ENGLISH.findall(text)) >= len(_LETTERS.findall(text))
