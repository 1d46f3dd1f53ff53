"""Keeps what reference pictures look like inside a model, so that later runs need not read them again.

FABRIC (arXiv 2307.10159, section 3) passes each reference through the model at each noise level. What comes out depends
on the picture, its noise, the noise level, the model and the empty prompt, and on nothing of the new picture: prompt,
batch and, where the references' noise is fixed, seed may change.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch

from .reference import BlockKey, KeysValues

Kept = Mapping[BlockKey, KeysValues]
"""One reference's projected keys and values [1, tokens, channels] at one noise level, by block."""


@dataclass
class _Entry:
    kept: Kept
    size: int
    run: Hashable


class ReferenceCache:
    """Keys and values of references in the machine's memory, at most `budget` bytes of them.

    The least recently used go first. A run never drops what it used itself: its noise levels come in the same order
    each time, so to drop the oldest of them would leave nothing for the next run to find.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.size = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable, run: Hashable, device: torch.device) -> Kept | None:
        """What was put under the key, on `device`; None where there is nothing."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            entry.run = run
            self._entries.move_to_end(key)
        return {block: KeysValues(k.to(device), v.to(device), n) for block, (k, v, n) in entry.kept.items()}

    def put(self, key: Hashable, run: Hashable, kept: Kept) -> None:
        """Keep a copy, unless it does not fit beside what this run has used."""
        size = sum(part.nbytes for keys, values, _ in kept.values() for part in (keys, values))
        with self._lock:
            if key in self._entries or not self._make_room(size, run):
                return
            # A copy, because the parts are views of a batch that would stay as a whole.
            copied = {
                block: KeysValues(k.to("cpu", copy=True), v.to("cpu", copy=True), n)
                for block, (k, v, n) in kept.items()
            }
            self._entries[key] = _Entry(copied, size, run)
            self.size += size

    def limit(self, budget: int) -> None:
        """Set the budget in bytes, and drop what is over it."""
        with self._lock:
            self.budget = budget
            while self.size > budget:
                self._drop_oldest()

    def _make_room(self, size: int, run: Hashable) -> bool:
        others = sum(entry.size for entry in self._entries.values() if entry.run != run)
        if self.size - others + size > self.budget:
            return False
        while self.size + size > self.budget:
            self._drop_oldest()
        return True

    def _drop_oldest(self) -> None:
        _, entry = self._entries.popitem(last=False)
        self.size -= entry.size
