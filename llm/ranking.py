"""How well each model did on prompts like this one: selection by human feedback (arXiv 2401.10061, section 3.4).

The paper looks up the nearest prompts of a database of scores, and keeps the models that did best there. Here the
evidence is a person's own ratings and the scorers' scores, weighed by the similarity of the whole prompts, and the
ranking is arithmetic: a Bayesian mean, so that one like does not beat twenty.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

FLOOR = 0.5
"""Cosine from which a prompt counts as similar. With MiniLM, prompts of one style and different things have a median of
0.6, prompts of two styles 0.37 (ShapeWorld, 12 prompts for each style; in-sample)."""

LIMIT = 200
"""Similar prompts that are looked at, the nearest first."""

PRIOR = 0.5
"""What is expected of a model that nobody rated: as many likes as dislikes."""

PRIOR_WEIGHT = 4.0
"""How many ratings the prior counts for."""

SCORE_WEIGHT = 0.5
"""A scorer's score counts for this part of a person's rating."""

LEAD = 0.15
"""Models whose mean is within this of the best are not told apart: two likes do it, one does not."""


class PastResult(Protocol):
    """How one model did on one prompt. `scores` has the values of each scorer, in the scorer's own unit."""

    @property
    def prompt(self) -> str: ...
    @property
    def similarity(self) -> float: ...
    @property
    def checkpoint(self) -> str:
        """The model's key, see `tree.model_key`."""
        ...

    @property
    def likes(self) -> int: ...
    @property
    def dislikes(self) -> int: ...
    @property
    def scores(self) -> Mapping[str, Sequence[float]]: ...


class History(Protocol):
    """Remembers how models did."""

    def similar(self, prompt: str, floor: float, limit: int) -> Sequence[PastResult]:
        """The results of up to `limit` prompts whose similarity to this one is at least `floor`, nearest first."""
        ...


@dataclass(frozen=True)
class Standing:
    """What the evidence says of one model. `mean` is in 0..1; `weight` is how many ratings it rests on."""

    mean: float
    weight: float
    likes: int
    dislikes: int
    scored: int
    nearest: tuple[tuple[str, float], ...]

    def as_json(self) -> dict[str, Any]:
        nearest = [{"prompt": prompt, "similarity": round(cosine, 3)} for prompt, cosine in self.nearest]
        numbers = {"likes": self.likes, "dislikes": self.dislikes, "scored": self.scored}
        return {"mean": round(self.mean, 3), "weight": round(self.weight, 2), **numbers, "nearest": nearest}

    def in_words(self) -> str:
        likes = f"{self.likes} {'like' if self.likes == 1 else 'likes'}"
        dislikes = f"{self.dislikes} {'dislike' if self.dislikes == 1 else 'dislikes'}"
        scored = f", {self.scored} scored pictures" if self.scored else ""
        return f"{likes}, {dislikes}{scored} on similar prompts ({self.mean:.2f})"


def standings(past: Sequence[PastResult], floor: float = FLOOR) -> dict[str, Standing]:
    """The standing of each model that has evidence.

    A rating weighs (s - floor) / (1 - floor) for a prompt of similarity s: 1 for this very prompt, 0 at the floor. The
    mean is (sum of weighted goods + PRIOR · PRIOR_WEIGHT) / (sum of weights + PRIOR_WEIGHT). A score's good is its rank
    among all scores of its scorer here, from 0 to 1.
    """
    ranks = _ranks(past)
    grouped: dict[str, list[PastResult]] = defaultdict(list)
    for result in past:
        if result.similarity > floor:
            grouped[result.checkpoint].append(result)
    return {key: _standing(results, floor, ranks) for key, results in grouped.items()}


def _standing(results: Sequence[PastResult], floor: float, ranks: Mapping[str, list[float]]) -> Standing:
    good = weight = 0.0
    likes = dislikes = scored = 0
    for result in results:
        near = min(1.0, (result.similarity - floor) / (1 - floor))
        good += near * result.likes
        weight += near * (result.likes + result.dislikes)
        likes, dislikes = likes + result.likes, dislikes + result.dislikes
        for scorer, values in result.scores.items():
            good += near * SCORE_WEIGHT * sum(_rank(value, ranks[scorer]) for value in values)
            weight += near * SCORE_WEIGHT * len(values)
            scored += len(values)
    mean = (good + PRIOR * PRIOR_WEIGHT) / (weight + PRIOR_WEIGHT)
    nearest = sorted({(result.prompt, result.similarity) for result in results}, key=lambda pair: -pair[1])
    return Standing(mean, weight, likes, dislikes, scored, tuple(nearest[:3]))


def _ranks(past: Sequence[PastResult]) -> dict[str, list[float]]:
    """All scores of each scorer, sorted: scorers have units of their own, so only the order can be compared."""
    values: dict[str, list[float]] = defaultdict(list)
    for result in past:
        for scorer, scores in result.scores.items():
            values[scorer] += scores
    return {scorer: sorted(scores) for scorer, scores in values.items()}


def _rank(value: float, scores: list[float]) -> float:
    """The share of scores below a value, half of those equal to it included."""
    return (bisect_left(scores, value) + bisect_right(scores, value)) / (2 * len(scores))
