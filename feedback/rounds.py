"""A session as rounds: the pictures of each batch with what people and scorers say of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from .records import Rating, StoredImage, deciding
from .rows import IMAGE_COLUMNS, images_from_rows, ratings_that_hold
from .tables import IMAGES, PROMPTS, RATINGS, SCORES, holding_scores


@dataclass(frozen=True)
class Judged:
    """A picture, the rating that counts, and its score by each scorer."""

    image: StoredImage
    rating: Rating | None
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Round:
    """The pictures that one run added to a session, in their order. Rounds are numbered from 1, the oldest."""

    number: int
    pictures: tuple[Judged, ...]


def newest_rounds(connection: Connection, session: str, count: int) -> list[Round]:
    """Up to `count` of the newest rounds of a session, oldest first.

    Of a picture's ratings a person's goes before a scorer's, and of two alike the newest counts, as for feedback.
    """
    mine = IMAGES.c.session == session
    times = select(IMAGES.c.created).where(mine).distinct()
    newest = sorted(connection.scalars(times.order_by(IMAGES.c.created.desc()).limit(count)))
    if not newest:
        return []
    total = connection.scalar(select(func.count()).select_from(times.subquery()))
    chosen = mine & (IMAGES.c.created >= newest[0])
    rows = connection.execute(
        select(*IMAGE_COLUMNS).select_from(IMAGES.join(PROMPTS)).where(chosen).order_by(IMAGES.c.id)
    ).all()
    ids = select(IMAGES.c.id).where(chosen)
    ratings, scores = _ratings(connection, session, ids), _scores(connection, ids)
    batches = defaultdict(list)
    for row, image in zip(rows, images_from_rows(connection, rows), strict=True):
        batches[row.created].append(Judged(image, ratings.get(image.key), scores.get(image.key, {})))
    first = total - len(newest) + 1
    return [Round(number, tuple(batches[time])) for number, time in enumerate(newest, first)]


def session_state(connection: Connection, session: str) -> str:
    """A text that changes when a picture, a rating or a score is added to a session."""
    own = select(IMAGES.c.id).where(IMAGES.c.session == session)
    counts = (
        select(func.count()).select_from(own.subquery()),
        select(func.count()).select_from(RATINGS).where(RATINGS.c.session == session),
        select(func.count()).select_from(SCORES).where(SCORES.c.image_id.in_(own)),
    )
    return " ".join(str(connection.scalar(count)) for count in counts)


def _ratings(connection: Connection, session: str, ids: object) -> dict[str, Rating]:
    return deciding(ratings_that_hold(connection, RATINGS.c.session == session, RATINGS.c.image_id.in_(ids)))


def _scores(connection: Connection, ids: object) -> dict[str, dict[str, float]]:
    held = holding_scores(SCORES.c.image_id.in_(ids))
    columns = select(IMAGES.c.key, held.c.scorer, held.c.value).select_from(held.join(IMAGES))
    found = defaultdict(dict)
    for key, scorer, value in connection.execute(columns.order_by(held.c.created, held.c.uid)):
        found[key][scorer] = value
    return found
