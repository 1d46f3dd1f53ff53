"""Held-out trials: the prompts that models are asked, and how the oracle judges the answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from .caption import Description, Words, describe, write
from .oracle import assign, look
from .render import render
from .scene import COLOURS, SHAPES, random_scene

HELD_OUT = 900_001
"""Seeds of held-out scenes begin with this number; training never uses it."""
BLUR, NOISE = 0.8, 8.0
"""A mildly noisy picture: Gaussian blur in px at 128 px, then Gaussian noise of this many grey levels."""
ONE_OBJECT = {"size": 0.35, "texture": 0.5, "colour": 1, "shape": 1, "place": 0.35, "background": 0.5, "style": 1}
DENSE = {"size": 0.2, "texture": 0.3, "colour": 1, "shape": 1, "place": 0.2, "background": 0.3, "style": 0}


def oracle_hits(count: int, noisy: bool) -> list[bool]:
    """For each thing of `count` rendered scenes: does the oracle see its shape and its colour at its place?

    No scene of these seeds was looked at while the oracle was tuned.
    """
    hits = []
    for i in range(count):
        rng = np.random.default_rng([HELD_OUT, 5, i])
        scene = random_scene(rng)
        picture = render(scene)
        if noisy:
            blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(BLUR)), np.float64)
            picture = (blurred + rng.normal(0, NOISE, blurred.shape)).clip(0, 255).astype(np.uint8)
        seen = look(picture).things
        for thing in scene.things:
            near = [s for s in seen if np.hypot(s.x - thing.x, s.y - thing.y) < 0.1]
            hits.append(any(s.shape == thing.shape and s.colour == thing.colour for s in near))
    return hits


def one_object_prompts(count: int, style: str = "flat") -> list[tuple[str, Description]]:
    """Prompts that name colour and shape of one thing; often its size, texture, place and background too."""
    return [_prompt(np.random.default_rng([HELD_OUT, 2, i]), 1, style, ONE_OBJECT) for i in range(count)]


def dense_prompts(count: int) -> list[tuple[str, Description]]:
    """Prompts of three to five things, each with its colour and its shape."""
    return [_prompt(np.random.default_rng([HELD_OUT, 3, i]), 3 + i % 3, "flat", DENSE) for i in range(count)]


def caption_choices(count: int, near: bool) -> list[tuple[Image.Image, list[str]]]:
    """Pictures of one thing in any style, each with eight captions of which the first is true.

    The other captions are those of other scenes with another colour or shape; with `near` they are the true one with
    another colour (four of them) or another shape (three).
    """
    out = []
    for i in range(count):
        scene = random_scene(np.random.default_rng([HELD_OUT, 6, i]), 1)
        own = describe(scene, np.random.default_rng([HELD_OUT, 7, i]), ONE_OBJECT)
        rng, others = np.random.default_rng([HELD_OUT, 8, i]), []
        if near:
            thing = own.things[0]
            words = [replace(thing, colour=str(c)) for c in rng.permutation([c for c in COLOURS if c != thing.colour])]
            words = words[:4] + [
                replace(thing, shape=str(s)) for s in rng.permutation([s for s in SHAPES if s != thing.shape])[:3]
            ]
            others = [replace(own, things=(word,)) for word in words]
        while len(others) < 7:
            other = describe(random_scene(rng, 1), rng, ONE_OBJECT)
            if (other.things[0].colour, other.things[0].shape) != (own.things[0].colour, own.things[0].shape):
                others.append(other)
        texts = [write(description, np.random.default_rng([HELD_OUT, 9, i])) for description in (own, *others)]
        out.append((render(scene), texts))
    return out


def _prompt(rng: np.random.Generator, things: int, style: str, keep: dict[str, float]) -> tuple[str, Description]:
    description = describe(random_scene(rng, things, {style: 1.0}), rng, keep)
    return write(description, rng), description


def largest(picture: Image.Image | np.ndarray) -> Words:
    """Colour and shape of the largest thing in a picture; None for what cannot be told."""
    things = look(picture).things
    return Words(things[0].shape, things[0].colour) if things else Words()


def bound(picture: np.ndarray, description: Description) -> list[bool]:
    """For each described thing: is there one in the picture with its colour and its shape?"""
    return [seen is not None for seen in assign(look(picture), description)]
