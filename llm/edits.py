"""Tells a wish to change a picture that is there already, "make the sky red in this picture", by rules.

The rules are strict, since a wish for a new picture taken for an edit is worse than the other way round: the wish
must open with a verb of changing, after "could you please" and the like, and speak of something that is there:
"turn *the cat* into a dog", "add a hat to *him*", "… in *this picture*". They read English and take linear time.
"""

from __future__ import annotations

import re

from .syntax import protect, restore

_OPENING = re.compile(
    r"\s*(?:(?:hi|hello|hey)(?: there)?[,.!]?\s{0,8})?(?:please,? )?"
    r"(?:(?:can|could|would|will) you (?:please )?|i(?: want| would like|['’]d like) (?:you )?to )?",
    re.IGNORECASE,
)
_CLOSING = re.compile(r"[,.!?]?\s{0,8}(?:\b(?:please|thank you|thanks))?\s{0,8}[.!?]?\s{0,8}\Z", re.IGNORECASE)

_THING = (
    r"(?:it|him|them|everything|everyone"
    r"|(?:the|this|that|these|those|my|our|his|her|their|its|all|every)(?: [^\s,.;!?]+){1,8}?)"
)
_PICTURE = r"(?:picture|image|photo|photograph|pic)\b(?! of\b| style\b)"
_COLOUR = (
    r"(?:black|white|gr[ae]y|red|orange|yellow|green|blue|purple|violet|pink|brown|gold|golden|silver|transparent"
    r"|bigger|larger|smaller|taller|shorter|longer|wider|older|younger|brighter|darker|lighter|warmer|cooler|colder"
    r"|sharper|softer|happier|sadder)"
)
_VERB = r"(?:make|turn|change|put|paint|set|move|colou?r|edit|fix|improve|redraw|convert|let)"

RULES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (what, re.compile(pattern, re.IGNORECASE))
    for what, pattern in (
        ("turn … into", rf"(?:turn|transform|convert|change|make) {_THING} (?:in)?to \S"),
        ("replace … with", rf"(?:replace|swap|exchange|substitute) {_THING} (?:with|by|for) \S"),
        ("remove …", r"(?:remove|delete|erase|get rid of) \S"),
        ("add …", r"add (?:an?|the|some|more|another|one|two|three|\d+) \S"),
        (
            "make … of another look",
            rf"make {_THING} (?:(?:more|less|look) \S|{_COLOUR}(?=\s*(?:[,.;!?]|\Z)| (?:in|instead|please)\b))",
        ),
        ("make it …", r"make (?:it|him|them) \S"),
        (
            "a verb of picture editing",
            r"(?:recolou?r|colou?ri[sz]e|crop|rotate|flip|mirror|blur|sharpen|brighten|darken|restyle|retouch"
            rf"|enlarge|shrink) {_THING}\b",
        ),
        (
            "… this picture",
            rf"{_VERB} (?:[^.!?\n]{{0,200}} )?(?:(?:this|that|my) {_PICTURE}|(?:in|on|from) the {_PICTURE})",
        ),
        ("in this picture, …", rf"(?:in|on) (?:this|that|my|the) {_PICTURE},? {_VERB} \S"),
    )
)


def edit_instruction(wish: str) -> tuple[str, str]:
    """The wish as an edit instruction, without courtesy, and the rule that found it; two empty texts if it is none."""
    text, pieces = protect(wish)
    start = _OPENING.match(text).end()
    for what, pattern in RULES:
        if pattern.match(text, start):
            return restore(_CLOSING.sub("", text[start:], count=1).strip(), pieces), what
    return "", ""
