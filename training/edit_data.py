"""Edit data by Prompt-to-Prompt: pairs of pictures for triplets, filtered and written (arXiv 2211.09800, section 3.1).

Both pictures of a pair are drawn from the same noise, and the second takes the attention of the first for a share of
the steps, since no one share is right for all edits. So of each triplet many pairs are drawn, each with a seed and a
share of its own, and CLIP finds the best of them.

The samples depend on the settings alone: who draws them, in which run, and what was interrupted changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..feedback.scorers import TextImageEncoder
from .edit_filter import Thresholds, as_json, choose, measure
from .edit_shards import Drawn, EditSample, Manifest, ShardWriter
from .edit_triplets import Triplet

LEAST_SHARE, MOST_SHARE = 0.1, 0.9
"""The share of the steps is uniform between these."""
NOT_FINITE = "not_finite"
"""Why a pair is dropped whose pictures are not made of numbers."""

Draw = Callable[[Triplet, Sequence[int], Sequence[float]], tuple[Tensor, Tensor]]
"""Pictures before and after, [N, H, W, 3] in 0..1, for a triplet, N seeds and N shares of the steps."""


@dataclass(frozen=True)
class Recipe:
    """What is drawn for each triplet, and what is kept. Without a filter all pairs are kept."""

    samples_per_edit: int = 8
    keep: int = 4
    seed: int = 0
    pairs_at_once: int = 4
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        if min(self.samples_per_edit, self.keep, self.pairs_at_once) < 1:
            raise ValueError("An edit needs 1 sample or more, and 1 or more of them to keep.")

    def starts(self, number: int) -> list[tuple[int, float]]:
        """The seed and the share of each pair of a triplet."""
        found = []
        for sample in range(self.samples_per_edit):
            rng = np.random.default_rng([self.seed, number, sample])
            found.append((int(rng.integers(2**32)), float(rng.uniform(LEAST_SHARE, MOST_SHARE))))
        return found


@dataclass(frozen=True, eq=False)
class Pairs:
    """All pairs of a triplet: pictures uint8 [N, H, W, 3], and which pairs are made of numbers, bool [N]."""

    before: np.ndarray
    after: np.ndarray
    finite: np.ndarray


Engine = Callable[[Iterable[int]], Iterator[Pairs]]
"""Draws the triplets of these numbers, and gives the pairs of each in the order of the numbers."""


@dataclass(frozen=True, eq=False)
class DrawTask:
    """Draws the pairs of the triplet of a number. Doing it again gives the same pairs."""

    triplets: Sequence[Triplet]
    recipe: Recipe
    draw: Draw

    def __call__(self, number: int) -> Pairs:
        starts, size = self.recipe.starts(number), self.recipe.pairs_at_once
        parts = []
        for start in range(0, len(starts), size):
            seeds, shares = zip(*starts[start : start + size], strict=True)
            parts.append(_pairs(*self.draw(self.triplets[number], seeds, shares)))
        return Pairs(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("before", "after", "finite"))
        )


def _pairs(before: Tensor, after: Tensor) -> Pairs:
    pictures = torch.stack([before, after]).float().cpu()
    finite = pictures.isfinite().all(-1).all(-1).all(-1).all(0)
    pixels = (pictures.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return Pairs(pixels[0], pixels[1], finite.numpy())


def drawn_here(task: Callable[[int], Pairs]) -> Engine:
    """Draws one triplet after the other, in this process."""
    return lambda numbers: (task(number) for number in numbers)


def make_edits(
    folder: Path,
    triplets: Sequence[Triplet],
    recipe: Recipe,
    settings: Mapping[str, Any],
    engine: Engine,
    encoder: TextImageEncoder | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Manifest:
    """Draw, filter and write the data set, from where an earlier run with the same settings ended.

    Args:
        settings: what the samples depend on beside triplets, recipe and encoder: the model, steps, size.
        encoder: measures pairs. Without one all are kept.
        progress: takes the number of triplets that are written. What it raises stops the run without loss.

    Raises:
        EditDataError: The folder holds another data set, or the disk is full.
    """
    filtered = "nothing is filtered: no scorer" if encoder is None else f"{encoder.name} {encoder.version}"
    everything = {**settings, **asdict(recipe), "filter": filtered, "triplets": _digest(triplets)}
    with ShardWriter(folder, everything, len(triplets)) as writer:
        progress(writer.next)
        numbers = range(writer.next, len(triplets))
        results = engine(numbers)
        for number in numbers:
            writer.add(filter_pairs(number, triplets[number], recipe, next(results), encoder))
            progress(writer.next)
        return writer.manifest


def filter_pairs(
    number: int, triplet: Triplet, recipe: Recipe, pairs: Pairs, encoder: TextImageEncoder | None
) -> Drawn:
    """The samples of a triplet that are kept, the best first; without an encoder all, in the order of drawing."""
    starts, whole = recipe.starts(number), np.flatnonzero(pairs.finite).tolist()
    dropped = {NOT_FINITE: len(starts) - len(whole)}
    kept: list[tuple[int, dict[str, float]]] = [(pair, {}) for pair in whole]
    if encoder is not None and whole:
        before, after = (torch.from_numpy(side[whole]).float() / 255 for side in (pairs.before, pairs.after))
        measured = measure(encoder, before, after, triplet)
        best, failed = choose(measured, recipe.thresholds, recipe.keep)
        kept = [(whole[i], as_json(measured[i])) for i in best]
        dropped |= failed
    samples = [
        EditSample(
            f"{number:07d}-{pair:04d}",
            pairs.before[pair],
            pairs.after[pair],
            triplet.caption,
            triplet.instruction,
            triplet.edited_caption,
            starts[pair][0],
            round(starts[pair][1], 6),
            similarities,
        )
        for pair, similarities in kept
    ]
    return Drawn(samples, len(starts), dropped)


def _digest(triplets: Sequence[Triplet]) -> str:
    return hashlib.sha256(json.dumps([asdict(triplet) for triplet in triplets]).encode()).hexdigest()[:16]
