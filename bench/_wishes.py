"""Wishes for the router: ShapeWorld scenes in the four forms of DiffusionGPT, with the style whose expert is best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from shapeworld.caption import Description, describe, write
from shapeworld.scene import STYLES, random_scene
from shapeworld.trial import HELD_OUT

Wordings = Mapping[str, tuple[str, ...]]

NEW: Wordings = {
    "prompt": ("{}",),
    "instruction": (
        "Please paint {}.",
        "Generate an image of {}",
        "Could you make a picture of {}?",
        "Create {} for me.",
        "Render {}, please",
    ),
    "inspiration": (
        "I would love to see {}.",
        "I feel like looking at {} today",
        "I long for {}.",
        "It would be nice to have {}",
        "I am in the mood for {}.",
    ),
    "hypothesis": (
        "If you gave me {}, I would be very happy.",
        "If I could paint, I would paint {}.",
        "What if there were {}?",
        "Suppose somebody showed me {}: I would smile.",
        "If there was {} on my wall, I would look at it all day",
    ),
}
"""Ways to word a wish. They were written before the rules that read wishes were looked at, and no rule was changed for
them."""

KNOWN: Wordings = {
    "prompt": ("{}",),
    "instruction": ("I want a picture of {}", "Show me {} please", "Could you please draw {}? Thanks!"),
    "inspiration": ("something that feels like {}", "I want something like {}", "Imagine {}", "I want to see {}"),
    "hypothesis": ("If I had {}, how would it look?", "What if I had {}?", "If you give me {}, I will laugh"),
}
"""Wordings of the parser's own tests: the rules were written with these in mind."""

OTHER_WORDS: Mapping[str, tuple[str, ...]] = {
    "chalk": ("on a school blackboard", "as a teacher draws it on the board", "in dusty white strokes"),
    "neon": ("made of glowing tubes", "as the bright sign of a bar at night", "in glowing lines of light"),
    "sticker": ("as a decal to peel off", "as a vinyl cut-out with a white border", "to stick on a laptop"),
}
"""Each style in words that the grammar does not have."""

KEEP = {"size": 0.35, "texture": 0.5, "colour": 1, "shape": 1, "place": 0.35, "background": 0.5, "style": 1}
"""How often a caption names each attribute. A flat scene's style is named in three of ten, another's always."""


@dataclass(frozen=True)
class Wish:
    """What a person types, the caption and what it says, and the style whose expert is known to be the best.

    `seed` and `number` are its own: no other wish has both.
    """

    seed: int
    number: int
    text: str
    form: str
    caption: str
    description: Description
    style: str


def held_out(count: int) -> list[Wish]:
    """Wishes that nothing was chosen by: their scenes, and the ways in which they are worded."""
    return [_wish(i, 7, NEW) for i in range(count)]


def rated(count: int) -> list[Wish]:
    """Wishes whose pictures are rated, with scenes of their own."""
    return [_wish(i, 8, NEW) for i in range(count)]


def timed(count: int) -> list[Wish]:
    """Wishes that nothing was asked about before, so that no word of theirs need be remembered."""
    return [_wish(i, 11, NEW) for i in range(count)]


def in_sample(count: int) -> list[Wish]:
    """Wishes in the wordings that the parser's rules were written with."""
    return [_wish(i, 9, KNOWN) for i in range(count)]


def in_other_words(count: int) -> list[Wish]:
    """Wishes that name their style, and not in the grammar's words."""
    wishes = []
    for i in range(count):
        rng = np.random.default_rng([HELD_OUT, 10, i])
        style = [*OTHER_WORDS][i % len(OTHER_WORDS)]
        description = describe(random_scene(rng, 1, {"flat": 1.0}), rng, KEEP | {"style": 0})
        caption = f"{write(description, rng)}, {rng.choice(OTHER_WORDS[style])}"
        wishes.append(Wish(10, i, caption, "prompt", caption, description, style))
    return wishes


def _wish(i: int, seed: int, wordings: Wordings) -> Wish:
    """As many of each form, and the styles in turn; of one thing or of two."""
    rng = np.random.default_rng([HELD_OUT, seed, i])
    form, style = [*wordings][i % len(wordings)], STYLES[i // len(wordings) % len(STYLES)]
    description = describe(random_scene(rng, 1 + i // 16 % 2, {style: 1.0}), rng, KEEP)
    caption = write(description, rng)
    text = str(rng.choice(wordings[form])).format(caption)
    return Wish(seed, i, text, form, caption, description, style)
