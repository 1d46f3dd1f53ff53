"""People with a wish that they do not say in words, for sessions of feedback on ShapeWorld.

To be imported after `_world.start_host` and `_world.pack`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from _rounds import Session
from _world import HOME, rendered
from atelier.feedback.open_clip_model import OpenClip, open_model
from shapeworld.oracle import look
from shapeworld.scene import SHAPES, random_scene
from shapeworld.trial import HELD_OUT
from torch import Tensor

WARM = {"red", "orange", "yellow", "pink"}
DARK = {"black", "night"}

Embed = Callable[[Tensor], Tensor]
"""Pictures [n, height, width, 3] in 0..1 to unit vectors [n, width]."""


def with_taste(number: int) -> Session:
    """A person who asks for a shape, and likes warm colours or cold ones, on dark grounds or light ones.

    The score is the share of the three, shape, colour and ground, that a picture has as it is wanted.
    """
    rng = np.random.default_rng([HELD_OUT, 21, number])
    shape, warm, dark = str(rng.choice(SHAPES)), bool(rng.integers(2)), bool(rng.integers(2))

    def score(pictures: Tensor) -> list[float]:
        return [_agreement(picture.numpy(), shape, warm, dark) for picture in pictures]

    return Session(number, f"a {shape}", score, HELD_OUT)


def _agreement(picture: np.ndarray, shape: str, warm: bool, dark: bool) -> float:
    sight = look(picture)
    largest = sight.things[0] if sight.things else None
    has_shape = largest is not None and largest.shape == shape
    has_colour = largest is not None and largest.colour is not None and (largest.colour in WARM) == warm
    return float(np.mean([has_shape, has_colour, (sight.background in DARK) == dark]))


def with_target(number: int, embed: Embed) -> Session:
    """A person who has a picture of one thing in mind and says only its shape. The score is the cosine to it."""
    rng = np.random.default_rng([HELD_OUT, 22, number])
    scene = random_scene(rng, 1, {"flat": 1.0})
    wanted = embed(rendered(scene)[None])[0]

    def score(pictures: Tensor) -> list[float]:
        return (embed(pictures) @ wanted).tolist()

    return Session(number, f"a {scene.things[0].shape}", score, HELD_OUT + 500)


@functools.cache
def clip() -> OpenClip:
    """The demo's small CLIP."""
    from assemble import assemble_scorer

    return open_model(assemble_scorer(HOME / "base" / "models"), lambda model: lambda: model)


def embedder() -> Embed:
    """Pictures to their embeddings by the demo's small CLIP."""
    return clip().encode_images
