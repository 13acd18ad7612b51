"""Each rater has a mark behind which no open task waits for her, and what is asked of her at every turn has its index."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("annotators", sa.Column("done_to", sa.Integer, nullable=False, server_default="0"))
    op.drop_index("assignments_by_annotator", "assignments")
    op.create_index("assignments_by_annotator", "assignments", ["annotator", "state", "leased_at"])
    # with both columns that name a lease, or SQLite may look through all of a rater's assignments for one
    op.drop_index("assignments_by_lease", "assignments")
    op.create_index("assignments_by_lease", "assignments", ["lease_id", "annotator"])
    op.create_index("tasks_by_prompt", "tasks", ["prompt_id"])


def downgrade() -> None:
    op.drop_index("tasks_by_prompt", "tasks")
    for name, columns in (("annotator", ["annotator", "state"]), ("lease", ["lease_id"])):
        op.drop_index(f"assignments_by_{name}", "assignments")
        op.create_index(f"assignments_by_{name}", "assignments", columns)
    op.drop_column("annotators", "done_to")
