"""How much a rating counts."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("atelier_ratings", sa.Column("strength", sa.Double, nullable=False, server_default=sa.text("1")))
