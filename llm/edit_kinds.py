"""Tells what an edit instruction asks for, so far as it matters for InstructPix2Pix: what the method does badly.

InstructPix2Pix (arXiv 2211.09800, section 5) counts badly and fails at moving and swapping things; figure 13 shows
a change of the viewpoint among the failures. It has no notion of what shall stay, since an instruction says only
what changes. The rules are patterns over English, and read an instruction as it is written.
"""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["edit", "counting", "spatial", "viewpoint", "keep", "nothing"]
WEAK: tuple[Kind, ...] = ("counting", "spatial", "viewpoint")

WHY: dict[str, str] = {
    "counting": "it asks for a number of things, and InstructPix2Pix counts badly (arXiv 2211.09800, section 5)",
    "spatial": "it moves or swaps things, which InstructPix2Pix does badly (arXiv 2211.09800, section 5)",
    "viewpoint": "it changes the viewpoint, which InstructPix2Pix does badly (arXiv 2211.09800, figure 13)",
    "keep": "it says what shall stay, and an instruction can only say what changes. Use a mask, or a higher image "
    "guidance scale",
    "nothing": "it does not say what to change",
    "limit": "it is beyond the number of steps that a plan may have",
}

_NUMBER = (
    r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|(?:a )?dozen|a couple of|[2-9]|[1-9]\d)"
)
_NO_UNIT = (
    r"(?! ?(?:years?|percent|%|times?|d\b|k\b|px|pixels|o['’]clock|am\b|pm\b|minutes?|hours?|days?|stops?|degrees?"
    r"|stor(?:e?y|ies)|st\b|nd\b|th\b|stars? hotel|[-.,:/]))"
)
_SIDE = (
    r"(?:(?:far|very|other|upper|lower|opposite) )?"
    r"(?:left|right|top|bottom|cent(?:re|er)|middle|corner|edge|side|front|back(?!ground)|foreground)\b"
)
_THE = r"(?:the|this|that|these|those|my|our|his|her|its|their|both)"
_SCENE = r"(?:it|everything|(?:the|this) (?:scene|whole scene|picture|photo|image|setting|whole thing|action))"
_DEFINITE_LISTED = "the these those all his her their my its our last first at of"
_NOT_THE = "".join(f"(?<!\\b{word} )" for word in _DEFINITE_LISTED.split())
"""Before a number: "the two cars" says which, and asks for no number."""

_RULES: tuple[tuple[Kind, str], ...] = (
    (
        "keep",
        r"(?:keep|keeping|leave(?! out)|leaving(?! out)|preserve|preserving|maintain|don['’]t|do not|never|avoid"
        r"|change nothing|without (?:changing|touching|altering))\b",
    ),
    (
        "keep",
        r"(?:everything(?: else)?|the rest|nothing else|the others?)\b.{0,60}"
        r"\b(?:same|unchanged|as (?:it|they) (?:is|are)|alone|changes?)\b",
    ),
    (
        "viewpoint",
        rf"(?:zoom|pan|tilt {_THE} camera|(?:rotate|turn|move|tilt|raise|lower|change|shift) {_THE} "
        r"(?:camera(?: angle)?|view|viewpoint|point of view|perspective|angle))\b",
    ),
    (
        "viewpoint",
        r"(?:show|view|see|shoot|photograph|draw|paint|make|render|look at)\b(?!.*\b(?:lit|light|shin\w+)\b).{0,60}"
        r"\bfrom (?:above|behind|below|the (?:side|back|front|top|air)|(?:an|another|a different|the other) "
        r"(?:angle|side|view\w*|perspective|point of view)|(?:a )?(?:bird|worm)['’]?s[ -]eye)",
    ),
    ("spatial", rf"(?:move|relocate) (?!{_SCENE} (?:in)?to (?!(?:the )?{_SIDE}))"),
    ("spatial", r"(?:rearrange|reorder|reposition|realign|align|rotate|flip|mirror)\b"),
    ("spatial", r"(?:swap|exchange|switch) (?!on\b|off\b)(?!(?:[^\s,]+ ){0,8}(?:for|by|to|into|with (?!the|his|her)))"),
    ("spatial", r".{0,80}\b(?:swap|switch|trade|exchange|change) (?:their )?(?:places|positions|sides|seats)\b"),
    (
        "spatial",
        rf"(?:put|place|position|set|bring|push|pull|slide|drag|shift) (?:{_THE} [^,]{{1,60}}?|him|them|it) "
        rf"(?:(?:to|on|in|at|into) (?:the )?{_SIDE}|closer\b)",
    ),
    (
        "spatial",
        rf"(?:put|place|position|set|bring|push|pull|slide|drag) {_THE} [^,]{{1,60}}? (?:under|behind|next to|beside"
        r"|above|below|in front of|between|away from|on top of)\b",
    ),
    ("counting", rf"(?:.{{0,200}}? )??{_NOT_THE}{_NUMBER}{_NO_UNIT}(?: more| other| extra)? [a-z]"),
    ("counting", r"(?:remove|delete|erase|add) (?:all but )?one(?: more\b| of\b)"),
    ("counting", r"(?:double|triple|halve|duplicate|clone|multiply)\b"),
    ("counting", r".{0,200}\b(?:the number of|(?:twice|half|(?:three|four) times) as many|(?:how|as) many)\b"),
)
RULES = tuple((kind, re.compile(pattern, re.IGNORECASE | re.DOTALL)) for kind, pattern in _RULES)


def kind_of(instruction: str) -> Kind:
    """What an English instruction asks for, "edit" if nothing speaks against it."""
    return next((kind for kind, pattern in RULES if pattern.match(instruction)), "edit")
