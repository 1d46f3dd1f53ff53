"""Which words of a caption say what a thing is like: pairs of an entity and an attribute, by rules.

LLM4GEN (arXiv 2407.00737, section 3.3) reads such pairs off a prompt; what is right for a picture of a "red star" is
that "red" and "star" look at the same place. These rules know words of colour, size, texture and material, before their
noun ("a red star") or behind it ("the star is red", "it is red").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_COLOURS = """red orange yellow green cyan blue purple pink brown black white gray grey golden silver violet turquoise
beige crimson scarlet teal navy magenta ivory dark bright pale"""
_FORMS = """small medium large big tiny huge tall short long round square oval rectangular triangular circular spherical
conical cubic cylindrical flat thin thick wide narrow"""
_SURFACES = """plain striped dotted shiny glossy matte smooth rough fluffy furry soft hard wooden metallic metal plastic
glass leather rubber fabric cotton woolen stone marble ceramic paper rusty transparent checkered spotted old new"""
_OTHERS = """a an the this that these those it its is are was were be and or of on in at to with from by left right top
bottom middle above below beside near there one two three four five six some them another also here we see you find
which shows picture shapes lies lie looks painted colour color size surface"""

ATTRIBUTES = frozenset(f"{_COLOURS} {_FORMS} {_SURFACES}".split())
STOPS = frozenset(_OTHERS.split())
"""Words that are neither a thing nor an attribute."""
GROUND = "background"
"""It takes the attributes before it, and nothing is said of it later."""
THINGS_TOO = frozenset({"square"})
"""Attributes that are a thing where no noun follows."""


@dataclass(frozen=True)
class Span:
    """Part of a text: characters from `start` to before `end`."""

    start: int
    end: int


def entity_pairs(text: str) -> list[tuple[Span, Span]]:
    """The pairs of a text: where the entity's word stands, and where its attribute's."""
    pairs: list[tuple[Span, Span]] = []
    waiting: list[Span] = []
    # What a sentence is about lasts: "It" is the last thing that was new. "The star" is one that is known.
    topic: Span | None = None
    last: Span | None = None
    known = False
    for found in re.finditer(r"[A-Za-z]+|[.,;!?]", text):
        word, span = found.group().lower(), Span(found.start(), found.end())
        if word == GROUND:
            waiting = []
        elif word in ATTRIBUTES and not (word in THINGS_TOO and not _noun_follows(text, span.end)):
            waiting.append(span)
        elif word.isalpha() and word not in STOPS:
            pairs += [(span, attribute) for attribute in waiting]
            waiting, last = [], span
            topic, known = (topic, False) if known and topic is not None else (span, False)
        elif not word.isalpha():
            # "It is red." tells of the thing before.
            pairs += [(last, attribute) for attribute in waiting if last is not None]
            waiting, last = [], topic if word == "." else last
        elif word in ("the", "a", "an"):
            known = word == "the"
    return pairs + [(last, attribute) for attribute in waiting if last is not None]


def _noun_follows(text: str, end: int) -> bool:
    found = re.match(r"\s+([A-Za-z]+)", text[end:])
    return found is not None and found.group(1).lower() not in STOPS
