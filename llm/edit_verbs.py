"""The words by which rules read edit instructions: verbs and their forms, determiners, and what a verb leads to.

Data and patterns only. A text that these patterns read has single spaces, and one private-use character for each
piece of prompt syntax and each quotation (`edit_clauses.py`).
"""

from __future__ import annotations

import re

MARK = "[\U000f0000-\U0010fffd]"
"""Stands for a piece of prompt syntax or a quotation."""

_CLEAR_LISTED = """
add remove delete erase replace make turn convert transform change give put insert brighten darken recolor recolour
sharpen increase decrease reduce enlarge shrink apply render restyle stylize rotate lighten soften colorize colourise
colourize illuminate substitute decorate zoom move widen swap
"""
"""Verbs that are hardly ever nouns: "and add birds" is an instruction, whatever follows."""

_NOUNS_TOO_LISTED = """
paint color colour light dress cover fill set show place cut draw blur crop frame age use mirror fix edit design clean
close open lower raise shave dye tint wrap have take bring let keep leave preserve double triple switch exchange
shift freeze melt burn fade highlight write hide flip surround duplicate clone rearrange smooth tilt pan try include
shorten lengthen position push pull slide multiply create trade illustrate
"""
"""Verbs that may be nouns or adjectives: they count as verbs where an object or "up", "out" and the like follows."""

CLEAR = frozenset(_CLEAR_LISTED.split())
_NOUNS_TOO = frozenset(_NOUNS_TOO_LISTED.split())
_DOUBLED = frozenset(("put", "set", "cut", "get", "let", "blur", "crop", "wrap", "swap", "flip", "pan"))
_PAST = {
    "made": "make",
    "given": "give",
    "put": "put",
    "set": "set",
    "cut": "cut",
    "drawn": "draw",
    "taken": "take",
    "shown": "show",
    "written": "write",
    "brought": "bring",
    "hidden": "hide",
}


def _gerund(verb: str) -> str:
    if verb in _DOUBLED:
        return f"{verb}{verb[-1]}ing"
    ending = verb[:-1] if verb.endswith("e") and not verb.endswith(("ee", "ye")) else verb
    return f"{ending}ing"


def _regular_past(verb: str) -> str:
    if verb in _DOUBLED:
        return f"{verb}{verb[-1]}ed"
    return f"{verb}d" if verb.endswith("e") else f"{verb}ed"


BASE_OF = (
    {_gerund(verb): verb for verb in CLEAR | _NOUNS_TOO}
    | {_regular_past(verb): verb for verb in CLEAR | _NOUNS_TOO}
    | _PAST
)
"""Gerund or past participle to the verb: "turning" and "turned" to "turn"."""

DETERMINER = r"(?:the|an?|some|my|our|your|his|her|its|their|this|that|these|those|all|every|each|both|another|any|no)"
_OBJECT = (
    rf"(?:{DETERMINER}\b|(?:it|him|them|me|us|everything|everyone|more|less|one|two|three|four|five)\b|\d|{MARK}"
    r"|(?:up|down|on|off|out|in|away)\b)"
)


def _any(words: frozenset[str] | dict[str, str]) -> str:
    return "|".join(sorted(words))


_FORMS_OF_CLEAR = {form: verb for form, verb in BASE_OF.items() if verb in CLEAR}
_FORMS_OF_NOUNS_TOO = {form: verb for form, verb in BASE_OF.items() if verb in _NOUNS_TOO}

VERB = rf"(?:(?:{_any(CLEAR)}|get rid of|don['’]t|do not|never)\b|(?:{_any(_NOUNS_TOO)}) {_OBJECT})"
"""A verb of editing at the start of an instruction."""

FORM = rf"(?:(?:{_any(_FORMS_OF_CLEAR)}|getting rid of)\b|(?:{_any(_FORMS_OF_NOUNS_TOO)}) {_OBJECT})"
"""The same as a gerund or a past participle."""

UNKNOWN_VERB = (
    rf"(?!{DETERMINER}\b|(?:i|you|we|he|she|it|they|with|in|on|at|as|like|love|thank|what|such)\b)"
    rf"[a-z-]{{2,30}} {_OBJECT}"
)
"""A word and an object behind it, at the start of a sentence: "zombify the man"."""

_COLOURS = """
black white gray grey red orange yellow green blue purple violet pink brown gold golden silver turquoise teal navy
beige cream crimson scarlet magenta cyan lilac maroon bronze copper transparent colorful colourful monochrome
"""
_LOOKS = """
dark bright light pale darker brighter lighter bigger larger smaller taller shorter longer wider older younger warmer
colder sharper softer happier sadder stormy cloudy sunny snowy rainy foggy misty clear overcast wet dry calm wild rough
smooth shiny matte rusty dirty clean broken empty full furry fluffy curly straight long short bald blond blonde striped
dotted spotted checkered plaid glowing frozen burning wooden woolen metallic metal glass marble stone ceramic plastic
leather happy sad angry old young big small huge tiny tall thin fat round square ancient modern futuristic blurry
sharp neon pastel bare open closed green lush dead bloomy blooming abandoned floral
"""
RESULTS = frozenset(f"{_COLOURS} {_LOOKS}".split())
"""Words that end "make the sky …": with one, the part is complete, and the next may lack its verb."""

_LEADS_TO = {
    "make turn paint color colour dye tint have let": r"\b(?:into|look|like|be|wear|(?:out|made) of|more|less)\b",
    "turn change convert transform switch": r"\b(?:into|to)\b",
    "replace swap exchange substitute cover fill surround decorate wrap": r"\b(?:with|by|for)\b",
    "add put place insert draw write": r"\b(?:to|on|onto|in|into|at|above|over|under|behind|beside|near|next|around)\b",
    "dress": r"\bin\b",
    "remove delete erase": r"\bfrom\b",
}
_TWO_THINGS = re.compile(r"(?:the|my|his|her|its|their|our) (?:[^\s,]+ ){1,3}?(?:an?|some) \S", re.IGNORECASE)
_TAKES_RESULT = frozenset(("make", "turn", "paint", "color", "colour", "dye", "tint"))
_TAKES_TWO = frozenset(("give", "make"))


def is_complete(verb: str, words: str) -> bool:
    """Whether what follows a verb says all that the verb wants: "the sky pink" after "make", not "the sky"."""
    last = re.sub(r"\W", "", words.rsplit(" ", 1)[-1]).casefold()
    if verb in _TAKES_RESULT and last in RESULTS and " " in words:
        return True
    if verb in _TAKES_TWO and _TWO_THINGS.match(words):
        return True
    return any(verb in verbs.split() and re.search(pattern, words) for verbs, pattern in _LEADS_TO.items())
