"""Export and import of a ratings store as JSON Lines: UTF-8, one JSON object in a line.

    {"type": "atelier-ratings", "version": 1}
    {"type": "image", "digest": SHA256, "prompt": TEXT, "session": TEXT, "negative": TEXT, "checkpoint": TEXT,
     "seed": INTEGER or null, "files": [PATH, ...], "created": TIME}
    {"type": "rating", "image": KEY, "session": TEXT, "value": 1, -1 or 0, "source": TEXT, "created": TIME,
     "uid": HEX32, "strength": NUMBER, 1 if it is left out}
    {"type": "score", "image": KEY, "scorer": TEXT, "value": NUMBER, "created": TIME, "uid": HEX32}

The first line names the format. KEY is `StoredImage.key`; an image comes before its ratings and scores. TIME is ISO
8601 with its offset from UTC. A rating or score is one event, known everywhere by its `uid`; all events are exported,
also those that no longer hold. Embeddings are not: they can be made again. Exports may be joined end to end.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Select, select

from .database import Database
from .records import Rating, Score, StoredImage
from .rows import (
    IMAGE_COLUMNS,
    add_images,
    add_ratings,
    add_scores,
    batches,
    images_from_rows,
    look_up,
    rating_from_row,
    score_from_row,
)
from .tables import IMAGES, PROMPTS, RATINGS, SCORES

FORMAT = "atelier-ratings"
VERSION = 1
_KINDS = {"image": StoredImage, "rating": Rating, "score": Score}
_NAMES = {kind: name for name, kind in _KINDS.items()}

Record = StoredImage | Rating | Score


@dataclass(frozen=True)
class Imported:
    """How many records of an import were new."""

    images: int
    ratings: int
    scores: int


def export_file(database: Database, path: Path) -> None:
    """Write everything to `path`. A file that is there is replaced when the new one is complete.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file, database.read() as connection:
            file.write(json.dumps({"type": FORMAT, "version": VERSION}) + "\n")
            for record in _records(connection):
                file.write(_to_line(record) + "\n")
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _records(connection: Connection) -> Iterator[Record]:
    """All records in the order of their rows, pictures first."""
    images = select(*IMAGE_COLUMNS).select_from(IMAGES.join(PROMPTS)).order_by(IMAGES.c.id)
    for rows in _parts(connection, images):
        yield from images_from_rows(connection, rows)
    for table, record in ((RATINGS, rating_from_row), (SCORES, score_from_row)):
        events = select(table, IMAGES.c.key.label("image")).join(IMAGES).order_by(table.c.id)
        for rows in _parts(connection, events):
            yield from map(record, rows)


def _parts(connection: Connection, query: Select) -> Iterator[Any]:
    return connection.execute(query, execution_options={"yield_per": 500}).partitions()


def _to_line(record: Record) -> str:
    fields = {"type": _NAMES[type(record)], **asdict(record)}
    fields["created"] = record.created.isoformat(timespec="microseconds")
    return json.dumps(fields, ensure_ascii=False)


def import_file(database: Database, path: Path) -> Imported:
    """Add everything in an export that is not here yet.

    The whole file is checked before anything is added. Then the records are added in parts, so that other writers do
    not wait long; if that is cut off, a second import adds the rest.

    Raises:
        ValueError: A line is not in the format; the message gives its number. Nothing was imported.
        OSError: The file cannot be read.
    """
    _check_references(database, path)
    added = dict.fromkeys(_KINDS, 0)
    for batch in batches(_read_lines(path)):
        records = [record for _, record in batch]
        with database.write() as connection:
            added["image"] += add_images(connection, [r for r in records if isinstance(r, StoredImage)])
            added["rating"] += add_ratings(connection, [r for r in records if isinstance(r, Rating)])
            added["score"] += add_scores(connection, [r for r in records if isinstance(r, Score)])
    return Imported(added["image"], added["rating"], added["score"])


def _check_references(database: Database, path: Path) -> None:
    """Every rating and score must be of a picture that is here, or that came before in the file."""
    here: set[str] = set()
    elsewhere: dict[str, int] = {}
    for number, record in _read_lines(path):
        if isinstance(record, StoredImage):
            here.add(record.key)
        elif record.image not in here:
            elsewhere.setdefault(record.image, number)
    with database.read() as connection:
        stored = look_up(connection, IMAGES.c.key, IMAGES.c.id, elsewhere)
    for key, number in elsewhere.items():
        if key not in stored:
            raise ValueError(
                f"{path}, line {number}: there is no picture {key}, neither before this line nor in the store."
            )


def _read_lines(path: Path) -> Iterator[tuple[int, Record]]:
    """The records with their line numbers, from 1."""
    version = None
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = line.strip()
            if not line:
                continue
            try:
                # Some editors put a byte order mark before the first line.
                fields = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                if not isinstance(fields, dict):
                    raise ValueError("this is not a JSON object.")
                kind = fields.pop("type", None)
                if kind == FORMAT:
                    version = _check_version(fields)
                elif version is None:
                    raise ValueError(f'the first line must be {{"type": "{FORMAT}", "version": {VERSION}}}.')
                else:
                    yield number, _to_record(kind, fields)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from None


def _check_version(fields: dict[str, Any]) -> int:
    version = fields.get("version")
    if version != VERSION:
        raise ValueError(f"this version reads the format {VERSION}, not {version!r}. Update Atelier to import it.")
    return VERSION


def _to_record(kind: object, fields: dict[str, Any]) -> Record:
    if kind not in _NAMES.values():
        raise ValueError(f"the type must be one of {', '.join(_KINDS)}, not {kind!r}.")
    missing = _KINDS[kind].__dataclass_fields__.keys() - fields.keys() - {"strength"}
    if missing:
        raise ValueError(f"the {kind} lacks {', '.join(sorted(missing))}.")
    if not isinstance(fields["created"], str):
        raise ValueError(f"the time of creation must be ISO 8601 text, not {fields['created']!r}.")
    fields["created"] = datetime.fromisoformat(fields["created"])
    if kind == "image":
        if not isinstance(fields["files"], list):
            raise ValueError("files must be a list of paths.")
        fields["files"] = tuple(fields["files"])
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise ValueError(f"the {kind} has a field that this version does not know: {error}.") from None
