"""A folder of captioned pictures, on which the demo's Cross-Adapter is trained by the pack's own node."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .caption import describe, write
from .dense import dense_scene, write_dense
from .render import render
from .scene import Scene, random_scene

SEED, PICTURES, DENSE_SHARE = 82, 6_000, 0.6


def captioned(number: int) -> tuple[Scene, str]:
    """Scene and caption of a training picture: dense, or short as those that the base was trained on."""
    rng = np.random.default_rng([SEED, number])
    if rng.random() < DENSE_SHARE:
        scene = dense_scene(rng)
        return scene, write_dense(scene, rng)
    scene = random_scene(rng, style_share={"flat": 1.0})
    return scene, write(describe(scene, rng), rng)


def make_folder(folder: Path, count: int = PICTURES) -> None:
    """Writes the pictures, PNG with a text file beside each; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        file = folder / f"{number:05d}.png"
        if file.exists():
            continue
        scene, caption = captioned(number)
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")
        render(scene).save(file)
