"""Adds records to the tables, and reads them back.

Functions that add need a writing transaction of `Database.write`. They skip what is there, so that adding twice changes
nothing, and return how many were new.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Row, Table, insert, select, update

from .records import Rating, Score, StoredImage
from .tables import FILES, IMAGES, PROMPTS, RATINGS, SCORES, from_microseconds, holding_ratings, to_microseconds

BATCH = 500
"""Values in one statement: SQLite before 3.32 takes 999."""

Item = TypeVar("Item")
Event = TypeVar("Event", Rating, Score)


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in lists of up to BATCH."""
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def look_up(connection: Connection, key: Column, value: Column, keys: Collection[object]) -> dict:
    """{key: value} of the rows whose `key` is one of `keys`."""
    found = {}
    for batch in batches(keys):
        found.update((row[0], row[1]) for row in connection.execute(select(key, value).where(key.in_(batch))))
    return found


def add_images(connection: Connection, images: Sequence[StoredImage]) -> int:
    """Add pictures. For one that is there, add the files that are new and keep the earlier time."""
    first = {image.key: image for image in reversed(images)}
    known = look_up(connection, IMAGES.c.key, IMAGES.c.created, first)
    fresh = {key: image for key, image in first.items() if key not in known}
    prompts = _add_prompts(connection, {image.prompt for image in fresh.values()})
    _insert(connection, IMAGES, [_image_row(image, prompts[image.prompt]) for image in reversed(fresh.values())])
    for image in images:
        created = to_microseconds(image.created)
        if created < known.get(image.key, to_microseconds(first[image.key].created)):
            later = (IMAGES.c.key == image.key) & (IMAGES.c.created > created)
            connection.execute(update(IMAGES).where(later).values(created=created))
    _add_files(connection, images)
    return len(fresh)


def _image_row(image: StoredImage, prompt_id: int) -> dict[str, object]:
    return {
        "key": image.key,
        "digest": image.digest,
        "prompt_id": prompt_id,
        "session": image.session,
        "negative": image.negative,
        "checkpoint": image.checkpoint,
        "seed": None if image.seed is None else str(image.seed),
        "created": to_microseconds(image.created),
    }


def _add_prompts(connection: Connection, texts: Collection[str]) -> dict[str, int]:
    """Row numbers of the texts."""
    digests = {hashlib.sha256(text.encode()).hexdigest(): text for text in sorted(texts)}
    known = look_up(connection, PROMPTS.c.digest, PROMPTS.c.id, digests)
    rows = [{"digest": digest, "text": text} for digest, text in digests.items() if digest not in known]
    _insert(connection, PROMPTS, rows)
    known |= look_up(connection, PROMPTS.c.digest, PROMPTS.c.id, [row["digest"] for row in rows])
    return {digests[digest]: row_id for digest, row_id in known.items()}


def _add_files(connection: Connection, images: Sequence[StoredImage]) -> None:
    ids = look_up(connection, IMAGES.c.key, IMAGES.c.id, {image.key for image in images if image.files})
    known = {(image_id, path) for image_id, paths in _files(connection, ids.values()).items() for path in paths}
    wanted = dict.fromkeys((ids[image.key], path) for image in images for path in image.files)
    rows = [{"image_id": image_id, "path": path} for image_id, path in wanted if (image_id, path) not in known]
    _insert(connection, FILES, rows)


def add_ratings(connection: Connection, ratings: Sequence[Rating]) -> int:
    """Add ratings. Raises LookupError for a picture that is not there."""

    def own(rating: Rating) -> dict[str, object]:
        own = {"session": rating.session, "source": rating.source, "value": rating.value}
        return {**own, "strength": float(rating.strength)}

    return _add_events(connection, RATINGS, ratings, own)


def add_scores(connection: Connection, scores: Sequence[Score]) -> int:
    """Add scores. Raises LookupError for a picture that is not there."""

    def own(score: Score) -> dict[str, object]:
        return {"scorer": score.scorer, "value": float(score.value)}

    return _add_events(connection, SCORES, scores, own)


def _add_events(
    connection: Connection, table: Table, events: Sequence[Event], own: Callable[[Event], dict[str, object]]
) -> int:
    """Add ratings or scores; `own` gives the columns that the other kind does not have."""
    keys = {event.image for event in events}
    ids = look_up(connection, IMAGES.c.key, IMAGES.c.id, keys)
    for key in sorted(keys - ids.keys()):
        raise LookupError(f"There is no picture {key} in the ratings store. Register it before you rate it.")
    rows = {
        event.uid: {
            "uid": event.uid,
            "image_id": ids[event.image],
            "created": to_microseconds(event.created),
            **own(event),
        }
        for event in events
    }
    known = look_up(connection, table.c.uid, table.c.id, rows)
    fresh = [row for uid, row in rows.items() if uid not in known]
    _insert(connection, table, fresh)
    return len(fresh)


def _insert(connection: Connection, table: Table, rows: list[dict[str, object]]) -> None:
    if rows:
        connection.execute(insert(table), rows)


IMAGE_COLUMNS = (IMAGES, PROMPTS.c.text.label("prompt"))
"""What `images_from_rows` reads; select it from `IMAGES.join(PROMPTS)`."""


def images_from_rows(connection: Connection, rows: Sequence[Row]) -> list[StoredImage]:
    """Rows of IMAGE_COLUMNS as pictures, in the same order."""
    files = _files(connection, [row.id for row in rows])
    return [
        StoredImage(
            digest=row.digest,
            prompt=row.prompt,
            session=row.session,
            negative=row.negative,
            checkpoint=row.checkpoint,
            seed=None if row.seed is None else int(row.seed),
            files=tuple(files[row.id]),
            created=from_microseconds(row.created),
        )
        for row in rows
    ]


def _files(connection: Connection, image_ids: Collection[int]) -> dict[int, list[str]]:
    files = defaultdict(list)
    for batch in batches(image_ids):
        found = select(FILES).where(FILES.c.image_id.in_(batch)).order_by(FILES.c.id)
        for row in connection.execute(found):
            files[row.image_id].append(row.path)
    return files


def rating_from_row(row: Row) -> Rating:
    """A row with the columns of RATINGS and `image`, the picture's key."""
    return Rating(row.image, row.session, row.value, row.source, from_microseconds(row.created), row.uid, row.strength)


def ratings_that_hold(connection: Connection, *conditions: ColumnElement[bool]) -> list[Rating]:
    """Ratings that hold, of those that meet the conditions on RATINGS, oldest first."""
    held = holding_ratings(*conditions)
    query = select(held, IMAGES.c.key.label("image")).select_from(held.join(IMAGES))
    return [rating_from_row(row) for row in connection.execute(query.order_by(held.c.created, held.c.uid))]


def score_from_row(row: Row) -> Score:
    """A row with the columns of SCORES and `image`, the picture's key."""
    return Score(row.image, row.scorer, row.value, from_microseconds(row.created), row.uid)
