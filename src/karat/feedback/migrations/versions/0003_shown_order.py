"""The order in which a task's responses are shown is kept with the assignment: it is balanced over the task's raters."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("assignments", sa.Column("shown_order", sa.Text))


def downgrade() -> None:
    op.drop_column("assignments", "shown_order")
