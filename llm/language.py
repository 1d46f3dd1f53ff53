"""In which language a wish is, as far as its letters and its commonest words tell.

The answer is a BCP-47 code. The script decides where most letters are of another script than Latin: Hangul is
`ko`, kana `ja`, Han without kana `zh`, and so on; of a script that many languages share, only the script is told,
`und-Cyrl`. Of a text in Latin letters the rules tell only whether it is English, `en`, by its commonest words, or
`und`, undetermined. They do not tell Spanish from Dutch; a language model does.
"""

from __future__ import annotations

import re

_SCRIPTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (code, re.compile(f"[{letters}]"))
    for code, letters in (
        ("ko", "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"),
        ("ja", "\u3041-\u3096\u30a1-\u30fa"),
        ("zh", "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"),
        ("el", "\u0370-\u03ff"),
        ("he", "\u05d0-\u05ea"),
        ("th", "\u0e01-\u0e3a"),
        ("hy", "\u0531-\u0587"),
        ("ka", "\u10a0-\u10ff"),
        ("und-Cyrl", "\u0400-\u052f"),
        ("und-Arab", "\u0620-\u06ff"),
        ("und-Deva", "\u0904-\u0939"),
    )
)
_LETTER = re.compile(r"[^\W\d_]")
_LATIN = re.compile(r"(?=[^\W\d_])[A-Za-z\u00aa-\u024f\u1e00-\u1eff\uff21-\uff5a]")

_ENGLISH_LISTED = """
the of with and without above below behind under between near this that there is are i me my you want would like show
give make draw picture painting drawing style background red blue green yellow black white gray grey purple brown small
big large old young man woman boy girl cat dog house tree sky sea star night light dark shiny
"""
_OTHERS_LISTED = """
der die das den dem ein eine einen einem einer und mit ohne von auf ist im le la les un une des du et avec sans sur el
los las una con sin sobre y il lo gli di del della per e senza o os um uma da com sem het een en met zonder van op och
med utan av na w z bez ve bir ile
"""
_ENGLISH = frozenset(_ENGLISH_LISTED.split())
_OTHERS = frozenset(_OTHERS_LISTED.split())
"""Of German, French, Spanish, Italian, Portuguese, Dutch, Swedish, Polish and Turkish, what English has not."""


def language_of(text: str) -> str:
    """The BCP-47 code of a text's language: see the head of this module for what can be told."""
    letters = len(_LETTER.findall(text))
    if not letters:
        return "und"
    if is_latin(text):
        return "en" if _is_english(text) else "und"
    counts = {code: len(pattern.findall(text)) for code, pattern in _SCRIPTS}
    if counts["ja"]:  # Japanese is written in kana and Han together
        counts["ja"] += counts.pop("zh")
    best = max(counts, key=lambda code: counts[code])
    return best if counts[best] else "und"


def is_latin(text: str) -> bool:
    """Whether at least half of the letters are Latin."""
    return 2 * len(_LATIN.findall(text)) >= len(_LETTER.findall(text))


def _is_english(text: str) -> bool:
    """Whether common English words outnumber those of other languages."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    return sum(word in _ENGLISH for word in words) > sum(word in _OTHERS for word in words)
