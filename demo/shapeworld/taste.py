"""What people in ShapeWorld like to see, and what they add to a prompt to get it.

A taste is a ground truth for aesthetic scores and prompt optimizers (Promptist: arXiv 2212.09611). It judges how a
picture is made, never what it shows: shapes, colours, textures and the number of things leave it cold. So a prompt can
be written for it with all of its content in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from .caption import Description, Words, write
from .oracle import Sight
from .scene import BACKGROUNDS, COLOURS, RELATIONS, SHAPES, SIZES, STYLE_SURFACE, TEXTURES, Scene
from .trial import HELD_OUT

COLD = 5.0
"""The mark of a picture in which nothing is liked or disliked; all marks are within 1 and 10."""
NOTHING = 1.0
"""The mark of an empty picture."""
SMALLEST, LARGEST = 0.15, 0.33
"""Radii, in shares of the picture's side, between which the largest thing counts."""
FAR = 0.3
"""Distance from the middle, in shares of the side, from which a picture is as unbalanced as can be."""


@dataclass(frozen=True)
class Taste:
    """Points for the surface of a picture, at most for the `size` of its largest thing, and at most for `balance`.

    A large thing gives all points for its size, and a small one as many less. Balance is the distance of the things'
    common centre, weighted by area, from the middle of the picture.
    """

    surfaces: Mapping[str, float]
    size: float = 0.0
    balance: float = 0.0

    def __call__(self, seen: Scene | Sight) -> float:
        """The mark, from 1 to 10, of a scene or of what the oracle sees in a picture."""
        if not seen.things:
            return NOTHING
        surface = seen.style if seen.style in STYLE_SURFACE else seen.background
        radii = np.array([thing.radius for thing in seen.things])
        centres = np.array([(thing.x, thing.y) for thing in seen.things])
        middle = (radii**2) @ centres / (radii**2).sum()
        size = 2 * (radii.max() - SMALLEST) / (LARGEST - SMALLEST) - 1
        balance = 1 - 2 * np.hypot(*(middle - 0.5)) / FAR
        points = self.size * np.clip(size, -1, 1) + self.balance * np.clip(balance, -1, 1)
        return float(np.clip(COLD + self.surfaces.get(surface, 0.0) + points, 1, 10))


WORLD = Taste(
    {"night": 2.5, "black": -1.5, "chalk": -1.0, "neon": -1.0, "sticker": -1.0},
    size=1.5,
    balance=1.0,
)
"""What most people like: night, large things, balance. The grounds that they mark are those that the demo's CLIP can
tell: it mixes up white, sky, sand and gray."""
PEOPLE = (
    Taste({"black": 2.5, "night": 2.0, "white": -2.0, "sky": -2.5}, balance=0.5),
    Taste({"sky": 2.5, "white": 2.0, "night": -2.0, "black": -2.5}, balance=0.5),
)
"""Two persons whose hidden rules contradict each other."""

PLACES = ("in the middle", "on the left", "on the right", "at the top", "at the bottom")
STYLE_PHRASES = ("flat drawing", "drawn in chalk")
GROUNDS = {"sky": 2.5, "night": 2.0, "sand": 1.5, "white": 1.0, "black": 0.5, "gray": 0.5}
HABITS: dict[str, tuple[float, dict[str, float]]] = {
    "size": (0.4, {"small": 1.5, "medium": 1.0, "large": 1.5}),
    "texture": (0.2, {"striped": 1.0, "dotted": 1.0, "shiny": 2.0}),
    "place": (0.3, dict.fromkeys(PLACES, 1.0) | {"in the middle": 4.0}),
    "ground": (0.9, {f"on a {name} background": weight for name, weight in GROUNDS.items()}),
    "style": (0.1, dict.fromkeys(STYLE_PHRASES, 1.0)),
}
"""What people add to a prompt: how often they add each kind, and how often each phrase relative to the others. They
know the taste of the world a little. That pictures are better for a sky or for being shiny, they only believe."""
MODIFIERS = tuple(phrase for _, choices in HABITS.values() for phrase in choices)
"""Every phrase that people add."""

STRANGE_SHARE = 0.5
"""How many training prompts speak of things that the world does not know. From them a policy learns to copy."""
LETTERS = "aaabcdeeefghiiijklmnooopqrsstttuuvwxyz"
TRAINING, INPUTS = 61, 62
"""Seeds of training prompts, and of user inputs to learn from, begin with these numbers."""


def is_held_out(words: Words) -> bool:
    """Whether a colour and a shape, a quarter of all pairs, are asked for together in no training prompt."""
    return (list(COLOURS).index(words.colour) + SHAPES.index(words.shape)) % 4 == 0


def one_thing(rng: np.random.Generator, held_out: bool) -> Description:
    """What a user asks for: colour and shape of one thing, now and then its texture or its size."""
    texture = str(rng.choice(TEXTURES[1:])) if rng.random() < 0.25 else None
    size = str(rng.choice(list(SIZES))) if rng.random() < 0.15 else None
    while True:
        words = Words(_shape(rng), _colour(rng), size, texture)
        if is_held_out(words) == held_out:
            return Description((words,))


def two_things(rng: np.random.Generator) -> Description:
    """Two things, one beside the other or both: in no training prompt of a policy."""
    things = (Words(_shape(rng), _colour(rng)), Words(_shape(rng), _colour(rng)))
    while things[0] == things[1]:
        things = (things[0], replace(things[1], colour=_colour(rng)))
    side_by_side = ((0, str(rng.choice(RELATIONS)), 1),)
    return Description(things, side_by_side if rng.random() < 0.7 else ())


def _shape(rng: np.random.Generator) -> str:
    return str(rng.choice(SHAPES))


def _colour(rng: np.random.Generator) -> str:
    return str(rng.choice(list(COLOURS)))


def engineered(content: str, rng: np.random.Generator) -> str:
    """A prompt as a person writes it who has practice: the content, then at least one modifier, between commas, in
    the usual order.

    What the content already says, its size or its texture, is not said again.
    """
    said = set(content.split())
    while True:
        kinds = [choices for often, choices in HABITS.values() if rng.random() < often and not said & choices.keys()]
        if kinds:
            break
    added = [str(rng.choice(list(c), p=np.array(list(c.values())) / sum(c.values()))) for c in kinds]
    return ", ".join([content, *added])


def strange_content(rng: np.random.Generator) -> str:
    """Words of the world in any order, and words that nobody knows; two to five in all, often up to fourteen."""
    known = [
        *SHAPES,
        *COLOURS,
        *SIZES,
        *TEXTURES,
        *BACKGROUNDS,
        *" ".join(RELATIONS).split(),
        *("a", "an", "the", "and", "of"),
    ]

    def word() -> str:
        if rng.random() < 0.6:
            return str(rng.choice(known))
        return "".join(rng.choice(list(LETTERS), int(rng.integers(2, 7))))

    most = 14 if rng.random() < 0.4 else 5
    return " ".join(word() for _ in range(int(rng.integers(2, most + 1))))


def training_prompts(count: int) -> list[str]:
    """Good prompts as people wrote them, for a policy to learn from. A number gives the same prompt in any count."""
    prompts = []
    for number in range(count):
        rng = np.random.default_rng([TRAINING, number])
        strange = rng.random() < STRANGE_SHARE
        prompts.append(engineered(strange_content(rng) if strange else write(one_thing(rng, False), rng), rng))
    return prompts


def user_inputs(count: int, out_of_domain: bool = False) -> list[tuple[str, Description]]:
    """Held-out user inputs and what they ask for: one thing, or two out of domain. No two are the same."""
    ask = two_things if out_of_domain else partial(one_thing, held_out=True)
    return _unlike(count, ask, (HELD_OUT, 31 + out_of_domain))


def training_inputs(count: int) -> list[str]:
    """User inputs to learn from, of one thing. No two are the same."""
    return [text for text, _ in _unlike(count, partial(one_thing, held_out=False), (INPUTS,))]


def _unlike(
    count: int, ask: Callable[[np.random.Generator], Description], seed: tuple[int, ...]
) -> list[tuple[str, Description]]:
    found: dict[str, Description] = {}
    number = 0
    while len(found) < count:
        rng = np.random.default_rng([*seed, number])
        description = ask(rng)
        found.setdefault(write(description, rng), description)
        number += 1
    return list(found.items())


def engineered_inputs(inputs: list[tuple[str, Description]]) -> list[str]:
    """What a person would have written for each of the inputs."""
    return [engineered(text, np.random.default_rng([HELD_OUT, 33, n])) for n, (text, _) in enumerate(inputs)]
