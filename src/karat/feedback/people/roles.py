"""What an account may do, changed by somebody in charge: written down, and never so that nobody is in charge.

Knows accounts, their sessions and links, and the admin log; knows nothing about pages.
"""

from __future__ import annotations

import secrets

from sqlalchemy import Connection, select

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
        columns = people.accounts.c
        # every admin's row is locked, so that two admins cannot demote each other in the same moment
        question = select(columns.id, columns.role, columns.state, columns.annotator)
        rows = connection.execute(
            question.where((columns.role == "admin") | (columns.id == account_id))
            .order_by(columns.id)
            .with_for_update()
        )
        found = {row.id: row for row in rows}
        if account_id not in found:
            raise StoreError(f"account {account_id!r}: found none by that id; expected one of `accounts`")
        mine = found.pop(account_id)
        if mine.role == role:
            return
        if mine.role == "admin" and not any(row.state == "active" for row in found.values()):
            raise InputError("role: this is the last active admin; make another account an admin first")
        values = {"role": role}
        if role in JUDGING_ROLES and mine.annotator is None:
            values["annotator"] = "rater-" + secrets.token_hex(5)
            insert_new(connection, tables.annotators, {"id": values["annotator"], "origin": "person", "grp": None})
        connection.execute(people.accounts.update().where(columns.id == account_id).values(**values))
        live = (people.invites.c.account == account_id) & people.invites.c.revoked_at.is_(None)
        connection.execute(people.invites.update().where(live).values(revoked_at=now))
        end_sessions(connection, people.sessions.c.account == account_id, now=now)
        if mine.annotator is not None:
            leases.end_leases(connection, mine.annotator, now=now)
        entry = {"account": by, "action": "role changed", "subject": account_id, "detail": f"{mine.role} → {role}"}
        connection.execute(people.admin_log.insert().values(**entry, at=now))

    store.write(write)
    return account(store, account_id)
