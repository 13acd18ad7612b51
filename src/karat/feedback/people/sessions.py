"""Who is signed in, by a token of which only the hash is stored; and how often somebody may try something.

Knows tokens, moments and counters, shared by all workers through the store; knows nothing about cookies or passwords.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam, select

from karat.errors import StoreError
from karat.feedback.keys import keyed_hash, secret_key
from karat.feedback.people_tables import accounts, limits, sessions
from karat.feedback.prepared import Prepared
from karat.feedback.store import Store
from karat.feedback.upserts import conflict_insert

HOUR_S = 3600.0
SEEN_EVERY_S = 300.0
"""How exactly it is known when a session was last used: one write in five minutes, not one a request."""

KEEP_S = 90 * 86400.0
"""Sessions that ended are kept this long, to see which pseudonyms shared an address."""

FORGET_S = 86400.0
"""Counters of attempts older than this are swept away."""

# asked with every request: built once
_LIVE = Prepared(
    select(sessions, accounts.c.role, accounts.c.annotator, accounts.c.login)
    .join(accounts, accounts.c.id == sessions.c.account)
    .where(sessions.c.token_hash == bindparam("token"), sessions.c.expires_at > bindparam("now"))
    .where(accounts.c.state == "active")
)


@dataclass(frozen=True)
class Session:
    """Somebody who is signed in."""

    account: str
    """Account.id."""
    kind: str
    """"browser" or "api"."""
    csrf: str
    """What a form or a fetch of this session must send along; bound to the session, useless elsewhere."""
    expires_at: float
    """Seconds since the epoch; ends earlier after idle hours."""
    origin_hash: str | None
    """Keyed hash of the address from which it was opened; None = not kept."""
    role: str
    """The account's role."""
    annotator: str | None
    """The account's pseudonym; None for roles that do not judge."""
    login: str | None
    """The account's name for the password form; None = by invite link only."""


def open_session(
    store: Store,
    account_id: str,
    *,
    now: float,
    kind: str = "browser",
    hours: float = 12.0,
    origin_hash: str | None = None,
    replaces: str | None = None,
) -> str:
    """The token of a new session, 256 random bits; every sign-in makes a new one.

    Args:
        kind: "browser" (ends when idle) or "api" (a bearer token).    hours: it ends at the latest after these.
        origin_hash: `origin_of` of the address, for sybil checks.    replaces: token of a session that ends with it.
    Raises: StoreError for an unknown or locked account.
    """
    token = secrets.token_urlsafe(32)
    row = {"token_hash": token_hash(token), "account": account_id, "kind": kind, "created_at": now, "seen_at": now}

    def write(connection: Connection) -> None:
        state = connection.execute(select(accounts.c.state).where(accounts.c.id == account_id)).scalar()
        if state != "active":
            raise StoreError(f"account {account_id!r}: found {state or 'none by that id'}; only an active one signs in")
        if replaces is not None:
            end_sessions(connection, sessions.c.token_hash == token_hash(replaces), now=now)
        old = sessions.c.expires_at <= now - KEEP_S
        connection.execute(sessions.delete().where(sessions.c.account == account_id, old))
        connection.execute(sessions.insert().values(**row, expires_at=now + hours * HOUR_S, origin_hash=origin_hash))

    store.write(write)
    return token


def session_of(store: Store, token: str, *, now: float, idle_hours: float = 4.0) -> Session | None:
    """Who holds this token; None where it is unknown, ended, idle for too long, or the account is locked.

    Args:
        idle_hours: a browser's session ends after this long without a request; a bearer token does not.
    """
    hashed = token_hash(token)
    with store.connection() as connection:
        row = _LIVE.first(connection, token=hashed, now=now)
    if row is None or (row.kind == "browser" and row.seen_at + idle_hours * HOUR_S <= now):
        return None
    if row.seen_at + SEEN_EVERY_S <= now:
        change = sessions.update().where(sessions.c.token_hash == hashed).values(seen_at=now)
        store.write(lambda connection: connection.execute(change), durable=False)
    csrf = keyed_hash(secret_key(store, "csrf"), hashed)
    return Session(row.account, row.kind, csrf, row.expires_at, row.origin_hash, row.role, row.annotator, row.login)


def close_session(store: Store, token: str, *, now: float) -> None:
    """Sign out; a token that is unknown is as good."""
    store.write(lambda connection: end_sessions(connection, sessions.c.token_hash == token_hash(token), now=now))


def close_sessions(store: Store, account_id: str, *, now: float, kind: str | None = None) -> int:
    """Sign an account out everywhere, or everywhere of one kind. Returns: how many sessions ended."""
    which = sessions.c.account == account_id
    if kind is not None:
        which &= sessions.c.kind == kind
    return store.write(lambda connection: end_sessions(connection, which, now=now))


def end_sessions(connection: Connection, which: sa.ColumnElement[bool], *, now: float) -> int:
    """End the live sessions that a condition names, inside a transaction; their rows stay for the sybil check."""
    live = which & (sessions.c.expires_at > now)
    return connection.execute(sessions.update().where(live).values(expires_at=now)).rowcount


def shared_origins(store: Store) -> list[tuple[str, tuple[str, ...]]]:
    """Addresses (hashed) from which several pseudonyms signed in, with them: evidence for a person, never a verdict."""
    question = (
        select(sessions.c.origin_hash, accounts.c.annotator)
        .join(accounts, accounts.c.id == sessions.c.account)
        .where(sessions.c.origin_hash.is_not(None), accounts.c.annotator.is_not(None))
        .distinct()
    )
    found: dict[str, set[str]] = {}
    with store.connection() as connection:
        for origin, annotator in connection.execute(question):
            found.setdefault(origin, set()).add(annotator)
    return [(origin, tuple(sorted(names))) for origin, names in sorted(found.items()) if len(names) > 1]


def origin_of(store: Store, address: str) -> str:
    """What is kept of an address: a hash under the store's own key, so that two stores cannot be compared."""
    return keyed_hash(secret_key(store, "origin"), address)


def token_hash(token: str) -> str:
    """What is stored of a token. It has 256 random bits: a fast hash is enough."""
    return "sha256:" + hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def attempt(store: Store, key: str, *, now: float, window_s: float, most: int) -> bool:
    """Count one attempt; True = allowed, False = there were `most` in this window already.

    The window starts with the first attempt and ends after window_s; counted in the store, so that all workers
    count together. The key is stored as a keyed hash.
    """
    hashed = keyed_hash(secret_key(store, "limits"), key)

    def write(connection: Connection) -> bool:
        n = _count_attempt(connection, hashed, now=now, window_s=window_s)
        if n == 1 and hashed.endswith("0"):  # one key in sixteen sweeps, so that the table stays small
            connection.execute(limits.delete().where(limits.c.started_at < now - FORGET_S))
        return n <= most

    return store.write(write)


def forget_attempts(store: Store, key: str) -> None:
    """Start counting anew: after a sign-in that succeeded."""
    hashed = keyed_hash(secret_key(store, "limits"), key)
    store.write(lambda connection: connection.execute(limits.delete().where(limits.c.key == hashed)))


def _count_attempt(connection: Connection, key: str, *, now: float, window_s: float) -> int:
    over = limits.c.started_at + window_s <= now
    new: Any = conflict_insert(connection, limits).values(key=key, started_at=now, n=1)
    change = {
        "n": sa.case((over, 1), else_=limits.c.n + 1),
        "started_at": sa.case((over, now), else_=limits.c.started_at),
    }
    return connection.execute(
        new.on_conflict_do_update(index_elements=["key"], set_=change).returning(limits.c.n)
    ).scalar_one()
