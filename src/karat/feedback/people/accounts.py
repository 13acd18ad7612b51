"""Who may come in: accounts, invite links, passwords, sessions, and how often somebody may try.

Whoever signs in is an account; who judges is an annotator, a pseudonym that its account is the only link to. Of tokens
only hashes are stored, of passwords argon2id. Nothing here has a default: no account, no password, no key.
Knows nothing about pages, cookies or what a role may do.
"""

from __future__ import annotations

import functools
import json
import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from sqlalchemy import Connection, select

from karat.errors import InputError, StoreError
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.additions import check_pseudonym
from karat.feedback.keys import secret_key as secret_key
from karat.feedback.people.sessions import Session as Session
from karat.feedback.people.sessions import attempt as attempt
from karat.feedback.people.sessions import close_session as close_session
from karat.feedback.people.sessions import end_sessions, token_hash
from karat.feedback.people.sessions import open_session as open_session
from karat.feedback.people.sessions import session_of as session_of
from karat.feedback.schema import json_text
from karat.feedback.store import Store
from karat.feedback.upserts import insert_new

AccountRole = Literal["annotator", "expert", "auditor", "admin"]
ROLES = ("annotator", "expert", "auditor", "admin")
JUDGING_ROLES = ("annotator", "expert")
"""Roles that have a pseudonym and judge."""

OWASP = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
"""argon2id with 19 MiB, 2 passes, 1 lane (OWASP Password Storage Cheat Sheet)."""

SHORTEST_PASSWORD, LONGEST_PASSWORD = 10, 1000
DAY_S = 86400.0


@dataclass(frozen=True)
class Account:
    """Somebody who may sign in."""

    id: str
    """Random; never shown to raters of each other."""
    login: str | None
    """Name for the password form, lower case; None = by invite link only."""
    role: str
    """annotator, expert, auditor or admin."""
    annotator: str | None
    """The pseudonym under which this account judges; None for roles that do not judge."""
    state: str
    """active or locked."""
    contact: str | None
    """How to reach this person, for the admin only."""
    outside: Mapping[str, str]
    """Ids of another platform, such as {"PROLIFIC_PID": …}."""
    has_password: bool
    """True = can sign in with login and password."""
    created_at: float
    """Seconds since the epoch."""


def make_account(
    store: Store,
    role: str,
    *,
    now: float,
    login: str | None = None,
    annotator: str | None = None,
    contact: str | None = None,
    outside: Mapping[str, str] | None = None,
) -> Account:
    """A new account without a password.

    Args:
        annotator: the pseudonym of a judging role; None = a random one. One that is in the store already (imported
            votes) may be given to one account.
        outside: ids of another platform.
    Raises: InputError for a role or login that cannot be used; StoreError for a login or pseudonym that is taken.
    """
    if role not in ROLES:
        raise InputError(f"account: found the role {role!r}; expected one of {', '.join(ROLES)}")
    if annotator is not None and role not in JUDGING_ROLES:
        raise InputError(f"account: found the pseudonym {annotator!r} for the role {role}, which does not judge")
    if role in JUDGING_ROLES and annotator is None:
        annotator = "rater-" + secrets.token_hex(5)
    row = {
        "id": "account:" + secrets.token_hex(16),
        "login": None if login is None else _login(login),
        "role": role,
        "annotator": annotator,
        "password": None,
        "state": "active",
        "contact": contact,
        "outside": json_text(dict(outside)) if outside else None,
        "created_at": now,
    }

    def write(connection: Connection) -> Account:
        if annotator is not None:
            if not annotator.strip() or len(annotator) > 200:
                raise InputError(f"account: found the pseudonym {annotator!r}; expected 1 to 200 characters")
            check_pseudonym(annotator)
            insert_new(connection, tables.annotators, {"id": annotator, "origin": "person", "grp": None})
        if not insert_new(connection, people.accounts, row):
            by_login = select(people.accounts.c.id).where(people.accounts.c.login == row["login"])
            taken = f"login {login!r}" if connection.execute(by_login).first() else f"pseudonym {annotator!r}"
            raise StoreError(f"account: the {taken} is taken; choose another")
        return _account(connection, row["id"])

    return store.write(write)


def accounts(store: Store) -> list[Account]:
    """Every account, oldest first."""
    question = select(people.accounts).order_by(people.accounts.c.created_at, people.accounts.c.id)
    with store.connection() as connection:
        return [_account_of(row) for row in connection.execute(question)]


def account(store: Store, account_id: str) -> Account:
    """One account by its id. Raises: StoreError where there is none."""
    with store.connection() as connection:
        return _account(connection, account_id)


def account_by_annotator(store: Store, annotator: str) -> Account | None:
    """The account behind a pseudonym; None for simulated and imported raters."""
    with store.connection() as connection:
        return read_account_by_annotator(connection, annotator)


def read_account_by_annotator(connection: Connection, annotator: str) -> Account | None:
    """`account_by_annotator` inside a transaction."""
    row = connection.execute(select(people.accounts).where(people.accounts.c.annotator == annotator)).first()
    return None if row is None else _account_of(row)


def account_by_outside(store: Store, key: str, value: str) -> Account | None:
    """The account that belongs to an id of another platform, such as ("PROLIFIC_PID", …)."""
    question = select(people.accounts).where(people.accounts.c.outside.is_not(None))
    with store.connection() as connection:
        found = [_account_of(row) for row in connection.execute(question)]
    return next((each for each in found if each.outside.get(key) == value), None)


# Invite links

MOST_DAYS = 3660.0
"""Ten years; whoever writes more means something else."""


def invite(store: Store, account_id: str, *, now: float, days: float = 14.0) -> str:
    """The token of a new link that signs this account in until it expires; older links of the account die.

    Raises: StoreError for an unknown or locked account; InputError for days that are no time to come.
    """
    check_days(days)
    token = secrets.token_urlsafe(32)

    def write(connection: Connection) -> None:
        if _account(connection, account_id).state != "active":
            raise StoreError(
                f"account {account_id}: it is locked; unlock it before you send a link (karat people unlock, or the page Accounts)"
            )
        _end_links(connection, account_id, now=now)
        row = {"token_hash": token_hash(token), "account": account_id, "created_at": now}
        connection.execute(people.invites.insert().values(**row, expires_at=now + days * DAY_S))

    store.write(write)
    return token


def check_days(days: float) -> None:
    """Raise InputError for a link's life that is no time to come."""
    if not 0 < days <= MOST_DAYS:
        raise InputError(f"link: found a life of {days:g} days; expected more than 0 and at most {MOST_DAYS:g}")


def account_of_invite(store: Store, token: str, *, now: float) -> Account | None:
    """Whose link it is; None where it is unknown, expired, replaced, or its account is locked. Consumes nothing."""
    columns = people.invites.c
    question = (
        select(people.accounts)
        .join(people.invites, columns.account == people.accounts.c.id)
        .where(columns.token_hash == token_hash(token), columns.expires_at > now, columns.revoked_at.is_(None))
        .where(people.accounts.c.state == "active")
    )
    with store.connection() as connection:
        row = connection.execute(question).first()
    return None if row is None else _account_of(row)


def end_invites(store: Store, account_id: str, *, now: float) -> None:
    """Let every link of an account die: after the first use of an admin's, or when a rater lost hers."""
    store.write(lambda connection: _end_links(connection, account_id, now=now))


# Passwords


def set_password(
    store: Store,
    account_id: str,
    password: str,
    *,
    now: float,
    login: str | None = None,
    hasher: PasswordHasher = OWASP,
) -> None:
    """Set a password; every session of the account ends, so that a thief's does too.

    Args:
        login: a new login; None = the account's own.    hasher: argon2id with its parameters; tests use cheap ones.
    Raises: InputError for a password that is too short, too long, too uniform or the login itself.
    """
    with store.connection() as connection:
        name = _account(connection, account_id).login if login is None else _login(login)
    if name is None:
        raise InputError("password: this account has no login; choose one together with the password")
    check_password(password, name)
    hashed = hasher.hash(_normal(password))

    def write(connection: Connection) -> None:
        here = (people.accounts.c.login == name) & (people.accounts.c.id != account_id)
        if connection.execute(select(people.accounts.c.id).where(here)).first() is not None:
            raise StoreError(f"account: the login {name!r} is taken; choose another")
        _change(connection, account_id, login=name, password=hashed)
        end_sessions(connection, people.sessions.c.account == account_id, now=now)

    store.write(write)


def account_of_password(store: Store, login: str, password: str, *, hasher: PasswordHasher = OWASP) -> Account | None:
    """Whose login and password these are; None where they are nobody's, without saying which of the two is wrong.

    A login that is unknown, locked or without a password costs one argon2id computation as well.
    """
    with store.connection() as connection:
        question = select(people.accounts).where(people.accounts.c.login == _plain_login(login))
        row = connection.execute(question).first()
    usable = row is not None and row.password is not None and row.state == "active"
    stored = row.password if usable else _nobodys_hash(hasher)
    try:
        right = hasher.verify(stored, _normal(password[:LONGEST_PASSWORD])) and len(password) <= LONGEST_PASSWORD
    except (Argon2Error, InvalidHashError):
        right = False
    if not (usable and right):
        return None
    if hasher.check_needs_rehash(stored):
        hashed = hasher.hash(_normal(password))
        store.write(lambda connection: _change(connection, row.id, password=hashed))
    return _account_of(row)


# What was done by whom


@dataclass(frozen=True)
class LogEntry:
    """Something that somebody with power did."""

    seq: int
    """Order, from 1."""
    account: str
    """Account.id of who did it."""
    action: str
    """What was done, one word or two."""
    subject: str
    """To what or whom."""
    detail: str
    """In which way, and why."""
    at: float
    """Seconds since the epoch."""


def log(store: Store, account: str, action: str, subject: str, detail: str = "", *, now: float) -> None:
    """Write down what an admin, expert or auditor did; never changed afterwards."""
    row = {"account": account, "action": action, "subject": subject, "detail": detail, "at": now}
    store.write(lambda connection: connection.execute(people.admin_log.insert().values(**row)))


def log_entries(store: Store, n: int = 100) -> list[LogEntry]:
    """The newest entries, newest first."""
    question = select(people.admin_log).order_by(people.admin_log.c.seq.desc()).limit(n)
    with store.connection() as connection:
        return [LogEntry(*row) for row in connection.execute(question)]


def _account(connection: Connection, account_id: str) -> Account:
    row = connection.execute(select(people.accounts).where(people.accounts.c.id == account_id)).first()
    if row is None:
        raise StoreError(f"account {account_id!r}: found none by that id; expected one of `accounts`")
    return _account_of(row)


def _account_of(row: Any) -> Account:
    outside = json.loads(row.outside) if row.outside else {}
    return Account(
        row.id, row.login, row.role, row.annotator, row.state, row.contact, outside, row.password is not None, row.created_at
    )  # fmt: skip


def _change(connection: Connection, account_id: str, **values: Any) -> None:
    _account(connection, account_id)
    connection.execute(people.accounts.update().where(people.accounts.c.id == account_id).values(**values))


def _end_links(connection: Connection, account_id: str, *, now: float) -> None:
    live = (people.invites.c.account == account_id) & people.invites.c.revoked_at.is_(None)
    connection.execute(people.invites.update().where(live).values(revoked_at=now))


def _plain_login(login: str) -> str:
    return unicodedata.normalize("NFKC", login).strip().casefold()


def _login(login: str) -> str:
    name = _plain_login(login)
    if not 1 <= len(name) <= 200 or not name.isprintable() or any(sign.isspace() for sign in name):
        raise InputError(f"login: found {login!r}; expected 1 to 200 visible characters without spaces")
    return name


def _normal(password: str) -> str:
    # the same characters typed on two keyboards must be the same password (NIST SP 800-63B, 3.1.1.2)
    return unicodedata.normalize("NFKC", password)


def check_password(password: str, login: str) -> None:
    """Raise InputError for a password that is too short, too long, too uniform or the login itself."""
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise InputError(
            f"password: found {len(password)} characters; expected {SHORTEST_PASSWORD} to {LONGEST_PASSWORD}"
        )
    if len(set(password)) < 5 or _plain_login(password) == login:
        raise InputError("password: it is too easy to guess; expected at least 5 different characters, not the login")


@functools.lru_cache(maxsize=8)
def _hash_of_nothing(time_cost: int, memory_cost: int, parallelism: int) -> str:
    return PasswordHasher(time_cost, memory_cost, parallelism).hash(secrets.token_hex(16))


def _nobodys_hash(hasher: PasswordHasher) -> str:
    return _hash_of_nothing(hasher.time_cost, hasher.memory_cost, hasher.parallelism)
