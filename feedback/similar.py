"""Finds stored prompts that are similar to a given one: cosine over float32 embeddings in memory.

The vectors of one encoder are one matrix, so a search is one matrix product. Rows are only ever added to the table, in
the order of their numbers, so the matrix is brought up to date by reading what came after its last row, whichever
process wrote it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from sqlalchemy import Connection, exists, func, insert, select

from .database import Database
from .rows import batches, look_up
from .tables import EMBEDDINGS, ENCODERS, IMAGES, PROMPTS, RATINGS, SCORES

_STORED = np.dtype("<f4")

_NEWEST = select(*(select(func.max(table.c.id)).scalar_subquery() for table in (RATINGS, SCORES)))
"""The numbers of the newest rating and of the newest score."""


class TextEncoder(Protocol):
    """What the store needs of an encoder. Vectors of one `name` are comparable, those of two names are not."""

    name: str

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [len(texts), width]."""
        ...


class PromptIndex:
    """The vectors of one encoder, each of length 1, as a matrix [prompts, width] that grows."""

    def __init__(self, encoder_id: int, width: int) -> None:
        self.width = width
        self._encoder_id = encoder_id
        self._newest = 0
        self._count = 0
        self._vectors = np.empty((0, width), np.float32)
        self._prompt_ids = np.empty(0, np.int64)
        self._lock = threading.Lock()

    def refresh(self, connection: Connection) -> None:
        """Read the rows that were added since the last time."""
        mine = EMBEDDINGS.c.encoder_id == self._encoder_id
        with self._lock:
            if connection.scalar(select(func.max(EMBEDDINGS.c.id)).where(mine)) == self._newest:
                return
            added = select(EMBEDDINGS.c.id, EMBEDDINGS.c.prompt_id, EMBEDDINGS.c.vector)
            added = added.where(mine, EMBEDDINGS.c.id > self._newest).order_by(EMBEDDINGS.c.id)
            for part in connection.execute(added, execution_options={"yield_per": 2000}).partitions():
                ids, prompt_ids, vectors = zip(*part, strict=True)
                self._append(prompt_ids, np.frombuffer(b"".join(vectors), _STORED).reshape(-1, self.width))
                self._newest = ids[-1]

    def _append(self, prompt_ids: Sequence[int], vectors: np.ndarray) -> None:
        start, stop = self._count, self._count + len(vectors)
        if stop > len(self._vectors):
            # A search may still read the old arrays; they are left as they are.
            room = max(stop, 2 * len(self._vectors)) - start
            self._vectors = np.concatenate([self._vectors[:start], np.empty((room, self.width), np.float32)])
            self._prompt_ids = np.concatenate([self._prompt_ids[:start], np.empty(room, np.int64)])
        self._vectors[start:stop] = _unit(vectors)
        self._prompt_ids[start:stop] = prompt_ids
        self._count = stop

    def nearest(self, vector: np.ndarray, floor: float, limit: int) -> dict[int, float]:
        """{row number: cosine} of up to `limit` prompts with a cosine of `floor` or more, best first."""
        with self._lock:
            vectors, prompt_ids = self._vectors[: self._count], self._prompt_ids[: self._count]
        cosines = vectors @ _unit(vector)
        found = np.flatnonzero(cosines >= floor)
        if len(found) > limit:
            found = found[np.argpartition(cosines[found], -limit)[-limit:]]
        found = found[np.lexsort((prompt_ids[found], -cosines[found]))]
        return {int(prompt_ids[at]): float(cosines[at]) for at in found}


class Similarity:
    """The indices of one database, one for each encoder that was asked for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._indices: dict[str, PromptIndex] = {}
        self._lock = threading.Lock()
        self._embedded: dict[str, tuple[int, int]] = {}
        """For each encoder, the newest rating and score whose prompts are known to be embedded."""

    def nearest(
        self, connection: Connection, vector: np.ndarray, encoder: str, floor: float, limit: int
    ) -> dict[int, float]:
        """{row number: cosine} of the most similar prompts, best first.

        Raises:
            ValueError: The vector is not [width] for this encoder, or holds NaN or infinity.
        """
        if limit < 1:
            raise ValueError(f"The limit must be 1 or more, not {limit}.")
        index = self._index(connection, encoder)
        if index is None:
            return {}
        _check_width(encoder, index.width, vector.shape)
        if not np.isfinite(vector).all():
            raise ValueError(f"The vector of the encoder {encoder!r} holds NaN or infinity.")
        index.refresh(connection)
        return index.nearest(vector, floor, limit)

    def _index(self, connection: Connection, encoder: str) -> PromptIndex | None:
        with self._lock:
            if encoder not in self._indices:
                row = connection.execute(select(ENCODERS).where(ENCODERS.c.name == encoder)).first()
                if row is None:
                    return None
                self._indices[encoder] = PromptIndex(row.id, row.width)
            return self._indices[encoder]

    def embed_rated(self, encoder: TextEncoder, progress: Callable[[int, int], None] | None = None) -> int:
        """Embed every prompt that has a rating or a score and no vector of this encoder yet; return how many.

        Each part is saved before `progress(done, all)` is called. An exception in it stops the work without loss.

        Raises:
            ValueError: The encoder gives vectors of another width than before, or that are not finite.
        """
        with self._database.read() as connection:
            newest = tuple(number or 0 for number in connection.execute(_NEWEST).one())
            if newest == self._embedded.get(encoder.name):
                return 0
            missing = _unembedded(connection, encoder.name, self._embedded.get(encoder.name, (0, 0)))
        done = 0
        for batch in batches(missing):
            vectors = np.asarray(encoder.encode([text for _, text in batch]))
            with self._database.write() as connection:
                _add_vectors(connection, encoder.name, [prompt_id for prompt_id, _ in batch], vectors)
            done += len(batch)
            if progress is not None:
                progress(done, len(missing))
        self._embedded[encoder.name] = newest
        return done


def _unembedded(connection: Connection, encoder: str, after: tuple[int, int]) -> list[tuple[int, str]]:
    """Row numbers and texts of prompts with ratings or scores after the given ones, and without a vector."""
    rated = [
        select(IMAGES.c.prompt_id).join(table, table.c.image_id == IMAGES.c.id).where(table.c.id > newest)
        for table, newest in zip((RATINGS, SCORES), after, strict=True)
    ]
    vector = select(EMBEDDINGS.c.id).join(ENCODERS).where(EMBEDDINGS.c.prompt_id == PROMPTS.c.id)
    wanted = PROMPTS.c.id.in_(rated[0].union(rated[1])) & ~exists(vector.where(ENCODERS.c.name == encoder))
    query = select(PROMPTS.c.id, PROMPTS.c.text).where(wanted).order_by(PROMPTS.c.id)
    return [(row.id, row.text) for row in connection.execute(query)]


def _add_vectors(connection: Connection, encoder: str, prompt_ids: list[int], vectors: np.ndarray) -> None:
    """Add the vectors [prompts, width] of those prompts that have none; another process may have been here."""
    if vectors.ndim != 2 or len(vectors) != len(prompt_ids) or not np.isfinite(vectors).all():
        raise ValueError(
            f"The encoder {encoder!r} gave an array {vectors.shape} for {len(prompt_ids)} prompts. It must give "
            "[prompts, width], all finite numbers."
        )
    row = connection.execute(select(ENCODERS).where(ENCODERS.c.name == encoder)).first()
    if row is None:
        connection.execute(insert(ENCODERS).values(name=encoder, width=vectors.shape[1]))
        row = connection.execute(select(ENCODERS).where(ENCODERS.c.name == encoder)).one()
    _check_width(encoder, row.width, vectors.shape[1:])
    mine = select(EMBEDDINGS.c.prompt_id).where(EMBEDDINGS.c.encoder_id == row.id)
    known = set(connection.scalars(mine.where(EMBEDDINGS.c.prompt_id.in_(prompt_ids))))
    rows = [
        {"encoder_id": row.id, "prompt_id": prompt_id, "vector": vector.astype(_STORED).tobytes()}
        for prompt_id, vector in zip(prompt_ids, vectors, strict=True)
        if prompt_id not in known
    ]
    if rows:
        connection.execute(insert(EMBEDDINGS), rows)


def prompt_texts(connection: Connection, prompt_ids: Sequence[int]) -> dict[int, str]:
    """{row number: text} in the given order, without prompts that another thread's newer transaction has found."""
    texts = look_up(connection, PROMPTS.c.id, PROMPTS.c.text, prompt_ids)
    return {prompt_id: texts[prompt_id] for prompt_id in prompt_ids if prompt_id in texts}


def _check_width(encoder: str, width: int, shape: tuple[int, ...]) -> None:
    if shape != (width,):
        raise ValueError(
            f"The encoder {encoder!r} has vectors of width {width} in the ratings store; this one has the shape "
            f"{list(shape)}. Another encoder needs another name."
        )


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Float32 vectors of length 1 along the last axis; 0 stays 0."""
    vectors = vectors.astype(np.float32)
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length == 0, 1, length)
