"""The first store: texts, raters, tasks with leases, and judgements that nobody can change."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TABLES = ("provenance", "salts", "words", "judgements", "assignments", "tasks", "annotators", "responses", "prompts")


def upgrade() -> None:
    _create_texts()
    _create_tasks()
    _create_judgements()
    _refuse_changes()


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER IF EXISTS judgements_append_only ON judgements")
        op.execute("DROP FUNCTION IF EXISTS karat_append_only")
    for name in TABLES:
        op.drop_table(name)


def _create_texts() -> None:
    op.create_table(
        "prompts",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("turns", sa.Text, nullable=False),
        sa.Column("topic", sa.Text),
    )
    op.create_table(
        "responses",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("prompt_id", sa.String(64), sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("sample", sa.Integer, nullable=False),
    )
    op.create_table(
        "annotators",
        sa.Column("id", sa.String(200), primary_key=True),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("grp", sa.Text),
    )


def _create_tasks() -> None:
    op.create_table(
        "tasks",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("prompt_id", sa.String(64), sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("response_ids", sa.Text, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("overlap", sa.Integer, nullable=False),
        sa.Column("strategy", sa.Text, nullable=False),
        sa.Column("propensity", sa.Float, nullable=False),
        sa.Column("guideline", sa.Text, nullable=False),
        sa.Column("batch", sa.Text, nullable=False),
        sa.Column("n_answers", sa.Integer, nullable=False),
    )
    op.create_table(
        "assignments",
        sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("annotator", sa.String(200), sa.ForeignKey("annotators.id"), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("lease_id", sa.String(64)),
        sa.Column("n_leases", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.Float),
        sa.Column("skip_reason", sa.Text),
    )
    op.create_index("assignments_by_annotator", "assignments", ["annotator", "state"])


def _create_judgements() -> None:
    op.create_table(
        "judgements",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("submission", sa.String(200), nullable=False, unique=True),
        sa.Column("commitment", sa.String(80), nullable=False),
        sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("prompt_id", sa.String(64), sa.ForeignKey("prompts.id"), nullable=False),
        sa.Column("response_ids", sa.Text, nullable=False),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("annotator", sa.String(200), sa.ForeignKey("annotators.id"), nullable=False),
        sa.Column("shown_order", sa.Text, nullable=False),
        sa.Column("guideline", sa.Text, nullable=False),
        sa.Column("created_at", sa.Text, nullable=False),
        sa.Column("active_s", sa.Float),
        sa.Column("idle_s", sa.Float),
        sa.Column("propensity", sa.Float, nullable=False),
        sa.Column("strategy", sa.Text, nullable=False),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("supersedes", sa.String(64)),
        sa.Column("late", sa.Boolean, nullable=False),
        sa.Column("has_words", sa.Boolean, nullable=False),
    )
    op.create_index("judgements_by_task", "judgements", ["task_id", "annotator"])
    for name, column in (("words", "words"), ("salts", "salt")):
        op.create_table(
            name,
            sa.Column("judgement_id", sa.String(64), sa.ForeignKey("judgements.id"), primary_key=True),
            sa.Column(column, sa.Text if name == "words" else sa.String(64), nullable=False),
        )
    op.create_table(
        "provenance",
        sa.Column("judgement_id", sa.String(64), sa.ForeignKey("judgements.id"), primary_key=True),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("line", sa.Integer, nullable=False),
        sa.Column("session", sa.Text),
        sa.Column("accepted_at", sa.Text),
    )


def _refuse_changes() -> None:
    """Judgements are events: the database itself refuses to change or delete one."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION karat_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'judgements are append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER judgements_append_only BEFORE UPDATE OR DELETE ON judgements "
            "FOR EACH ROW EXECUTE FUNCTION karat_append_only()"
        )
        return
    for action in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER judgements_refuse_{action.lower()} BEFORE {action} ON judgements "
            "BEGIN SELECT RAISE(ABORT, 'judgements are append-only'); END"
        )
