"""The tables of the ratings store. `migrations/` makes them; a test compares the two.

Rows are only ever added. The one exception is an image's time of creation, which an import may set earlier. Every name
begins with `atelier_`, so a database can be shared with other programs.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Subquery,
    Table,
    Text,
    UniqueConstraint,
    func,
    select,
    text,
)
from sqlalchemy.sql import ColumnElement

VERSION_TABLE = "atelier_alembic_version"

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


def _row_id() -> Column:
    return Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True)


def _of(table: str) -> Column:
    return Column(f"{table}_id", ForeignKey(f"atelier_{table}s.id"), nullable=False)


# `digest` is the SHA-256 of the whole text: PostgreSQL cannot index a text of more than 2.7 kB.
PROMPTS = Table(
    "atelier_prompts",
    METADATA,
    _row_id(),
    Column("digest", String(64), nullable=False, unique=True),
    Column("text", Text, nullable=False),
)

# `created`, here and below, is in microseconds since 1970, UTC. A seed has 64 bits, a database integer 63.
IMAGES = Table(
    "atelier_images",
    METADATA,
    _row_id(),
    Column("key", String(64), nullable=False, unique=True),
    Column("digest", String(64), nullable=False, index=True),
    _of("prompt"),
    Column("session", Text, nullable=False),
    Column("negative", Text, nullable=False),
    Column("checkpoint", Text, nullable=False),
    Column("seed", String(20)),
    Column("created", BigInteger, nullable=False),
    Index(None, "prompt_id"),
)

FILES = Table(
    "atelier_files",
    METADATA,
    _row_id(),
    _of("image"),
    Column("path", Text, nullable=False),
    Index(None, "image_id"),
)

RATINGS = Table(
    "atelier_ratings",
    METADATA,
    _row_id(),
    Column("uid", String(32), nullable=False, unique=True),
    _of("image"),
    Column("session", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("value", SmallInteger, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("strength", Double, nullable=False, server_default=text("1")),
    CheckConstraint("value IN (-1, 0, 1)", name="value"),
    Index(None, "image_id"),
    Index(None, "session"),
)

SCORES = Table(
    "atelier_scores",
    METADATA,
    _row_id(),
    Column("uid", String(32), nullable=False, unique=True),
    _of("image"),
    Column("scorer", Text, nullable=False),
    Column("value", Double, nullable=False),
    Column("created", BigInteger, nullable=False),
    Index(None, "image_id"),
)

ENCODERS = Table(
    "atelier_encoders",
    METADATA,
    _row_id(),
    Column("name", Text, nullable=False, unique=True),
    Column("width", Integer, nullable=False),
)

# `vector` is `width` little-endian float32 numbers.
EMBEDDINGS = Table(
    "atelier_embeddings",
    METADATA,
    _row_id(),
    _of("encoder"),
    _of("prompt"),
    Column("vector", LargeBinary, nullable=False),
    UniqueConstraint("encoder_id", "prompt_id"),
    Index(None, "encoder_id", "id"),
)


def holding_ratings(*slots: ColumnElement[bool]) -> Subquery:
    """The rows of RATINGS that hold: the newest of each image, session and source, unless it takes back.

    `slots` narrow the search by image or session, never by value or time: that would let an older row hold.
    """
    same = (RATINGS.c.image_id, RATINGS.c.session, RATINGS.c.source)
    newest = (RATINGS.c.created.desc(), RATINGS.c.uid.desc())
    age = func.row_number().over(partition_by=same, order_by=newest).label("age")
    events = select(RATINGS, age).where(*slots).subquery()
    return select(events).where(events.c.age == 1, events.c.value != 0).subquery()


def holding_scores(*slots: ColumnElement[bool]) -> Subquery:
    """The rows of SCORES that hold: the newest of each image and scorer. `slots` narrow by image or scorer."""
    newest = (SCORES.c.created.desc(), SCORES.c.uid.desc())
    age = func.row_number().over(partition_by=(SCORES.c.image_id, SCORES.c.scorer), order_by=newest).label("age")
    events = select(SCORES, age).where(*slots).subquery()
    return select(events).where(events.c.age == 1).subquery()


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def to_microseconds(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_microseconds(time: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time)
