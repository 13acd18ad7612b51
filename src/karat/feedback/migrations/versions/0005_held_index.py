"""The index of held tasks has those alone: a planner that expects few open tasks reads them all through it and sorts them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.drop_index("tasks_held", "tasks")
    held = sa.text("state = 'held'")
    columns = ["audience", "free_at", "seq"]
    op.create_index("tasks_held", "tasks", columns, sqlite_where=held, postgresql_where=held)


def downgrade() -> None:
    op.drop_index("tasks_held", "tasks")
    op.create_index("tasks_held", "tasks", ["state", "audience", "free_at"])
