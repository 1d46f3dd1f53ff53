"""The captioned pictures on which the demo's Cross-Adapter is trained, by the pack's own node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from shapeworld.caption import describe, write
from shapeworld.dense import dense_scene, write_dense
from shapeworld.render import render
from shapeworld.scene import random_scene

SEED, PICTURES, DENSE_SHARE = 81, 6_000, 0.7
STEPS, BATCH, PEAK, RANK, TOKENS, ENTITY_WEIGHT = 4_000, 16, 1e-3, 12, 176, 0.01
"""Of the training: settings of the node. A dense caption has at most TOKENS tokens."""


def captioned(number: int) -> tuple[object, str]:
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
