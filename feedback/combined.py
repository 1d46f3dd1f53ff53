"""Several scorers as one: the weighted sum of their scores.

The scores are summed as they are, not standardised. So a sum does not depend on which pictures share the batch, it can
be kept and compared later, one picture has one, and a sum of sums is the sum of all. A weight therefore has to bring
the scores to one size; `web/docs/AtelierCombineScorers.md` says how far each scorer's go.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from .scorers import Scorer, label, score_each

LONGEST = 300
"""Characters of a readable name; with the version it must go into the store."""


@dataclass(frozen=True)
class Combined:
    """The sum over `terms` of weight times score. A picture to which one term gives no number has no number.

    Raises:
        ValueError: there are no terms.
    """

    terms: tuple[tuple[Scorer, float], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("All weights are 0, so there is nothing to score with. Raise one of them.")

    @property
    def name(self) -> str:
        readable = " + ".join(f"{weight:g} {scorer.name}" for scorer, weight in self.terms)
        return f"combined/{readable}" if len(readable) <= LONGEST else f"combined/{len(self.terms)} scorers"

    @property
    def version(self) -> str:
        parts = "\n".join(f"{weight!r} {label(scorer)}" for scorer, weight in self.terms)
        return hashlib.sha256(parts.encode()).hexdigest()[:8]

    @property
    def needs_prompt(self) -> bool:
        return any(scorer.needs_prompt for scorer, _ in self.terms)

    def score(self, images: Tensor, prompt: str) -> list[float]:
        scores = score_each([scorer for scorer, _ in self.terms], images, prompt)
        weights = torch.tensor([weight for _, weight in self.terms], dtype=torch.float64)
        return (weights @ torch.tensor(scores, dtype=torch.float64)).tolist()


def combine(*parts: tuple[Scorer, float]) -> Combined:
    """The weighted sum of scorers. A sum among them is dissolved into its terms; a part with the weight 0 is left out.

    Raises:
        ValueError: all weights are 0.
    """
    terms: list[tuple[Scorer, float]] = []
    for scorer, weight in parts:
        inner = scorer.terms if isinstance(scorer, Combined) else ((scorer, 1.0),)
        terms += [(part, weight * factor) for part, factor in inner if weight * factor]
    return Combined(tuple(terms))
