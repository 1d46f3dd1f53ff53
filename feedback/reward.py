"""Promptist's reward of an optimized prompt y for a user's prompt x (arXiv 2212.09611, section 2.2, equations 2 to 4).

The reward is relevance plus aesthetic gain; the KL term that keeps the policy near its start belongs to the training
loop. Nothing here needs a node or the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .pictures import pictures_from_batch
from .scorers import ClipRelevance, Scorer, ScorerSetupError, score_each

FACTOR, ENOUGH = 20.0, 0.28
"""Of equation 2: a cosine of 0.28 or more is relevant enough to CLIP ViT-L/14."""


def relevance_terms(cosines: Tensor, enough: float = ENOUGH) -> Tensor:
    """min(20 cos - 5.6, 0), of cosines of prompt x and pictures of y, any shape. At most 0, which is enough.

    With another `enough` than 0.28, min(20 (cos - enough), 0): each CLIP has cosines of its own.
    """
    return (FACTOR * (cosines - enough)).clamp(max=0)


def relevance(cosines: Tensor) -> Tensor:
    """Equation 2: the mean over the pictures [..., n] of their `relevance_terms`."""
    return relevance_terms(cosines).mean(-1)


def aesthetic_gain(scores_y: Tensor, scores_x: Tensor) -> Tensor:
    """Equation 3: the mean aesthetic score of the pictures of y [..., n] less that of the pictures of x [..., m]."""
    return scores_y.mean(-1) - scores_x.mean(-1)


@dataclass(frozen=True)
class PromptistRelevance(ClipRelevance):
    """The `relevance_terms` of each picture, whose mean is equation 2. Pictures with a cosine of `enough` lose nothing.

    Raises:
        ScorerSetupError: `enough` is no cosine.
    """

    enough: float = ENOUGH

    def __post_init__(self) -> None:
        if not -1 <= self.enough <= 1:
            raise ScorerSetupError(f"The cosine that is relevant enough lies between -1 and 1, not at {self.enough}.")

    @property
    def name(self) -> str:
        return f"promptist_relevance/{self.encoder.name}"

    @property
    def version(self) -> str:
        return super().version if self.enough == ENOUGH else f"{super().version}-{self.enough:g}"

    def score_vectors(self, vectors: Tensor, prompt: str) -> Tensor:
        return relevance_terms(super().score_vectors(vectors, prompt), self.enough)


@dataclass(frozen=True)
class Reward:
    """The two parts of a reward, which is their sum (equation 4 without its KL term)."""

    relevance: float
    aesthetic: float

    @property
    def total(self) -> float:
        return self.relevance + self.aesthetic


def promptist_reward(
    images_y: Tensor, images_x: Tensor, prompt_x: str, relevance_scorer: Scorer, aesthetic_scorer: Scorer
) -> Reward:
    """The reward of y: what its pictures are worth to the one who wrote x.

    Args:
        images_y: pictures of the optimized prompt [n, height, width, 3] in 0..1.
        images_x: pictures of the user's prompt [m, height, width, 3].
        prompt_x: the user's prompt, without syntax; y is never compared with its own pictures.
        relevance_scorer: `PromptistRelevance` for the paper's reward. The mean over the pictures of y counts.
        aesthetic_scorer: `Aesthetic` for the paper's; any scorer can stand here, a taste too. What y gains over x
            counts. With the same encoder as the relevance, the pictures of y are encoded once.

    Raises:
        ValueError: a batch is empty, a picture holds NaN, or a scorer gave a picture no number. A loop can leave such
            a prompt out; a reward is never NaN.
    """
    new, old = (_stacked(images, side) for images, side in ((images_y, "optimized"), (images_x, "first")))
    relevant, aesthetic_y = score_each([relevance_scorer, aesthetic_scorer], new, prompt_x)
    (aesthetic_x,) = score_each([aesthetic_scorer], old, prompt_x)
    for scorer, scores in (
        (relevance_scorer, relevant),
        (aesthetic_scorer, aesthetic_y),
        (aesthetic_scorer, aesthetic_x),
    ):
        if not all(map(math.isfinite, scores)):
            raise ValueError(f"{scorer.name} gave a picture no number, so there is no reward.")
    gain = aesthetic_gain(torch.tensor(aesthetic_y), torch.tensor(aesthetic_x))
    return Reward(float(torch.tensor(relevant).mean()), float(gain))


def _stacked(images: Tensor, side: str) -> Tensor:
    pictures = pictures_from_batch(images, side)
    if not pictures:
        raise ValueError(f"There are no {side} pictures to reward: the batch is empty.")
    return torch.stack(pictures)
