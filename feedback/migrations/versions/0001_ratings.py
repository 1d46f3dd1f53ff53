"""Prompts, pictures, ratings, scores and embeddings."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def make(name: str, *items: sa.schema.SchemaItem, indexed: tuple[tuple[str, ...], ...] = ()) -> None:
    """Make the table `atelier_NAME` with a row number and indices on the given columns."""
    table = f"atelier_{name}"
    row_id = sa.Column("id", ROW_ID, nullable=False)
    op.create_table(table, row_id, *items, sa.PrimaryKeyConstraint("id", name=f"pk_{table}"))
    for columns in indexed:
        op.create_index("_".join(["ix", table, *columns]), table, list(columns))


def unique(name: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*columns, name="_".join(["uq", f"atelier_{name}", *columns]))


def refers(name: str, other: str) -> tuple[sa.Column, sa.ForeignKeyConstraint]:
    """The column OTHER_id and its foreign key."""
    column = f"{other}_id"
    key = sa.ForeignKeyConstraint([column], [f"atelier_{other}s.id"], name=f"fk_atelier_{name}_{column}")
    return sa.Column(column, ROW_ID, nullable=False), key


def column(name: str, kind: type | sa.types.TypeEngine) -> sa.Column:
    return sa.Column(name, kind, nullable=False)


def upgrade() -> None:
    make("prompts", column("digest", sa.String(64)), column("text", sa.Text), unique("prompts", "digest"))
    make(
        "images",
        column("key", sa.String(64)),
        column("digest", sa.String(64)),
        *refers("images", "prompt"),
        column("session", sa.Text),
        column("negative", sa.Text),
        column("checkpoint", sa.Text),
        sa.Column("seed", sa.String(20)),
        column("created", sa.BigInteger),
        unique("images", "key"),
        indexed=(("digest",), ("prompt_id",)),
    )
    make("files", *refers("files", "image"), column("path", sa.Text), indexed=(("image_id",),))
    make(
        "ratings",
        column("uid", sa.String(32)),
        *refers("ratings", "image"),
        column("session", sa.Text),
        column("source", sa.Text),
        column("value", sa.SmallInteger),
        column("created", sa.BigInteger),
        sa.CheckConstraint("value IN (-1, 0, 1)", name="ck_atelier_ratings_value"),
        unique("ratings", "uid"),
        indexed=(("image_id",), ("session",)),
    )
    make(
        "scores",
        column("uid", sa.String(32)),
        *refers("scores", "image"),
        column("scorer", sa.Text),
        column("value", sa.Double),
        column("created", sa.BigInteger),
        unique("scores", "uid"),
        indexed=(("image_id",),),
    )
    make("encoders", column("name", sa.Text), column("width", sa.Integer), unique("encoders", "name"))
    make(
        "embeddings",
        *refers("embeddings", "encoder"),
        *refers("embeddings", "prompt"),
        column("vector", sa.LargeBinary),
        unique("embeddings", "encoder_id", "prompt_id"),
        indexed=(("encoder_id", "id"),),
    )
