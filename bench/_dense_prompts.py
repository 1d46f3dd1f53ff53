"""Dense prompts for any checkpoint: written by a seeded grammar, or read from a user's file.

The grammar writes in the manner of the DensePrompts of LLM4GEN (arXiv 2407.00737, section 4.1): several entities, each
with attributes of its own such as colour, material, shape and texture, relations in space between them, several
sentences, 40 to 140 words. It is our own and holds none of the paper's prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WORDS = (40, 140)
"""Fewest and most words of a dense prompt."""
ENTITIES = (3, 6)
"""Fewest and most entities in a prompt."""

Rng = np.random.Generator


@dataclass(frozen=True)
class Kind:
    """A family of entities: their names, what goes before a name, what is told of them in a sentence of their own."""

    names: tuple[str, ...]
    attributes: Mapping[str, tuple[str, ...]]
    """By slot, in the order in which English has them before a noun."""
    told: tuple[str, ...]


COLOURS = ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "brown", "black", "white", "grey")
SIZES = ("small", "large", "tall", "narrow", "wide", "tiny")

KINDS = (
    Kind(
        ("vase", "bowl", "teapot", "jug", "lamp", "bottle", "candlestick"),
        {
            "size": SIZES,
            "texture": ("smooth", "glossy", "rough", "cracked", "speckled", "ribbed"),
            "shape": ("round", "oval", "square", "cylindrical", "hexagonal"),
            "colour": COLOURS,
            "material": ("glass", "porcelain", "clay", "copper", "silver", "marble"),
        },
        (
            "Its rim is {colour}.",
            "A thin {colour} line runs around its middle.",
            "Its base is {colour} and catches the light.",
        ),
    ),
    Kind(
        ("chair", "table", "bench", "cupboard", "stool", "chest", "bookshelf"),
        {
            "size": SIZES,
            "texture": ("polished", "weathered", "carved", "scratched", "smooth"),
            "shape": ("round", "square", "rectangular", "curved"),
            "colour": COLOURS,
            "material": ("wooden", "metal", "wicker", "stone", "bamboo"),
        },
        (
            "Its legs are painted {colour}.",
            "A folded {colour} cloth lies across it.",
            "Its corners are fitted with {colour} metal.",
        ),
    ),
    Kind(
        ("cushion", "blanket", "suitcase", "backpack", "umbrella", "armchair", "tent"),
        {
            "size": SIZES,
            "texture": ("striped", "soft", "wrinkled", "quilted", "dotted", "worn"),
            "colour": COLOURS,
            "material": ("leather", "velvet", "linen", "cotton", "wool", "silk"),
        },
        (
            "Its seams are {colour}.",
            "It is trimmed with {colour} cord and lined with {other} {material}.",
            "A {colour} ribbon is tied around it.",
        ),
    ),
    Kind(
        ("cat", "dog", "rabbit", "fox", "horse", "goat", "owl", "parrot"),
        {
            "size": ("small", "large", "slender", "plump"),
            "texture": ("fluffy", "sleek", "shaggy", "spotted", "silky"),
            "colour": ("ginger", "black", "white", "grey", "brown", "golden"),
        },
        (
            "It wears a {colour} collar with a brass bell.",
            "It looks straight at the viewer.",
            "Its head is turned to the left.",
            "One of its ears is {colour}.",
        ),
    ),
    Kind(
        ("woman", "man", "girl", "boy", "fisherman", "gardener", "musician"),
        {
            "size": ("tall", "short", "young", "old", "slim"),
            "texture": ("curly-haired", "bearded", "freckled", "smiling", "long-haired", "bald"),
        },
        (
            "The figure wears a {colour} {material} coat and {other} boots.",
            "A {colour} scarf and a {other} {material} hat go with a plain white shirt.",
            "Both hands hold a {colour} {material} bag with a {other} strap.",
        ),
    ),
    Kind(
        ("bicycle", "car", "rowing boat", "cart", "motorcycle", "wagon"),
        {
            "size": ("small", "large", "long"),
            "texture": ("shiny", "rusty", "dusty", "battered", "freshly painted"),
            "colour": COLOURS,
            "material": ("steel", "wooden", "tin"),
        },
        (
            "A {colour} stripe runs along its side.",
            "Its front is {colour} and a little dented.",
            "A {colour} flag is fixed to its back.",
        ),
    ),
)
CLOTH = ("leather", "wool", "silk", "denim", "velvet")

PLACES = (
    "in a quiet courtyard with cobblestones",
    "in a bright room with tall windows",
    "on a beach at low tide",
    "in a forest clearing covered with moss",
    "on the roof of an old house",
    "in a crowded market hall",
    "on a snowy square",
    "in a workshop with brick walls",
)
OPENINGS = (
    "{style} shows a scene {place}.",
    "{style} of a scene {place}.",
    "The scene is set {place}, seen in {style_inside}.",
)
STYLES = (
    "a detailed oil painting",
    "a photograph",
    "a watercolour",
    "a pencil drawing",
    "a 3D rendering",
    "an illustration for a children's book",
)
FIRST = (
    "In the foreground there is {entity}.",
    "The eye falls first on {entity}.",
    "In the centre there is {entity}.",
)
NEXT = (
    "{relation} {known}, there is {entity}.",
    "{relation} {known} one sees {entity}.",
    "There is also {entity}, {relation_inside} {known}.",
)
RELATIONS = ("to the left of", "to the right of", "behind", "in front of", "next to", "not far from")
LIGHTS = (
    "Warm evening light falls from the {side} and throws long shadows.",
    "Pale morning light comes from the {side}, and the air is a little misty.",
    "A single lamp on the {side} lights the scene, and the corners stay dark.",
    "The sky is overcast, and a soft glow comes from the {side}.",
)
SIDES = ("left", "right")


def dense_prompts(count: int, seed: int = 0) -> list[str]:
    """Different prompts of 40 to 140 words. The first ones are the same whatever the count."""
    found: dict[str, None] = {}
    number = 0
    while len(found) < count:
        text = _write(np.random.default_rng([seed, number]))
        if WORDS[0] <= len(text.split()) <= WORDS[1]:
            found[text] = None
        number += 1
    return list(found)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one on each line; blank lines and blanks around a prompt are left out.

    The text files of T2I-CompBench work as they are.

    Raises:
        ValueError: The file is not there, is no UTF-8 text or holds no prompt; the message names it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"The prompt file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"The prompt file {path} is no UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    prompts = [line.strip() for line in text.split("\n") if line.strip()]
    if not prompts:
        raise ValueError(f"The prompt file {path} holds no prompt. Write one prompt on each line.")
    return prompts


def _write(rng: Rng) -> str:
    style = _one(STYLES, rng)
    said = {"style": _capital(style), "style_inside": style, "place": _one(PLACES, rng)}
    sentences = [_one(OPENINGS, rng).format(**said)]
    known: list[str] = []
    for name, kind in _entities(int(rng.integers(ENTITIES[0], ENTITIES[1] + 1)), rng):
        entity = _described(name, kind, rng)
        relation = _one(RELATIONS, rng)
        said = {"entity": entity, "relation": _capital(relation), "relation_inside": relation}
        sentences.append(_one(NEXT if known else FIRST, rng).format(**said, known=_one(known, rng) if known else ""))
        if rng.random() < 0.6:
            sentences.append(_told(kind, rng))
        known.append(f"the {name}")
    sentences.append(_one(LIGHTS, rng).format(side=_one(SIDES, rng)))
    return " ".join(sentences)


def _entities(count: int, rng: Rng) -> list[tuple[str, Kind]]:
    """Entities with names of their own, so that "the vase" is clear."""
    every = [(name, kind) for kind in KINDS for name in kind.names]
    return [every[int(at)] for at in rng.choice(len(every), count, replace=False)]


def _described(name: str, kind: Kind, rng: Rng) -> str:
    """An entity with two to four attributes, and its article."""
    slots = list(kind.attributes)
    most = min(4, len(slots))
    chosen = sorted(rng.choice(len(slots), int(rng.integers(2, most + 1)), replace=False))
    phrase = " ".join([*(_one(kind.attributes[slots[int(at)]], rng) for at in chosen), name])
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _told(kind: Kind, rng: Rng) -> str:
    """A sentence about an entity that was just named."""
    colour, other = rng.choice(COLOURS, 2, replace=False)
    text = _one(kind.told, rng).format(colour=colour, other=other, material=_one(CLOTH, rng))
    return text.replace("A orange", "An orange").replace(" a orange", " an orange")


def _one(options: tuple[str, ...] | list[str], rng: Rng) -> str:
    return options[int(rng.integers(len(options)))]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
