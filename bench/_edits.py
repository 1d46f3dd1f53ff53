"""Edits of held-out ShapeWorld pictures by the demo's editor, and what the oracle makes of them.

Import this after `_world.start_host()` and `_world.pack()`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import comfy.utils
import numpy as np
import torch
from _world import BATCH, STEPS, Checkpoint
from atelier.attention.edit import OFFICIAL, EditRun, fit
from atelier.attention.guidance import ScaleSchedule
from atelier.attention.guider import EditGuidance
from shapeworld.edit_trial import EditTrial, judge
from torch import Tensor

SEED = 1
SIDE, SMALL = 192, 128
"""Sides in px at which pictures are worked on. The trials' pictures have 128 px: of their things the autoencoder alone
loses one in twenty there, and none at 192."""
TEXT, PICTURE = 2.0, 1.5
"""Scales for the demo's editor, chosen on trials of another part."""


def guidance(text: float = TEXT, picture: float = PICTURE, **intervals: float) -> EditGuidance:
    """The two scales, each in its interval."""
    return EditGuidance(
        ScaleSchedule(text, intervals.get("text_start", 0.0), intervals.get("text_end", 1.0)),
        ScaleSchedule(picture, intervals.get("image_start", 0.0), intervals.get("image_end", 1.0)),
    )


def pictures_of(trials: Sequence[EditTrial]) -> Tensor:
    """The pictures to edit, [N, 128, 128, 3] in 0..1."""
    return torch.from_numpy(np.stack([np.asarray(trial.picture) for trial in trials])).float() / 255


def edited(
    checkpoint: Checkpoint, trials: Sequence[EditTrial], how: EditGuidance, steps: int = STEPS, side: int = SIDE
) -> Tensor:
    """The edited pictures [N, 128, 128, 3], which are worked on at `side` px.

    A picture's noise depends on its place alone.
    """
    run = EditRun(checkpoint.model, checkpoint.clip, how, steps=steps)

    def edit(latents: Tensor, start: int) -> Tensor:
        return run.apply(latents, [trial.instruction for trial in trials[start : start + BATCH]], SEED + start)

    return _worked_on(checkpoint, trials, side, edit)


def rebuilt(checkpoint: Checkpoint, trials: Sequence[EditTrial], side: int = SIDE) -> Tensor:
    """The pictures [N, 128, 128, 3] as the autoencoder alone gives them back, at `side` px."""
    return _worked_on(checkpoint, trials, side, lambda latents, start: latents)


def _worked_on(
    checkpoint: Checkpoint, trials: Sequence[EditTrial], side: int, work: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """The pictures after `work` on the latents of a batch, which is told the number of the first."""
    pictures, made = pictures_of(trials), []
    for start in range(0, len(trials), BATCH):
        latents = checkpoint.vae.encode(fit(pictures[start : start + BATCH], OFFICIAL, side, 8))
        made.append(shrunk(checkpoint.vae.decode(work(latents, start)), pictures.shape[1]))
    return torch.cat(made)


def shrunk(pictures: Tensor, side: int) -> Tensor:
    """Pictures [N, H, W, 3] at `side` px."""
    if pictures.shape[1] == side:
        return pictures
    return comfy.utils.common_upscale(pictures.movedim(-1, 1), side, side, "lanczos", "disabled").movedim(1, -1)


@dataclass(frozen=True)
class Judged:
    """What the oracle says: for each trial, whether the edit was done and which untouched things were kept."""

    done: list[bool]
    kept: list[list[bool]]

    @property
    def rest(self) -> list[bool]:
        """Each untouched thing of all trials."""
        return [one for things in self.kept for one in things]

    @property
    def scores(self) -> list[float]:
        """For each trial the mean of the edit, done or not, and the share of what was kept."""
        return [
            (float(done) + float(np.mean(things))) / 2 if things else float(done)
            for done, things in zip(self.done, self.kept, strict=True)
        ]


def judged(trials: Sequence[EditTrial], pictures: Tensor) -> Judged:
    found = [judge(trial, picture) for trial, picture in zip(trials, pictures.numpy(), strict=True)]
    return Judged([done for done, _ in found], [kept for _, kept in found])


def area(points: Sequence[tuple[float, float]]) -> float:
    """The part of the unit square that lies below and left of a point: how much a method offers of both."""
    total, top = 0.0, 0.0
    for x, y in sorted(points, reverse=True):
        if y > top:
            total, top = total + max(x, 0.0) * (y - top), y
    return total
