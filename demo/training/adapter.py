"""The settings of the node that trains the demo's Cross-Adapter, on `shapeworld.captioned`, in two stages."""

from __future__ import annotations

from dataclasses import dataclass

BATCH, RANK, TOKENS, ENTITY_WEIGHT = 16, 12, 176, 0.01
"""A dense caption has at most TOKENS tokens."""


@dataclass(frozen=True)
class Stage:
    """One training of the node, by the names of its inputs. The second stage goes on from the first one's weights."""

    steps: int
    learning_rate: float
    keep_words: int


STAGES = (Stage(6_000, 1e-3, 0), Stage(1_500, 3e-4, 10))
"""All captions first; then short ones are led back to what the base draws of them, and dense ones go on.

Nearly all captions of one thing have 10 words or fewer.
"""
