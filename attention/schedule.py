"""When and where feedback counts, and how much: the method's settings (FABRIC, arXiv 2307.10159)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from .reference import DISLIKED, LIKED

_HALVINGS = 20
"""Of the window, to find a noise level in it."""

SHAPES: dict[str, Callable[[float], float]] = {
    "constant": lambda position: 1.0,
    "linear": lambda position: 1.0 - position,
    "cosine": lambda position: (1.0 + math.cos(math.pi * position)) / 2.0,
}
"""What is left of the weight at a position in the window, from 0 at its start to 1 at its end."""

DEPTHS: dict[str, Callable[[float], float]] = {
    "all": lambda depth: 1.0,
    "coarse": lambda depth: float(depth >= 0.5),
    "fine": lambda depth: float(depth < 0.5),
    "rising": lambda depth: depth,
}
"""How much a self-attention listens by its depth, from 0 at the full resolution to 1 at the bottleneck.

"rising" is the official code's interpolation over the depth, from 0: generator.py of github.com/sd-fabric/fabric.
"""


MERGE_ABOVE = 1024
"""Where tokens are merged: at 512 x 512 in SD1.5's layers of full resolution, which have 4096."""


@dataclass(frozen=True)
class FabricSchedule:
    """When and where feedback counts, and how much.

    Percents are of the sampling process as in the host's nodes: 0 is pure noise, 1 is the end. Both
    ends belong to the window. Weights are those of equation 2; dislikes have theirs multiplied by
    `negative_scale`. In the window the weight is constant, as in the method's official code, or falls to
    `weight_outside` at the window's end: `shape` is one of SHAPES. `depth` is one of DEPTHS.

    `exploration` is the share of a batch's pictures that are drawn without feedback, the last ones of it.

    References are read at every `renew_every`-th noise level at which they count; at those between, their keys and
    values are the ones of the last level that was read.

    Where a self-attention has more than `merge_above` tokens for a reference, squares of 2 x 2 of them are merged.
    """

    weight: float
    start_percent: float
    end_percent: float
    weight_outside: float
    negative_scale: float
    shape: str = "constant"
    depth: str = "all"
    exploration: float = 0.0
    renew_every: int = 1
    merge_above: int | None = None

    def exploring(self, batch: int) -> Fraction:
        """The share of the batch that is drawn without feedback, in whole pictures."""
        return Fraction(round(self.exploration * batch), batch)

    def weights(self, sigma: float, percent_to_sigma: Callable[[float], float]) -> dict[int, float]:
        """The weights above 0 at a sigma, by side."""
        inside = percent_to_sigma(self.end_percent) <= sigma <= percent_to_sigma(self.start_percent)
        share = self._share(sigma, percent_to_sigma) if inside else 0.0
        weight = share * self.weight + (1.0 - share) * self.weight_outside
        sides = {LIKED: weight, DISLIKED: weight * self.negative_scale}
        return {side: value for side, value in sides.items() if value > 0.0}

    def _share(self, sigma: float, percent_to_sigma: Callable[[float], float]) -> float:
        """What the shape leaves of the weight at a sigma in the window."""
        if self.shape == "constant" or self.start_percent >= self.end_percent:
            return 1.0
        return SHAPES[self.shape](position(sigma, self.start_percent, self.end_percent, percent_to_sigma))


def position(sigma: float, start: float, end: float, percent_to_sigma: Callable[[float], float]) -> float:
    """Where a sigma lies between two percents of sampling, start < end: 0 at the start, 1 at the end.

    The host has no way from a sigma to its percent that all samplings share; `percent_to_sigma` only falls.
    """
    low, high = start, end
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if percent_to_sigma(middle) >= sigma else (low, middle)
    return (low - start) / (end - start)
