"""A person's taste, fitted on thumbs: a small logistic head on the embeddings of picture and prompt.

It can stand where Promptist has a public aesthetic head (arXiv 2212.09611, section 2.2). The log odds of a thumb up
are affine in [picture, prompt]. The fit is the penalised maximum of the likelihood by Newton's method, in float64 and
without chance, so the same ratings give the same head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .scorers import EncoderScorer, TextImageEncoder, vectors_version

FEWEST = 4
"""Ratings that a taste can be fitted on; with fewer a line through all of them says nothing."""
PENALTY = 1.0
"""Half of this times the squared weights is added to the loss, where the features have a mean square of 1 and each
rating counts 1. From 0.01 to 10 ShapeWorld's people are told apart alike."""
FOLDS = 5
"""Parts of the ratings that are held out in turn."""
LONGEST = 100
"""Characters of a session in a scorer's name."""


class TasteError(ValueError):
    """No taste can be fitted on these ratings; the message says what to do."""


@dataclass(frozen=True, eq=False)
class TasteHead:
    """Log odds of a thumb up: `weight` [2 d] times (features - `centre` [2 d]), plus `bias`."""

    centre: Tensor
    weight: Tensor
    bias: float

    def __call__(self, features: Tensor) -> Tensor:
        """Chances [n] in 0..1 of a thumb up, of `features` [n, 2 d]."""
        return torch.sigmoid((features.double() - self.centre) @ self.weight + self.bias).float()


@dataclass(frozen=True, eq=False)
class Taste(EncoderScorer):
    """The chance that the person whose ratings these are likes a picture of a prompt."""

    encoder: TextImageEncoder
    head: TasteHead
    session: str = ""
    needs_prompt = True

    @property
    def name(self) -> str:
        return f"taste/{self.session[:LONGEST] or 'all sessions'}/{self.encoder.name}"

    @property
    def version(self) -> str:
        head = torch.cat([self.head.centre, self.head.weight, torch.tensor([self.head.bias])])
        return f"{self.encoder.version}-{vectors_version(head)}"

    def score_vectors(self, vectors: Tensor, prompt: str) -> Tensor:
        return self.head(features(vectors, self.encoder.encode_text(prompt).expand_as(vectors)))


def features(pictures: Tensor, prompts: Tensor) -> Tensor:
    """What a head sees [n, 2 d], of unit vectors [n, d] of pictures and of their prompts."""
    return torch.cat([pictures, prompts], dim=1)


def fit_taste(seen: Tensor, thumbs: Sequence[int], strengths: Sequence[float] | None = None) -> TasteHead:
    """Fit a head.

    Args:
        seen: `features` [n, 2 d] of the rated pictures.
        thumbs: 1 or -1 for each.
        strengths: how much each counts, above 0 and at most 1; all in full without.

    Raises:
        TasteError: fewer than 4 ratings, thumbs of one kind alone, or a vector that is no number.
    """
    liked = sum(thumb > 0 for thumb in thumbs)
    if len(thumbs) < FEWEST or liked in (0, len(thumbs)):
        raise TasteError(
            f"A taste needs at least {FEWEST} rated pictures with thumbs up and thumbs down among them. There are "
            f"{liked} liked and {len(thumbs) - liked} disliked. Rate more pictures with Rate Images."
        )
    if not seen.isfinite().all():
        raise TasteError("The embedding of a rated picture holds values that are not numbers (NaN or infinity).")
    seen = seen.double()
    centre = seen.mean(0)
    # One step of the fit costs the cube of the width, so it goes on in the space that the ratings span.
    left, spread, axes = torch.linalg.svd(seen - centre, full_matrices=False)
    size = max(float((spread.square().sum() / len(seen)).sqrt()), 1e-12)
    wanted = torch.tensor([float(thumb > 0) for thumb in thumbs], dtype=torch.float64)
    counts = torch.tensor(strengths or [1.0] * len(thumbs), dtype=torch.float64)
    inner, bias = _logistic(left * spread / size, wanted, counts)
    return TasteHead(centre, axes.T @ inner / size, bias)


def _logistic(seen: Tensor, wanted: Tensor, counts: Tensor) -> tuple[Tensor, float]:
    """Weights [r] and bias of the penalised logistic regression of `wanted` [n] in 0..1 on `seen` [n, r]."""
    rows = torch.cat([seen, seen.new_ones(len(seen), 1)], 1)
    penalty = torch.full((rows.shape[1],), PENALTY, dtype=torch.float64)
    penalty[-1] = 1e-6  # the bias is free; this keeps the system solvable
    weights = torch.zeros_like(penalty)
    for _ in range(50):
        chance = torch.sigmoid(rows @ weights)
        slope = rows.T @ (counts * (chance - wanted)) + penalty * weights
        curve = (rows.T * (counts * chance * (1 - chance))) @ rows + torch.diag(penalty)
        step = torch.linalg.solve(curve, slope)
        weights = weights - step
        if step.abs().max() < 1e-10:
            break
    return weights[:-1], float(weights[-1])


def held_out_auc(seen: Tensor, thumbs: Sequence[int], strengths: Sequence[float] | None = None) -> float | None:
    """How often a liked picture gets a higher chance than a disliked one, from heads that saw neither's rating.

    Every fifth picture of each side is held out in turn. 0.5 is chance. None with fewer than five on a side.
    """
    sides = [[i for i, thumb in enumerate(thumbs) if (thumb > 0) == up] for up in (True, False)]
    if min(map(len, sides)) < FOLDS:
        return None
    shares = []
    for fold in range(FOLDS):
        out = {i for side in sides for i in side[fold::FOLDS]}
        kept = [i for i in range(len(thumbs)) if i not in out]
        head = fit_taste(seen[kept], [thumbs[i] for i in kept], [strengths[i] for i in kept] if strengths else None)
        up, down = (head(seen[[i for i in side if i in out]]) for side in sides)
        shares.append(area_under_curve(up, down))
    return sum(shares) / FOLDS


def area_under_curve(up: Tensor, down: Tensor) -> float:
    """The share of pairs of one of `up` [n] and one of `down` [m] in which `up` is higher; a tie counts half."""
    gaps = up[:, None] - down[None]
    return float(((gaps > 0).double() + (gaps == 0).double() / 2).mean())
