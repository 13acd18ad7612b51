"""What an account may do and whether it may come in, changed by somebody in charge: written down, and never so that
nobody is in charge.

Knows accounts, their sessions and links, and the admin log; knows nothing about pages.
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlalchemy import Connection, Row, select

from karat.errors import InputError, StoreError
from karat.feedback import leases
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.people.accounts import JUDGING_ROLES, ROLES, Account, account
from karat.feedback.people.sessions import end_sessions
from karat.feedback.store import Store
from karat.feedback.upserts import insert_new

COMMAND_LINE = "command line"
"""Who did it, where it was done by a command on the server and not by an account."""
LAST_ADMIN = "this is the last active admin; make another account an admin first"


def change_role(store: Store, account_id: str, role: str, *, by: str, now: float) -> Account:
    """Give an account another role.

    Its sessions and links end, so that nobody goes on with a power she no longer has, or gets one by an old link; a task
    in hand goes back to the queue. A role that judges gets a pseudonym where there is none; one that does not keeps the
    pseudonym, because what was judged under it stays that person's to see and to have erased.

    Args:
        by: Account.id of who does it, or COMMAND_LINE.
    Returns: the account as it is now; asked for the role that it has, nothing happens.
    Raises: InputError for an unknown role, or where the last active admin would stop being one; StoreError for an unknown
        account.
    """
    if role not in ROLES:
        raise InputError(f"role: found {role[:40]!r}; expected one of {', '.join(ROLES)}")

    def write(connection: Connection) -> None:
        mine, someone_else = _account_and_admins(connection, account_id)
        if mine.role == role:
            return
        if mine.role == "admin" and not someone_else:
            raise InputError(f"role: {LAST_ADMIN}")
        values = {"role": role}
        if role in JUDGING_ROLES and mine.annotator is None:
            values["annotator"] = "rater-" + secrets.token_hex(5)
            insert_new(connection, tables.annotators, {"id": values["annotator"], "origin": "person", "grp": None})
        _change(connection, account_id, **values)
        _put_out(connection, mine, now=now)
        _write_down(connection, by, "role changed", account_id, f"{mine.role} → {role}", now=now)

    store.write(write)
    return account(store, account_id)


def lock(store: Store, account_id: str, *, by: str, now: float) -> Account:
    """Keep somebody out: sessions and links end at once, a task in hand goes back to the queue; what was judged stays.

    Args:
        by: Account.id of who does it, or COMMAND_LINE.
    Returns: the account as it is now; where it is locked already, nothing happens.
    Raises: InputError for the last active admin; StoreError for an unknown account.
    """

    def write(connection: Connection) -> None:
        mine, someone_else = _account_and_admins(connection, account_id)
        if mine.state == "locked":
            return
        if mine.role == "admin" and not someone_else:
            raise InputError(f"lock: {LAST_ADMIN}")
        _change(connection, account_id, state="locked")
        _put_out(connection, mine, now=now)
        _write_down(connection, by, "account locked", account_id, now=now)

    store.write(write)
    return account(store, account_id)


def unlock(store: Store, account_id: str, *, by: str, now: float) -> Account:
    """Let somebody in again; old sessions and links stay dead. Arguments, result and errors as `lock` has them."""

    def write(connection: Connection) -> None:
        mine, _ = _account_and_admins(connection, account_id)
        if mine.state != "active":
            _change(connection, account_id, state="active")
            _write_down(connection, by, "account unlocked", account_id, now=now)

    store.write(write)
    return account(store, account_id)


def _account_and_admins(connection: Connection, account_id: str) -> tuple[Row[Any], bool]:
    """An account, and whether somebody else is an active admin. Raises: StoreError for an unknown account."""
    columns = people.accounts.c
    # every admin's row is locked, so that two admins cannot demote or lock out each other in the same moment
    question = select(columns.id, columns.role, columns.state, columns.annotator)
    rows = connection.execute(
        question.where((columns.role == "admin") | (columns.id == account_id)).order_by(columns.id).with_for_update()
    )
    found = {row.id: row for row in rows}
    if account_id not in found:
        raise StoreError(f"account {account_id!r}: found none by that id; expected one of `accounts`")
    mine = found.pop(account_id)
    return mine, any(row.state == "active" for row in found.values())


def _change(connection: Connection, account_id: str, **values: str) -> None:
    connection.execute(people.accounts.update().where(people.accounts.c.id == account_id).values(**values))


def _put_out(connection: Connection, mine: Row[Any], *, now: float) -> None:
    """End an account's sessions and links, and give its tasks in hand back to the queue."""
    live = (people.invites.c.account == mine.id) & people.invites.c.revoked_at.is_(None)
    connection.execute(people.invites.update().where(live).values(revoked_at=now))
    end_sessions(connection, people.sessions.c.account == mine.id, now=now)
    if mine.annotator is not None:
        leases.end_leases(connection, mine.annotator, now=now)


def _write_down(connection: Connection, by: str, action: str, account_id: str, detail: str = "", *, now: float) -> None:
    entry = {"account": by, "action": action, "subject": account_id, "detail": detail, "at": now}
    connection.execute(people.admin_log.insert().values(**entry))
