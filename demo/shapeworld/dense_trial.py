"""Held-out dense prompts: what they say, for the oracle to look for."""

from __future__ import annotations

import numpy as np

from .caption import Description
from .dense import dense_description, dense_scene, write_dense
from .trial import HELD_OUT


def long_prompts(count: int, part: int = 0) -> list[tuple[str, Description]]:
    """Prompts of 40 to 140 words, about two or three things each. Each `part` has prompts of its own."""
    made = []
    for number in range(count):
        rng = np.random.default_rng([HELD_OUT, 12 + part, number])
        scene = dense_scene(rng)
        made.append((write_dense(scene, rng), dense_description(scene)))
    return made
