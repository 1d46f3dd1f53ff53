"""Pictures of wishes and what the oracle thinks of them. Each picture is drawn once."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from _wishes import Wish
from _world import Checkpoint, load_checkpoint
from shapeworld.caption import Description
from shapeworld.oracle import look, score
from shapeworld.trial import HELD_OUT


@dataclass(frozen=True)
class Order:
    """A picture to draw: the demo checkpoint, the prompt, seed and number of its noise, and what it should show."""

    model: str
    prompt: str
    noise: tuple[int, int]
    shows: Description = field(compare=False)


def order(wish: Wish, model: str, prompt: str) -> Order:
    """A picture of a wish. Its noise is the wish's own, whatever model draws it."""
    return Order(model, prompt, (HELD_OUT + wish.seed, wish.number), wish.description)


class Gallery:
    """Draws what is ordered, many pictures at a time, and remembers the oracle's score of each, 0 to 1."""

    def __init__(self) -> None:
        self._scores: dict[Order, float] = {}
        self._loaded: dict[str, Checkpoint] = {}
        self.seconds = 0.0

    @property
    def drawn(self) -> int:
        return len(self._scores)

    def scores(self, orders: Sequence[Order]) -> list[float]:
        start = time.perf_counter()
        together: dict[tuple[str, int], list[Order]] = defaultdict(list)
        for each in dict.fromkeys(orders):
            if each not in self._scores:
                together[each.model, each.noise[0]].append(each)
        for (model, seed), missing in together.items():
            self._draw(model, seed, missing)
        self.seconds += time.perf_counter() - start
        return [self._scores[each] for each in orders]

    def _draw(self, model: str, seed: int, orders: list[Order]) -> None:
        if model not in self._loaded:
            self._loaded[model] = load_checkpoint(model)
        numbers = [each.noise[1] for each in orders]
        pictures = self._loaded[model].draw([each.prompt for each in orders], seed, numbers=numbers)
        for each, picture in zip(orders, pictures, strict=True):
            self._scores[each] = score(look(picture.numpy()), each.shows)
