"""Dense captions: everything about a scene of several things, told in many sentences of 40 to 140 words together.

What belongs to a thing is spread over its sentences ("There is a star on the left. It is large. Its colour is red."),
so a reader has to bind it over a distance, as in the DensePrompts of LLM4GEN (arXiv 2407.00737, section 4).
"""

from __future__ import annotations

import numpy as np

from .caption import Description, Words
from .scene import Scene, Thing, random_scene, relation

COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}
WORDS = (40, 140)
"""Fewest and most words of a dense caption."""

OPENINGS = (
    "The picture shows {count} shapes on a {background} background.",
    "There are {count} shapes in this picture, and the background is {background}.",
    "On a {background} background lie {count} shapes.",
)
LEADS = ("There is", "One of them is", "The picture also shows", "Another one is", "Here we see")
COLOURED = ("Its colour is {colour}.", "It is painted {colour}.", "It is {colour}.")
SIZED = ("It is {size}.", "Its size is {size}.")
TEXTURED = ("Its surface is {texture}.", "It looks {texture}.")
RELATED = ("It lies {relation} the {colour} {shape}.", "You find it {relation} the {shape} that is {colour}.")


def dense_scene(rng: np.random.Generator) -> Scene:
    """A random flat scene of two or three things, none of them small: the demo models draw small shapes as blobs."""
    return random_scene(rng, int(rng.integers(2, 4)), {"flat": 1.0}, ("medium", "medium", "large"))


def dense_description(scene: Scene) -> Description:
    """What a dense caption says for sure: the shape, the colour and the place of each thing, and the background."""
    return Description(
        tuple(Words(thing.shape, thing.colour, place=thing.place) for thing in scene.things),
        background=scene.background,
    )


def write_dense(scene: Scene, rng: np.random.Generator) -> str:
    """A dense caption of a scene of two or three things; order and wording are chosen by `rng`."""
    while True:
        text = " ".join(sentence for sentence, _ in tell(scene, rng))
        if WORDS[0] <= len(text.split()) <= WORDS[1]:
            return text


def tell(scene: Scene, rng: np.random.Generator) -> list[tuple[str, int | None]]:
    """Sentences about a scene of two to five things, each with the number of the thing that it is about."""
    opening = str(rng.choice(OPENINGS)).format(count=COUNTS[len(scene.things)], background=scene.background)
    sentences: list[tuple[str, int | None]] = [(opening, None)]
    told: list[Thing] = []
    for index in rng.permutation(len(scene.things)):
        thing = scene.things[int(index)]
        sentences += [(sentence, int(index)) for sentence in _about(thing, told, rng)]
        told.append(thing)
    return sentences


def _about(thing: Thing, told: list[Thing], rng: np.random.Generator) -> list[str]:
    """The sentences about one thing. What its first sentence leaves out, the others say."""
    ahead = {name: rng.random() < 0.45 for name in ("size", "texture", "colour")}
    named = [getattr(thing, name) for name, first in ahead.items() if first]
    words = " ".join([*named, thing.shape])
    article = "an" if words[0] in "aeiou" else "a"
    first = f"{rng.choice(LEADS)} {article} {words} {thing.place}."
    later = {"size": SIZED, "texture": TEXTURED, "colour": COLOURED}
    rest = [
        str(rng.choice(later[name])).format(**{name: getattr(thing, name)})
        for name, given in ahead.items()
        if not given
    ]
    if told and rng.random() < 0.5:
        other = told[int(rng.integers(len(told)))]
        said = str(rng.choice(RELATED))
        rest.append(said.format(relation=relation(thing, other), colour=other.colour, shape=other.shape))
    return [first, *(rest[int(i)] for i in rng.permutation(len(rest)))]


def dense_words() -> list[str]:
    """Every word of the grammar's own, sorted; the words for attributes, places and relations are not among them."""
    phrases = [*OPENINGS, *LEADS, *COLOURED, *SIZED, *TEXTURED, *RELATED, *COUNTS.values()]
    words = {word.strip(".,") for phrase in phrases for word in phrase.split() if "{" not in word}
    return sorted(words)
