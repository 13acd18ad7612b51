"""The tables of the feedback store, as the code reads and writes them.

The same tables are made by `migrations/`, which never imports this file: a migration stays what it was when it was
released. Knows column names and types; knows nothing about transactions, raters or what a judgement means.

A judgement's record holds no words: reasons and written answers are in `words`, the salt of its commitment in
`salts`. Both can be erased while the record, its commitment and every root over commitments stay whole.
"""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

HEAD = "0001"
"""The revision of the migrations that this code reads and writes."""

metadata = MetaData()

prompts = Table(
    "prompts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("turns", Text, nullable=False),
    Column("topic", Text),
)

responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("prompt_id", String(64), ForeignKey("prompts.id"), nullable=False),
    Column("text", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("sample", Integer, nullable=False),
)

annotators = Table(
    "annotators",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("origin", String(16), nullable=False),
    Column("grp", Text),
)

tasks = Table(
    "tasks",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("prompt_id", String(64), ForeignKey("prompts.id"), nullable=False),
    Column("response_ids", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("propensity", Float, nullable=False),
    Column("guideline", Text, nullable=False),
    Column("batch", Text, nullable=False),
    Column("n_answers", Integer, nullable=False),
)

assignments = Table(
    "assignments",
    metadata,
    Column("task_id", String(64), ForeignKey("tasks.id"), primary_key=True),
    Column("annotator", String(200), ForeignKey("annotators.id"), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("lease_id", String(64)),
    Column("n_leases", Integer, nullable=False),
    Column("expires_at", Float),
    Column("skip_reason", Text),
    Index("assignments_by_annotator", "annotator", "state"),
)

judgements = Table(
    "judgements",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("submission", String(200), nullable=False, unique=True),
    Column("commitment", String(80), nullable=False),
    Column("task_id", String(64), ForeignKey("tasks.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("prompt_id", String(64), ForeignKey("prompts.id"), nullable=False),
    Column("response_ids", Text, nullable=False),
    Column("value", Text, nullable=False),
    Column("annotator", String(200), ForeignKey("annotators.id"), nullable=False),
    Column("shown_order", Text, nullable=False),
    Column("guideline", Text, nullable=False),
    Column("created_at", Text, nullable=False),
    Column("active_s", Float),
    Column("idle_s", Float),
    Column("propensity", Float, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("origin", String(16), nullable=False),
    Column("supersedes", String(64)),
    Column("late", Boolean, nullable=False),
    Column("has_words", Boolean, nullable=False),
    Index("judgements_by_task", "task_id", "annotator"),
)

words = Table(
    "words",
    metadata,
    Column("judgement_id", String(64), ForeignKey("judgements.id"), primary_key=True),
    Column("words", Text, nullable=False),
)

salts = Table(
    "salts",
    metadata,
    Column("judgement_id", String(64), ForeignKey("judgements.id"), primary_key=True),
    Column("salt", String(64), nullable=False),
)

provenance = Table(
    "provenance",
    metadata,
    Column("judgement_id", String(64), ForeignKey("judgements.id"), primary_key=True),
    Column("file", Text, nullable=False),
    Column("line", Integer, nullable=False),
    Column("session", Text),
    Column("accepted_at", Text),
)
