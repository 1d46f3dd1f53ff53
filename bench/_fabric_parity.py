"""FABRIC against the implementation that the tests have, written from the paper. To be imported after `_world.pack`."""

from __future__ import annotations

import sys
from itertools import product

from _world import REPO

sys.path.append(str(REPO / "tests"))

from naive_fabric import naive_run, relative
from small_unets import latents, listen, normal, sample, sd15, sdxl

COUNTS = ((1, 0), (0, 1), (1, 1), (2, 1), (4, 4))
ROWS, SCHEDULERS, WEIGHT = (1, 3), ("normal", "karras"), 0.8


def parity() -> list[float]:
    """The largest difference of two results as a share of their size, one number for each way to run."""
    found = []
    for model in (sd15(), sdxl()):
        for (liked, disliked), rows, scheduler in product(COUNTS, ROWS, SCHEDULERS):
            pictures, noise = (latents(liked), latents(disliked, seed=200)), normal(rows, 4, 8, 8, seed=1)
            wanted = naive_run(model, noise, *pictures, WEIGHT, scheduler)
            found.append(relative(sample(listen(model, *pictures), noise, scheduler=scheduler), wanted))
    return found
