"""Tags of models, sorted into subjects and styles."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from .records import clean, unique

_MOST = 40
_LONGEST = 60
"""Bounds on the tags of one model, so that no file can fill a tree."""

_TRAINING_TAGS = 12
"""Tags kept of `ss_tag_frequency`, the most frequent first: the long tail says little about a model."""

_TAG_WORDS = 4
"""Of training captions, only those of up to so many words are tags. Longer ones are sentences."""

ANY_STYLE = "any style"
"""The style of a model that is not tied to one: the choice for a wish that names no style."""

ALL_ROUND_TAGS = frozenset(
    (
        ANY_STYLE,
        "style:any",
        "all-round",
        "all round",
        "base",
        "base model",
        "general",
        "general purpose",
        "versatile",
    )
)

_STYLE_WORDS_LISTED = """
2d 3d 8bit abstract analog anime art artistic baroque cartoon chalk charcoal cinematic comic cubism
cyberpunk digital drawing fantasy film flat gothic graffiti illustration impressionism impressionist ink
isometric line lineart lowpoly manga minimalist mosaic neon noir oil painterly painting papercut pastel
pencil photo photographic photography photorealism photorealistic pixel pixelart pop poster realism
realistic render retro sculpture semirealistic sketch stylised stylized surreal surrealism vaporwave
vector vintage voxel watercolor watercolour woodcut
"""

STYLE_WORDS = frozenset(_STYLE_WORDS_LISTED.split())
"""Words by which a plain tag is taken for a style; any other plain tag is a subject."""

_CATEGORIES = frozenset(("assets", "checkpoint", "concept", "lora", "model", "style", "styles", "tool"))
"""Tags that model sites use for a kind of file. They name neither a subject nor a style."""


class Tags(NamedTuple):
    """All tags, and those that name a subject or a style; lower-case, each once."""

    all: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    styles: tuple[str, ...] = ()


def sort_tags(tags: Iterable[str]) -> Tags:
    """Sort tags into subjects and styles.

    `subject:` and `style:` say which it is; a plain tag is a style if one of its words is in `STYLE_WORDS`.
    A tag of `ALL_ROUND_TAGS` stands for `ANY_STYLE`.
    """
    everything, subjects, styles = [], [], []
    for tag in list(unique(clean(tag, _LONGEST).casefold() for tag in tags))[:_MOST]:
        level, colon, label = (part.strip() for part in tag.partition(":"))
        if tag in ALL_ROUND_TAGS:
            everything.append(tag)
            styles.append(ANY_STYLE)
        elif colon and level in ("subject", "style"):
            everything.append(label)
            (subjects if level == "subject" else styles).append(label)
        else:
            everything.append(tag)
            if STYLE_WORDS & set(re.findall(r"\w+", tag)):
                styles.append(tag)
            elif tag not in _CATEGORIES:
                subjects.append(tag)
    return Tags(unique(everything), unique(subjects), unique(styles))


def training_tags(text: str, notes: list[str]) -> tuple[str, ...]:
    """The most frequent tags of kohya's `ss_tag_frequency`, a JSON object of folders with their tags' counts."""
    counts: Counter[str] = Counter()
    for folder in json_value(text, "ss_tag_frequency", dict, notes).values():
        if isinstance(folder, dict):
            counts.update({tag.strip(): n for tag, n in folder.items() if isinstance(n, int)})
    ranked = sorted(counts, key=lambda tag: (-counts[tag], tag))
    return tuple(tag for tag in ranked if len(tag.split()) <= _TAG_WORDS)[:_TRAINING_TAGS]


def json_value(text: str, key: str, kind: type, notes: list[str]) -> list | dict:
    """The JSON in a text, or an empty one of its kind; a text of another kind is noted under its key."""
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        value = text
    if value is None:
        return kind()
    if not isinstance(value, kind):
        notes.append(f"{key} is not a JSON {'list' if kind is list else 'object'}")
        return kind()
    return value
