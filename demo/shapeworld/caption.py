"""Captions: a scene into words, the words back into what they say, and what they say into a scene again.

The grammar, with everything in brackets optional:

    caption   := [style "of"] group {(", " | " and ") group} [", on a" background "background"] [", " style phrase]
    group     := thing [place] | thing relation thing
    thing     := "a" [size] [texture] [colour] (shape | "shape")
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from .scene import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLE_SURFACE,
    TEXTURES,
    Scene,
    Thing,
    fits,
    random_place,
    relation,
)

STYLE_PREFIX = {
    "flat": "a flat drawing of",
    "chalk": "a chalk drawing of",
    "neon": "a neon sign of",
    "sticker": "a sticker of",
}
STYLE_SUFFIX = {"flat": "flat drawing", "chalk": "drawn in chalk", "neon": "as a neon sign", "sticker": "as a sticker"}
BACKGROUND_PHRASE = re.compile(r"^on (?:a|an|the) (\w+) background$")
ANY_SHAPE = "shape"
KEEP = {"size": 0.35, "texture": 0.6, "colour": 0.75, "shape": 0.93, "place": 0.35, "background": 0.5, "style": 0.75}
"""How often a training caption names each attribute. What is left out, a model must learn to choose by itself."""


@dataclass(frozen=True)
class Words:
    """What a caption says about one thing; None is what it leaves open."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Description:
    """What a caption says. `relations` holds (index, relation, index) of things that stand side by side in it."""

    things: tuple[Words, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    background: str | None = None
    style: str | None = None


def describe(scene: Scene, rng: np.random.Generator, keep: dict[str, float] | None = None) -> Description:
    """What a caption of the scene could say, each attribute kept with its probability in `keep`."""
    keep = KEEP if keep is None else keep

    def kept(name: str, value: str) -> str | None:
        return value if rng.random() < keep[name] else None

    is_filled = scene.style not in STYLE_SURFACE

    order = [int(i) for i in rng.permutation(len(scene.things))]
    things = [scene.things[i] for i in order]
    words, relations, i = [], [], 0
    while i < len(things):
        pair = i + 1 < len(things) and rng.random() < 0.6
        for thing in things[i : i + 2] if pair else things[i : i + 1]:
            texture = kept("texture", thing.texture) if is_filled and thing.texture != "plain" else None
            place = None if pair else kept("place", thing.place)
            words.append(
                Words(
                    kept("shape", thing.shape), kept("colour", thing.colour), kept("size", thing.size), texture, place
                )
            )
        if pair:
            relations.append((i, relation(things[i], things[i + 1]), i + 1))
        i += 2 if pair else 1
    background = kept("background", scene.background) if is_filled else None
    style = kept("style", scene.style) if scene.style != "flat" or rng.random() < 0.3 else None
    return Description(tuple(words), tuple(relations), background, style)


def full_description(scene: Scene, rng: np.random.Generator) -> Description:
    """Everything that a caption can say about the scene."""
    return describe(scene, rng, dict.fromkeys(KEEP, 1.0))


def write(description: Description, rng: np.random.Generator) -> str:
    """The caption of a description. Wording that carries no meaning is chosen by `rng`."""
    linked = {i: (rel, j) for i, rel, j in description.relations}
    groups, i = [], 0
    while i < len(description.things):
        text = write_thing(description.things[i])
        if i in linked:
            text = f"{text} {linked[i][0]} {write_thing(description.things[linked[i][1]])}"
        groups.append(text)
        i += 2 if i in linked else 1
    text = groups[0] if len(groups) == 1 else ", ".join(groups[:-1]) + " and " + groups[-1]
    prefix = description.style is not None and rng.random() < 0.4
    if prefix:
        text = f"{STYLE_PREFIX[description.style]} {text}"
    if description.background is not None:
        text = f"{text}, on a {description.background} background"
    if description.style is not None and not prefix:
        text = f"{text}, {STYLE_SUFFIX[description.style]}"
    return text


def write_thing(words: Words) -> str:
    """The words for one thing, with "a" or "an" in front."""
    named = [words.size, words.texture, words.colour, words.shape or ANY_SHAPE]
    text = " ".join(word for word in named if word)
    article = "an" if text[0] in "aeiou" else "a"
    return f"{article} {text}" + (f" {words.place}" if words.place else "")


def read(caption: str) -> Description:
    """What a caption says. Raises ValueError naming the part that is not in the grammar."""
    text = caption.strip().rstrip(".").lower()
    style = background = None
    for name, prefix in STYLE_PREFIX.items():
        if text.startswith(prefix + " "):
            style, text = name, text[len(prefix) + 1 :]
    things: list[Words] = []
    relations: list[tuple[int, str, int]] = []
    for part in re.split(r", and |, | and ", text):
        if phrase := BACKGROUND_PHRASE.match(part):
            background = _known(phrase[1], BACKGROUNDS, caption)
        elif part in STYLE_SUFFIX.values():
            style = next(name for name, suffix in STYLE_SUFFIX.items() if suffix == part)
        else:
            sides = re.split(rf" ({'|'.join(RELATIONS)}) ", part)
            if len(sides) == 3:
                relations.append((len(things), sides[1], len(things) + 1))
            elif len(sides) != 1:
                raise ValueError(f"more than one relation in '{part}' of '{caption}'")
            things += [read_thing(side, caption) for side in sides[::2]]
    return Description(tuple(things), tuple(relations), background, style)


def read_thing(text: str, caption: str) -> Words:
    """What the words for one thing say. Raises ValueError naming a word that is not in the grammar, and the caption."""
    place = next((p for p in PLACES if text.endswith(" " + p)), None)
    found: dict[str, str] = {}
    for word in (text[: -len(place)] if place else text).split():
        if word in ("a", "an", "the", ANY_SHAPE):
            continue
        kinds = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "texture": TEXTURES}
        kind = next((k for k, known in kinds.items() if word in known), None)
        if kind is None or kind in found:
            raise ValueError(f"cannot read '{word}' in '{caption}'")
        found[kind] = word
    return Words(place=place, **found)


def _known(word: str, known: dict[str, object], caption: str) -> str:
    if word not in known:
        raise ValueError(f"cannot read '{word}' in '{caption}': one of {', '.join(known)} is known")
    return word


def compose(description: Description, rng: np.random.Generator, tries: int = 500) -> Scene:
    """A random scene that agrees with the description. Raises ValueError when its parts do not go together."""
    for _ in range(tries):
        things: list[Thing] = []
        try:
            for words in description.things:
                things.append(compose_thing(words, things, len(description.things), rng))
        except ValueError:
            continue
        if all(relation(things[i], things[j]) == rel for i, rel, j in description.relations):
            background = description.background or str(rng.choice(list(BACKGROUNDS)))
            return Scene(tuple(things), background, description.style or "flat")
    raise ValueError("no scene agrees with the description: " + write(description, rng))


def compose_thing(words: Words, others: list[Thing], count: int, rng: np.random.Generator) -> Thing:
    """A thing that agrees with the words, at a free place of a scene with `count` things. Raises ValueError when there
    is no room."""
    size = words.size or ("large" if count == 1 else "medium" if count == 2 else "small")
    radius = float(rng.uniform(*SIZES[size]))
    thing = Thing(
        words.shape or str(rng.choice(SHAPES)),
        words.colour or str(rng.choice(list(COLOURS))),
        words.texture or "plain",
        radius=radius,
        angle=float(rng.uniform(-10, 10)),
    )
    for _ in range(50):
        x, y = random_place(rng, radius, others)
        thing = replace(thing, x=x, y=y)
        if words.place in (None, thing.place):
            return thing
    x, y = PLACES[words.place]
    edge = radius + 0.035
    thing = replace(thing, x=float(np.clip(x, edge, 1 - edge)), y=float(np.clip(y, edge, 1 - edge)))
    if thing.place != words.place or not fits(thing, others):
        raise ValueError(f"no room {words.place}")
    return thing
