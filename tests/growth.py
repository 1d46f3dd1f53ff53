"""How the time of a function grows with the length of its text."""

from __future__ import annotations

import time
from collections.abc import Callable


def grows_linearly(work: Callable[[str], object], start: str, unit: str) -> bool:
    """Whether a text of `start` and many `unit`s takes time by its length, not by the square of it.

    Eight times the length takes 8 times as long if linear, 64 times if quadratic. The millisecond absorbs what does
    not grow.
    """
    return _seconds(work, start, unit, 80_000) < 24 * (_seconds(work, start, unit, 10_000) + 1e-3)


def _seconds(work: Callable[[str], object], start: str, unit: str, length: int) -> float:
    """The best of three runs."""
    text = start + unit * (length // len(unit))
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        work(text)
        best = min(best, time.process_time() - began)
    return best
