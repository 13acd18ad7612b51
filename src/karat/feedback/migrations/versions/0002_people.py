"""The place where people work: questions, accounts, checks, standing, seals; tasks and judgements say how they asked."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NEW_TABLES = (
    "queue_log", "erasures", "seals", "admin_log", "flags", "standing", "arms", "demographics", "consents", "checks",
    "drafts", "keys", "limits", "sessions", "invites", "accounts", "documents", "questions",
)  # fmt: skip
APPEND_ONLY = ("documents", "standing", "flags", "admin_log", "seals", "erasures", "queue_log")
WORDS = {"standing": "reason", "queue_log": "reason", "flags": "detail", "admin_log": "detail"}
TASK_COLUMNS = ("question", "audience", "reserved_for", "stop_after", "state", "free_at")


def upgrade() -> None:
    _widen()
    _create_content()
    _create_accounts()
    _create_work()
    _create_events()
    _record_earlier_erasures()
    for name in APPEND_ONLY:
        _refuse_changes(name)
    if _is_postgresql():
        op.execute(
            "CREATE TRIGGER judgements_keep_all BEFORE TRUNCATE ON judgements "
            "FOR EACH STATEMENT EXECUTE FUNCTION karat_append_only()"
        )


def downgrade() -> None:
    if _is_postgresql():
        op.execute("DROP TRIGGER judgements_keep_all ON judgements")
    for name in NEW_TABLES:  # their triggers go with them
        op.drop_table(name)
    for name in ("tasks_open", "tasks_held", "tasks_reserved"):
        op.drop_index(name, "tasks")
    op.drop_index("assignments_by_lease", "assignments")
    op.drop_index("judgements_by_annotator", "judgements")
    # no batch mode: SQLite 3.35 drops columns in place, and a copied table would lose its triggers
    for name in TASK_COLUMNS:
        op.drop_column("tasks", name)
    op.drop_column("assignments", "leased_at")
    op.drop_column("judgements", "shown")


def _is_postgresql() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _widen() -> None:
    op.add_column("tasks", sa.Column("question", sa.String(64), nullable=False, server_default=""))
    op.add_column("tasks", sa.Column("audience", sa.String(16), nullable=False, server_default="annotator"))
    op.add_column("tasks", sa.Column("reserved_for", sa.String(200)))
    op.add_column("tasks", sa.Column("stop_after", sa.Integer, nullable=False, server_default="0"))
    op.add_column("tasks", sa.Column("state", sa.String(16), nullable=False, server_default="open"))
    op.add_column("tasks", sa.Column("free_at", sa.Float, nullable=False, server_default="0"))
    op.execute("UPDATE tasks SET state = 'closed' WHERE n_answers >= overlap")
    op.create_index("tasks_open", "tasks", ["state", "audience", "seq"])
    op.create_index("tasks_held", "tasks", ["state", "audience", "free_at"])
    op.create_index("tasks_reserved", "tasks", ["reserved_for", "state"])
    op.create_index("assignments_by_lease", "assignments", ["lease_id"])
    op.create_index("judgements_by_annotator", "judgements", ["annotator", "seq"])
    op.add_column("assignments", sa.Column("leased_at", sa.Float))
    op.add_column("judgements", sa.Column("shown", sa.Text, nullable=False, server_default="{}"))


def _create_content() -> None:
    op.create_table(
        "questions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "documents",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(80), nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.UniqueConstraint("name", "version"),
    )


def _create_accounts() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("login", sa.String(200), unique=True),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("annotator", sa.String(200), sa.ForeignKey("annotators.id"), unique=True),
        sa.Column("password", sa.Text),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("contact", sa.Text),
        sa.Column("outside", sa.Text),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "invites",
        sa.Column("token_hash", sa.String(80), primary_key=True),
        sa.Column("account", sa.String(64), sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("revoked_at", sa.Float),
    )
    op.create_index("invites_by_account", "invites", ["account"])
    op.create_table(
        "sessions",
        sa.Column("token_hash", sa.String(80), primary_key=True),
        sa.Column("account", sa.String(64), sa.ForeignKey("accounts.id"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("expires_at", sa.Float, nullable=False),
        sa.Column("seen_at", sa.Float, nullable=False),
        sa.Column("origin_hash", sa.String(80)),
    )
    op.create_index("sessions_by_account", "sessions", ["account"])
    op.create_table(
        "limits",
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("started_at", sa.Float, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )


def _create_work() -> None:
    op.create_table(
        "drafts",
        sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("annotator", sa.String(200), sa.ForeignKey("annotators.id"), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("saved_at", sa.Float, nullable=False),
    )
    op.create_table(
        "checks",
        sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.id"), primary_key=True),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("expected", sa.Text),
        sa.Column("repeats", sa.String(64)),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("retired_at", sa.Float),
    )
    op.create_index("checks_by_purpose", "checks", ["purpose", "task_id"])
    op.create_index("checks_by_repeats", "checks", ["repeats"])
    op.create_table(
        "consents",
        sa.Column("account", sa.String(64), sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("version", sa.String(64), primary_key=True),
        sa.Column("given_at", sa.Float, nullable=False),
        sa.Column("withdrawn_at", sa.Float),
    )
    op.create_table(
        "demographics",
        sa.Column("annotator", sa.String(200), sa.ForeignKey("annotators.id"), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("consent", sa.String(64), nullable=False),
        sa.Column("saved_at", sa.Float, nullable=False),
    )
    op.create_table(
        "arms",
        sa.Column("annotator", sa.String(200), sa.ForeignKey("annotators.id"), primary_key=True),
        sa.Column("experiment", sa.String(64), primary_key=True),
        sa.Column("arm", sa.String(64), nullable=False),
        sa.Column("assigned_at", sa.Float, nullable=False),
    )


def _create_events() -> None:
    rater = ("annotator", sa.String(200), True)
    _event_table("standing", rater, ("action", sa.String(16)), ("reason", sa.Text), ("by", sa.String(64)))
    op.create_index("standing_by_annotator", "standing", ["annotator", "seq"])
    figures = (("statistic", sa.Float), ("p_value", sa.Float), ("n_votes", sa.Integer), ("detail", sa.Text))
    _event_table("flags", rater, ("detector", sa.String(64)), *figures)
    op.create_index("flags_by_annotator", "flags", ["annotator"])
    _event_table(
        "admin_log", ("account", sa.String(64)), ("action", sa.String(64)), ("subject", sa.Text), ("detail", sa.Text)
    )
    op.create_table(
        "seals",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("first_judgement", sa.Integer, nullable=False),
        sa.Column("last_judgement", sa.Integer, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("root", sa.String(80), nullable=False),
        sa.Column("previous", sa.String(80), nullable=False),
        sa.Column("hash", sa.String(80), nullable=False),
        sa.Column("sealed_at", sa.Float, nullable=False),
        sa.Column("heads", sa.Text, nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("leaves", sa.Text, nullable=False),
    )
    op.create_table(
        "erasures",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("judgement_id", sa.String(64), sa.ForeignKey("judgements.id"), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("by", sa.String(64), nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )
    op.create_index("erasures_by_judgement", "erasures", ["judgement_id"])
    op.create_table(
        "queue_log",
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("task_id", sa.String(64), sa.ForeignKey("tasks.id"), nullable=False),
        sa.Column("by", sa.String(200), nullable=False),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("at", sa.Float, nullable=False),
    )


def _event_table(name: str, *columns: tuple) -> None:
    """A numbered table of events with a moment; a third part True = the column names a rater."""
    made = [
        sa.Column(column, kind, *([sa.ForeignKey("annotators.id")] if rater else []), nullable=False)
        for column, kind, *rater in columns
    ]
    number = sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True)
    op.create_table(name, number, *made, sa.Column("at", sa.Float, nullable=False))


def _refuse_changes(name: str) -> None:
    """These are events: the database itself refuses to change or delete one; only its words can be taken out."""
    columns = [column["name"] for column in sa.inspect(op.get_bind()).get_columns(name)]
    word = WORDS.get(name)
    changed = [f'OLD."{column}" IS DISTINCT FROM NEW."{column}"' for column in columns if column != word]
    when = "" if word is None else "WHEN (" + " OR ".join([f"NEW.\"{word}\" <> ''", *changed]) + ")"
    if _is_postgresql():
        refuse = "EXECUTE FUNCTION karat_append_only()"
        op.execute(f"CREATE TRIGGER {name}_append_only BEFORE UPDATE ON {name} FOR EACH ROW {when} {refuse}")
        op.execute(f"CREATE TRIGGER {name}_keep BEFORE DELETE ON {name} FOR EACH ROW {refuse}")
        op.execute(f"CREATE TRIGGER {name}_keep_all BEFORE TRUNCATE ON {name} FOR EACH STATEMENT {refuse}")
        return
    when = when.replace("IS DISTINCT FROM", "IS NOT")
    refuse = f"BEGIN SELECT RAISE(ABORT, '{name} are append-only'); END"
    op.execute(f"CREATE TRIGGER {name}_refuse_update BEFORE UPDATE ON {name} {when} {refuse}")
    op.execute(f"CREATE TRIGGER {name}_refuse_delete BEFORE DELETE ON {name} {refuse}")


def _record_earlier_erasures() -> None:
    """The first store erased words without saying so; what is missing there was erased, not stolen.

    Its identities hashed the words too: how far they reach is noted, since they cannot be made again without them.
    """
    op.execute(
        "INSERT INTO keys (name, value) "
        "SELECT 'judgements-of-0001', CAST(max(seq) AS TEXT) FROM judgements HAVING max(seq) IS NOT NULL"
    )
    op.execute(
        'INSERT INTO erasures (judgement_id, reason, "by", at) '
        "SELECT id, 'erased before erasures were recorded', 'karat', 0 FROM judgements "
        "WHERE has_words AND id NOT IN (SELECT judgement_id FROM words) ORDER BY seq"
    )
