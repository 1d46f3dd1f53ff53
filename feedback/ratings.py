"""The ratings store: which pictures a person liked, what made them, and what scorers say of them.

Import it through `store.open_store`, which works without SQLAlchemy until a store is opened.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, Select, bindparam, exists, func, select

from .database import Database
from .exchange import Imported, export_file, import_file
from .records import PEOPLE, Evidence, Rating, Score, SessionFeedback, SimilarPrompt, StoredImage, deciding
from .rounds import Round, newest_rounds, session_state
from .rows import (
    BATCH,
    IMAGE_COLUMNS,
    add_images,
    add_ratings,
    add_scores,
    batches,
    images_from_rows,
    rating_from_row,
    ratings_that_hold,
)
from .similar import Similarity, TextEncoder, prompt_texts
from .tables import (
    IMAGES,
    PROMPTS,
    RATINGS,
    SCORES,
    from_microseconds,
    holding_ratings,
    holding_scores,
    to_microseconds,
)


class Store:
    """One database of pictures and ratings. Every method may be called from any thread, and blocks.

    Each call is one transaction: it is saved when the method returns, and not at all when it raises.

    Raises, on every method:
        StoreError: The database is locked, read-only, damaged or out of reach; the message says what to do.
        ValueError: An argument cannot be stored; the message names it.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)
        self._similarity = Similarity(self._database)

    def __repr__(self) -> str:
        return f"Store({self._database!r})"

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        self._database.close()

    def register(self, images: Iterable[StoredImage]) -> int:
        """Add pictures and return how many were new. Of one that is there, the new files are added."""
        with self._database.write() as connection:
            return sum(add_images(connection, batch) for batch in batches(images))

    def image(self, key: str) -> StoredImage:
        """The picture with this key. Raises LookupError if there is none."""
        with self._database.read() as connection:
            found = _images(connection, IMAGES.c.key == key)
        if not found:
            raise LookupError(f"There is no picture {key} in the ratings store.")
        return found[0]

    def images_with(self, digest: str) -> tuple[StoredImage, ...]:
        """All pictures with this content, oldest first."""
        with self._database.read() as connection:
            return tuple(_images(connection, IMAGES.c.digest == digest))

    def rate(self, image: str, value: int, *, session: str, source: str = "user", strength: float = 1.0) -> Rating:
        """Rate the picture with the key `image`: +1, -1, or 0 to take the rating back.

        The source's earlier rating of the picture in this session no longer holds, but is kept.

        Raises:
            LookupError: There is no such picture.
        """
        rating = Rating(image, session, value, source, strength=strength)
        with self._database.write() as connection:
            # The newest holds, so a clock that was set back must not make this one older than what it replaces.
            same = (IMAGES.c.key == image, RATINGS.c.session == session, RATINGS.c.source == source)
            last = connection.scalar(select(func.max(RATINGS.c.created)).join(IMAGES).where(*same))
            if last is not None and last >= to_microseconds(rating.created):
                later = from_microseconds(last) + timedelta(microseconds=1)
                rating = Rating(image, session, value, source, later, rating.uid, strength)
            add_ratings(connection, [rating])
        return rating

    def score(self, image: str, scorer: str, value: float) -> Score:
        """Keep what a scorer measured. The same value again is not added twice.

        Raises:
            LookupError: There is no such picture.
        """
        score = Score(image, scorer, value)
        with self._database.write() as connection:
            same = (IMAGES.c.key == image, SCORES.c.scorer == scorer)
            newest = (SCORES.c.created.desc(), SCORES.c.uid.desc())
            last = connection.execute(select(SCORES).join(IMAGES).where(*same).order_by(*newest).limit(1)).first()
            if last is not None and last.value == value:
                return Score(image, scorer, last.value, from_microseconds(last.created), last.uid)
            if last is not None and last.created >= to_microseconds(score.created):
                later = from_microseconds(last.created) + timedelta(microseconds=1)
                score = Score(image, scorer, value, later, score.uid)
            add_scores(connection, [score])
        return score

    def revision(self, session: str) -> int:
        """A number that grows with every rating in the session, also by other processes. 0: there is none."""
        with self._database.read() as connection:
            return _revision(connection, session)

    def newest_by_people(self) -> int:
        """A number that changes with each rating that speaks for a person, in any session. 0: there is none."""
        with self._database.read() as connection:
            return connection.scalar(_NEWEST_BY_PEOPLE) or 0

    def ratings(self, session: str) -> tuple[Rating, ...]:
        """The ratings that hold in the session, oldest first."""
        with self._database.read() as connection:
            return tuple(ratings_that_hold(connection, RATINGS.c.session == session))

    def rated_images(
        self, session: str | None = None, keys: Sequence[str] = (), *, only_rated: bool = False, limit: int = 100
    ) -> list[tuple[StoredImage, Rating | None]]:
        """Up to `limit` pictures and a person's newest rating of each in its own session, None if there is none.

        With `keys` these pictures, in this order; else the session's, or those of all sessions, newest first.
        """
        chosen = [IMAGES.c.key.in_(keys[:BATCH])] if keys else [] if session is None else [IMAGES.c.session == session]
        with self._database.read() as connection:
            held = holding_ratings(
                RATINGS.c.source.in_(PEOPLE), RATINGS.c.image_id.in_(select(IMAGES.c.id).where(*chosen))
            )
            own = (held.c.image_id == IMAGES.c.id) & (held.c.session == IMAGES.c.session)
            if only_rated:
                chosen.append(exists().where(own))
            newest = (IMAGES.c.created.desc(), IMAGES.c.id.desc())
            page = select(IMAGES.c.id).where(*chosen).order_by(*newest).limit(limit).subquery()
            images = _images(connection, IMAGES.c.id.in_(select(page.c.id)))
            query = select(held, IMAGES.c.key.label("image")).select_from(held.join(IMAGES, own))
            rows = connection.execute(
                query.where(IMAGES.c.id.in_(select(page.c.id))).order_by(held.c.created, held.c.uid)
            )
            ratings = {row.image: rating_from_row(row) for row in rows}
        found = {image.key: (image, ratings.get(image.key)) for image in images}
        if keys:
            return [found[key] for key in dict.fromkeys(keys) if key in found]
        return sorted(found.values(), key=lambda pair: pair[0].created, reverse=True)

    def feedback(self, session: str, minimum_strength: float = 0.0) -> SessionFeedback:
        """The liked and disliked pictures of the session, in the order of their ratings.

        Each picture is on one side at most. Where sources disagree, a person's rating goes before a scorer's, and of
        two alike the newest counts. One that is weaker than `minimum_strength` counts, but its picture is left out.
        """
        with self._database.read() as connection:
            ratings = ratings_that_hold(connection, RATINGS.c.session == session)
            strong = (r for r in deciding(ratings).values() if r.strength >= minimum_strength)
            verdicts = sorted(strong, key=lambda r: (r.created, r.uid))
            rated_here = IMAGES.c.id.in_(select(RATINGS.c.image_id).where(RATINGS.c.session == session))
            images = {image.key: image for image in _images(connection, rated_here)}
            return SessionFeedback(
                revision=_revision(connection, session),
                liked=tuple(images[r.image] for r in verdicts if r.value > 0),
                disliked=tuple(images[r.image] for r in verdicts if r.value < 0),
                strengths={r.image: r.strength for r in verdicts},
            )

    def rounds(self, session: str, count: int) -> list[Round]:
        """Up to `count` of the newest rounds of the session, oldest first; a round is what one run added."""
        with self._database.read() as connection:
            return newest_rounds(connection, session, count)

    def state(self, session: str) -> str:
        """A text that changes with every picture, rating and score of the session, also by other processes."""
        with self._database.read() as connection:
            return session_state(connection, session)

    def embed_rated(self, encoder: TextEncoder, progress: Callable[[int, int], None] | None = None) -> int:
        """Embed every prompt that has a rating or a score and no vector of this encoder; return how many.

        Call it before `similar` or `evidence`. Each part is saved before `progress(done, all)` is called, so an
        exception in it stops the work without loss.
        """
        return self._similarity.embed_rated(encoder, progress)

    def similar(self, vector: np.ndarray, encoder: str, floor: float, limit: int) -> tuple[SimilarPrompt, ...]:
        """Up to `limit` prompts whose cosine with the vector [width] is `floor` or more, most similar first."""
        with self._database.read() as connection:
            near = self._similarity.nearest(connection, vector, encoder, floor, limit)
            texts = prompt_texts(connection, list(near))
        return tuple(SimilarPrompt(texts[prompt_id], near[prompt_id]) for prompt_id in texts)

    def evidence(self, vector: np.ndarray, encoder: str, floor: float, limit: int) -> tuple[Evidence, ...]:
        """How each checkpoint did on the prompts that `similar` finds, most similar prompt first."""
        with self._database.read() as connection:
            near = self._similarity.nearest(connection, vector, encoder, floor, limit)
            texts = prompt_texts(connection, list(near))
            votes, scores = _votes(connection, list(texts)), _scores(connection, list(texts))
        rank = {prompt_id: place for place, prompt_id in enumerate(texts)}
        pairs = sorted(votes.keys() | scores.keys(), key=lambda pair: (rank[pair[0]], pair[1]))
        return tuple(Evidence(texts[pair[0]], near[pair[0]], pair[1], *votes[pair], scores[pair]) for pair in pairs)

    def prompt_values(self, scorer: str | None = None) -> list[tuple[str, float]]:
        """Pairs of a prompt and a value, oldest first: each rating that holds (+1 or -1), or a scorer's scores."""
        held = holding_ratings() if scorer is None else holding_scores(SCORES.c.scorer == scorer)
        pairs = select(PROMPTS.c.text, held.c.value).select_from(held.join(IMAGES).join(PROMPTS))
        with self._database.read() as connection:
            rows = connection.execute(pairs.order_by(held.c.created, held.c.uid))
            return [(text, float(value)) for text, value in rows]

    def export_file(self, path: Path) -> None:
        """Write everything to a JSON Lines file; `exchange.py` gives the format."""
        export_file(self._database, path)

    def import_file(self, path: Path) -> Imported:
        """Add what is in an export and not here. Raises ValueError with the line's number for a bad file."""
        return import_file(self._database, path)


def _images(connection: Connection, condition: object) -> list[StoredImage]:
    query = select(*IMAGE_COLUMNS).select_from(IMAGES.join(PROMPTS)).where(condition).order_by(IMAGES.c.id)
    return images_from_rows(connection, connection.execute(query).all())


def _revision(connection: Connection, session: str) -> int:
    # Not the newest row number: an import adds older ratings, and each must count.
    return connection.scalar(select(func.count()).select_from(RATINGS).where(RATINGS.c.session == session))


def _votes(connection: Connection, prompt_ids: list[int]) -> dict[tuple[int, str], tuple[int, int]]:
    """{(prompt, checkpoint): (likes, dislikes)}."""
    votes = defaultdict(lambda: (0, 0))
    for batch in batches(prompt_ids):
        for prompt_id, checkpoint, value in connection.execute(_votes_query(), {"prompts": batch}):
            likes, dislikes = votes[prompt_id, checkpoint]
            votes[prompt_id, checkpoint] = (likes + (value > 0), dislikes + (value < 0))
    return votes


def _scores(connection: Connection, prompt_ids: list[int]) -> dict[tuple[int, str], dict[str, tuple[float, ...]]]:
    """{(prompt, checkpoint): {scorer: values}}."""
    scores = defaultdict(dict)
    for batch in batches(prompt_ids):
        for prompt_id, checkpoint, scorer, value in connection.execute(_scores_query(), {"prompts": batch}):
            values = scores[prompt_id, checkpoint]
            values[scorer] = (*values.get(scorer, ()), value)
    return scores


# A query takes longer to build than to run, so those that every run of the router asks are built once.

_NEWEST_BY_PEOPLE = select(func.max(RATINGS.c.id)).where(RATINGS.c.source.in_(PEOPLE))


@functools.cache
def _votes_query() -> Select[tuple[int, str, int]]:
    held = holding_ratings(RATINGS.c.image_id.in_(_images_of_prompts()))
    return select(IMAGES.c.prompt_id, IMAGES.c.checkpoint, held.c.value).select_from(held.join(IMAGES))


@functools.cache
def _scores_query() -> Select[tuple[int, str, str, float]]:
    held = holding_scores(SCORES.c.image_id.in_(_images_of_prompts()))
    query = select(IMAGES.c.prompt_id, IMAGES.c.checkpoint, held.c.scorer, held.c.value)
    return query.select_from(held.join(IMAGES)).order_by(held.c.id)


def _images_of_prompts() -> Select[tuple[int]]:
    """The numbers of all pictures of the prompts that the parameter `prompts` lists."""
    return select(IMAGES.c.id).where(IMAGES.c.prompt_id.in_(bindparam("prompts", expanding=True)))
