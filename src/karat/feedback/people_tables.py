"""The tables of the place where people work: questions, documents, accounts, checks, seals and what was done by whom.

They share the metadata of `schema.py` and are made by migration 0002. Knows column names and types; knows nothing
about what a role may do or how a password is checked.

Events are append-only (`APPEND_ONLY`: the database refuses to change or delete them); everything else says what is so
now. Whoever signs in is an account; who judges is an annotator, a pseudonym: judgements never name an account.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from karat.feedback.schema import metadata

APPEND_ONLY = ("documents", "standing", "flags", "admin_log", "seals", "erasures", "queue_log")
"""Tables whose rows are never changed or deleted."""

WORDS = {"standing": "reason", "queue_log": "reason", "flags": "detail", "admin_log": "detail"}
"""The column of words in such a table: it can be made empty, which is how a person's words are erased."""

questions = Table(
    "questions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("body", Text, nullable=False),
)
"""Question records by content; body: their JSON."""

documents = Table(
    "documents",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("hash", String(80), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("name", "version"),
)
"""Versioned texts and settings: "guideline", "consent", "examples", "settings", "qualification" …; the newest counts."""

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("login", String(200), unique=True),
    Column("role", String(16), nullable=False),
    Column("annotator", String(200), ForeignKey("annotators.id"), unique=True),
    Column("password", Text),
    Column("state", String(16), nullable=False),
    Column("contact", Text),
    Column("outside", Text),
    Column("created_at", Float, nullable=False),
)
"""Who may sign in. role: annotator, expert, auditor or admin; state: active or locked; password: argon2id, NULL = by
invite link only; outside: JSON of ids of another platform (Prolific …)."""

invites = Table(
    "invites",
    metadata,
    Column("token_hash", String(80), primary_key=True),
    Column("account", String(64), ForeignKey("accounts.id"), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("revoked_at", Float),
    Index("invites_by_account", "account"),
)
"""One link per account at a time; only the hash of its token is kept."""

sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", String(80), primary_key=True),
    Column("account", String(64), ForeignKey("accounts.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("seen_at", Float, nullable=False),
    Column("origin_hash", String(80)),
    Index("sessions_by_account", "account"),
)
"""Who is signed in. kind: "browser" or "api"; origin_hash: keyed hash of the address, for sybil checks."""

limits = Table(
    "limits",
    metadata,
    Column("key", String(200), primary_key=True),
    Column("started_at", Float, nullable=False),
    Column("n", Integer, nullable=False),
)
"""Attempts in a window of time, shared by all workers."""

keys = Table(
    "keys",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
"""Keys made at random for this store (signing, address hashes); never exported, never the same in two stores."""

drafts = Table(
    "drafts",
    metadata,
    Column("task_id", String(64), ForeignKey("tasks.id"), primary_key=True),
    Column("annotator", String(200), ForeignKey("annotators.id"), primary_key=True),
    Column("body", Text, nullable=False),
    Column("saved_at", Float, nullable=False),
)
"""What a rater has entered and not yet submitted."""

checks = Table(
    "checks",
    metadata,
    Column("task_id", String(64), ForeignKey("tasks.id"), primary_key=True),
    Column("purpose", String(16), nullable=False),
    Column("expected", Text),
    Column("repeats", String(64)),
    Column("version", String(64), nullable=False),
    Column("retired_at", Float),
    Index("checks_by_purpose", "purpose", "task_id"),
    Index("checks_by_repeats", "repeats"),
)
"""Silent checks in the form of real work. purpose: gold, qualification or repeat; expected: JSON of the right answer;
repeats: the judgement id that is asked again. Nothing of this table is ever sent to a rater."""

consents = Table(
    "consents",
    metadata,
    Column("account", String(64), ForeignKey("accounts.id"), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("given_at", Float, nullable=False),
    Column("withdrawn_at", Float),
)
"""Which version of the consent text was agreed to, and when it was taken back."""

demographics = Table(
    "demographics",
    metadata,
    Column("annotator", String(200), ForeignKey("annotators.id"), primary_key=True),
    Column("body", Text, nullable=False),
    Column("consent", String(64), nullable=False),
    Column("saved_at", Float, nullable=False),
)
"""What a rater chose to say about herself, apart from everything else and deletable."""

arms = Table(
    "arms",
    metadata,
    Column("annotator", String(200), ForeignKey("annotators.id"), primary_key=True),
    Column("experiment", String(64), primary_key=True),
    Column("arm", String(64), nullable=False),
    Column("assigned_at", Float, nullable=False),
)
"""Randomised arms (pay, guideline, interface), one per rater and experiment."""

standing = Table(
    "standing",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("annotator", String(200), ForeignKey("annotators.id"), nullable=False),
    Column("action", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Index("standing_by_annotator", "annotator", "seq"),
)
"""Standing as events: quarantined, answered (by the rater), released; of a qualification: qualified, failed, asks for review
(by the rater), another attempt, admitted, result stands."""

flags = Table(
    "flags",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("annotator", String(200), ForeignKey("annotators.id"), nullable=False),
    Column("detector", String(64), nullable=False),
    Column("statistic", Float, nullable=False),
    Column("p_value", Float, nullable=False),
    Column("n_votes", Integer, nullable=False),
    Column("detail", Text, nullable=False),
    Column("at", Float, nullable=False),
    Index("flags_by_annotator", "annotator"),
)
"""What a detector found, for a person to review."""

admin_log = Table(
    "admin_log",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("account", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("at", Float, nullable=False),
)
"""What somebody with power did."""

seals = Table(
    "seals",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("first_judgement", Integer, nullable=False),
    Column("last_judgement", Integer, nullable=False),
    Column("n", Integer, nullable=False),
    Column("root", String(80), nullable=False),
    Column("previous", String(80), nullable=False),
    Column("hash", String(80), nullable=False),
    Column("sealed_at", Float, nullable=False),
    Column("heads", Text, nullable=False),
    Column("nonce", String(64), nullable=False),
    Column("leaves", Text, nullable=False),
)
"""Merkle roots over batches of judgements and other events, each chained to the one before (`karat.feedback.record.seals`).
heads: JSON of the last number sealed in each table; leaves: one a line; nonce: blinds what a leaf would give away, and
never leaves the store."""

erasures = Table(
    "erasures",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("judgement_id", String(64), ForeignKey("judgements.id"), nullable=False),
    Column("reason", Text, nullable=False),
    Column("by", String(64), nullable=False),
    Column("at", Float, nullable=False),
    Index("erasures_by_judgement", "judgement_id"),
)
"""Which judgements lost their words and salt on request."""

queue_log = Table(
    "queue_log",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("task_id", String(64), ForeignKey("tasks.id"), nullable=False),
    Column("by", String(200), nullable=False),
    Column("action", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", Float, nullable=False),
)
"""Tasks skipped, taken back, pulled and issued again: what was done to the queue, and why."""
