"""How long the ratings store takes to find what is known of prompts similar to a new one."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _figures import Figure, mean, single
from _world import pack

WIDTH = 384
THEMES = 2000


class ThemeEncoder:
    """Vectors of width 384 in themes: prompts of one theme have a cosine of about 0.8, others of about 0."""

    name = "themes"

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        vectors = np.stack([self._vector(text) for text in texts])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _vector(self, text: str) -> np.ndarray:
        number = int(text.rpartition(" ")[2])
        theme = np.random.default_rng([1, number % THEMES]).normal(size=WIDTH)
        return (theme + 0.5 * np.random.default_rng([2, number]).normal(size=WIDTH)).astype(np.float32)


def _write_ratings(records: Any, path: Path, count: int) -> None:
    """An export with `count` prompts; each has a picture by one of ten checkpoints, and a rating."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "atelier-ratings", "version": 1}\n')
        for number in range(count):
            digest = hashlib.sha256(str(number).encode()).hexdigest()
            image = {"digest": digest, "prompt": f"a picture of the thing {number}", "session": f"s{number % 100}"}
            image |= {"negative": "", "checkpoint": f"model {number % 10}", "seed": number}
            key = records.StoredImage(**image).key
            rating = {"image": key, "session": image["session"], "value": 1 - 2 * (number % 2), "source": "user"}
            image |= {"type": "image", "files": [], "created": "2025-01-01T00:00:00+00:00"}
            rating |= {"type": "rating", "uid": digest[:32], "created": "2025-01-01T00:00:00+00:00"}
            file.write(f"{json.dumps(image)}\n{json.dumps(rating)}\n")


def store_query(count: int = 100_000, queries: int = 200) -> dict[str, Figure]:
    """Time of `Store.evidence` over `count` rated prompts: the first call, which reads all vectors, and later ones.

    Every call finds fifty prompts with a cosine of at least 0.6 and adds up their ratings.
    """
    pack()
    records = importlib.import_module("atelier.feedback.records")
    ratings = importlib.import_module("atelier.feedback.ratings")
    encoder = ThemeEncoder()
    wishes = encoder.encode([f"wish {count + number}" for number in range(queries)])
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/ratings.sqlite3"
        with contextlib.closing(ratings.Store(url)) as store:
            _write_ratings(records, Path(folder) / "ratings.jsonl", count)
            store.import_file(Path(folder) / "ratings.jsonl")
            store.embed_rated(encoder)
        with contextlib.closing(ratings.Store(url)) as store:
            seconds = []
            for wish in wishes:
                start = time.perf_counter()
                found = store.evidence(wish, encoder.name, 0.6, 50)
                seconds.append(time.perf_counter() - start)
                if len(found) < min(50, count // THEMES // 2):
                    raise RuntimeError(f"A query found {len(found)} prompts.")
    size = f"{count // 1000}k"
    return {
        f"store_query_{size}_ms": mean([1000 * each for each in seconds[1:]], "ms"),
        f"store_cold_{size}_s": single(seconds[0], "s"),
    }
