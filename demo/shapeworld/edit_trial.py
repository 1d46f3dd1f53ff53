"""Held-out edits: pictures and instructions that no training saw, and how the oracle judges what came out.

The oracle sees shapes, colours, places, the ground and the style, but no texture and no size, so the edits that it can
judge are these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .caption import describe, write
from .edit import Edit, apply_edit, find, random_edit, write_edit
from .oracle import Sight, look
from .render import render
from .scene import Scene, Thing, random_scene
from .trial import HELD_OUT

ONE_ATTRIBUTE = ("recolour", "reshape", "background", "style")
NEAR = 0.12
"""How far the middle of a thing may have moved to be the same thing, as a share of the picture's side."""
MOST_THINGS = 3
FULL = {"size": 1, "texture": 1, "colour": 1, "shape": 1, "place": 1, "background": 1, "style": 1}


@dataclass(frozen=True)
class EditTrial:
    """A scene, an edit of it, and the captions of both scenes, in full and in the same order of words."""

    before: Scene
    after: Scene
    edit: Edit
    instruction: str
    caption_before: str
    caption_after: str

    @property
    def picture(self) -> Image.Image:
        return render(self.before)


def edit_trials(count: int, kinds: tuple[str, ...] = ONE_ATTRIBUTE, part: int = 0) -> list[EditTrial]:
    """`count` trials, the kinds in turn. `part` numbers sets that share no trial: choose settings on another set."""
    return [_trial(kinds[at % len(kinds)], np.random.default_rng([HELD_OUT, 20 + part, at])) for at in range(count)]


def _trial(kind: str, rng: np.random.Generator) -> EditTrial:
    while True:
        scene = random_scene(rng, int(rng.integers(1, MOST_THINGS + 1)), {"flat": 1.0})
        edit = random_edit(scene, rng)
        if edit.kind != kind or (kind == "style" and edit.value == "flat"):
            continue
        try:
            after = apply_edit(scene, edit, rng)
        except ValueError:
            continue
        words = int(rng.integers(2**31))
        before, then = (_caption(each, words) for each in (scene, after))
        return EditTrial(scene, after, edit, write_edit(edit), before, then)


def _caption(scene: Scene, words: int) -> str:
    return write(describe(scene, np.random.default_rng(words), FULL), np.random.default_rng(words))


def is_done(trial: EditTrial, seen: Sight) -> bool:
    """Whether the picture shows what the instruction asked for."""
    edit = trial.edit
    if edit.kind == "background":
        return seen.background == edit.value and seen.style == trial.before.style
    if edit.kind == "style":
        return seen.style == edit.value
    if edit.kind == "add":
        return shows(seen, trial.after.things[-1])
    target = find(trial.before, edit.target)
    if edit.kind == "remove":
        return not shows(seen, trial.before.things[target])
    return shows(seen, trial.after.things[target])


def kept(trial: EditTrial, seen: Sight) -> list[bool]:
    """For each thing that the edit does not touch: is it still there, with its shape and its colour?"""
    return [shows(seen, thing) for thing in trial.before.things if thing in trial.after.things]


def shows(seen: Sight, thing: Thing) -> bool:
    """Whether a thing of this shape and colour is seen at this place."""
    return any(
        one.shape == thing.shape and one.colour == thing.colour and np.hypot(one.x - thing.x, one.y - thing.y) < NEAR
        for one in seen.things
    )


def judge(trial: EditTrial, picture: np.ndarray) -> tuple[bool, list[bool]]:
    """Whether the edit was done, and which untouched things were kept, in a picture [H, W, 3] in 0..1."""
    seen = look(picture)
    return is_done(trial, seen), kept(trial, seen)
