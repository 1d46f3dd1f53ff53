"""Which pairs of pictures are kept: similarities by CLIP (arXiv 2211.09800, section 3.1.2).

The directional similarity is the cosine of the change of the picture and the change of the caption, both as CLIP
embeddings (arXiv 2108.00946, equation 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ..feedback.scorers import TextImageEncoder
from ..llm.words import without_syntax
from .edit_triplets import Triplet

UNCHANGED = 0.999
"""Pictures with a cosine above this are the same to CLIP, and the direction of so small a change is chance. The paper
has no such bound, and keeps pairs in which nothing happens."""
NOT_THE_BEST = "not_the_best"
"""Why a pair that passed is dropped: enough others are better."""


@dataclass(frozen=True)
class Similarities:
    """Cosines of one pair: its two pictures, each picture and its caption, and the two changes."""

    image_image: float
    text_before: float
    text_after: float
    directional: float


@dataclass(frozen=True)
class Thresholds:
    """The least similarities of a pair that is kept, -1 to 1. `image_text` is for each picture and its caption."""

    image_image: float = 0.7
    image_text: float = 0.2
    directional: float = 0.2

    def failed(self, pair: Similarities) -> str | None:
        """The first reason to drop a pair, None if there is none. A cosine that is no number reaches no threshold."""
        if not pair.image_image >= self.image_image:
            return "image_image"
        if pair.image_image > UNCHANGED:
            return "unchanged"
        if not (pair.text_before >= self.image_text and pair.text_after >= self.image_text):
            return "image_text"
        return None if pair.directional >= self.directional else "directional"


def measure(encoder: TextImageEncoder, before: Tensor, after: Tensor, triplet: Triplet) -> list[Similarities]:
    """The similarities of pairs of pictures [N, H, W, 3] in 0..1, all of one triplet.

    Raises:
        ValueError: A value is outside 0..1, where CLIP would see another picture than a person.
    """
    low, high = (float(bound) for bound in torch.stack([before, after]).aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"Pictures must have values from 0 to 1 to be measured; these go from {low:g} to {high:g}.")
    first, second = encoder.encode_images(before), encoder.encode_images(after)
    caption, edited = (encoder.encode_text(without_syntax(t)) for t in (triplet.caption, triplet.edited_caption))
    # Of two pictures that are the same, the change has no direction: its cosine is 0.
    directional = torch.nn.functional.cosine_similarity(second - first, (edited - caption)[None])
    columns = ((first * second).sum(1), first @ caption, second @ edited, directional)
    return [Similarities(*row) for row in torch.stack(columns, 1).tolist()]


def choose(pairs: Sequence[Similarities], thresholds: Thresholds, keep: int) -> tuple[list[int], dict[str, int]]:
    """The indices of the `keep` best pairs that reach all thresholds, the best direction first, and why how many of
    the others are dropped. Of equal pairs the earlier is the better."""
    failed = [thresholds.failed(pair) for pair in pairs]
    passed = sorted((i for i, why in enumerate(failed) if why is None), key=lambda i: -pairs[i].directional)
    dropped = Counter(why for why in failed if why is not None)
    dropped[NOT_THE_BEST] = len(passed[keep:])
    return passed[:keep], {name: count for name, count in dropped.items() if count}


def as_json(pair: Similarities) -> dict[str, float]:
    """For the data set: four digits behind the point."""
    return {name: round(value, 4) for name, value in asdict(pair).items()}
