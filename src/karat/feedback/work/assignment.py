"""Which task a rater gets next.

Her own live lease first; then, in her turn, a qualification item, a silent check or the first task that needs an
answer. When a check comes is decided by a keyed hash of rater and turn, never by a clock, and only while there is real
work to hide it in; every turn asks the database the same questions, so that neither order nor time tells a check from
work. Pages and clients know a task by its lease's id only: Task.ids and batches stay on the server.
Knows rules; knows nothing about pages or what an answer says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from sqlalchemy import Connection, select

from karat.errors import LeaseError
from karat.feedback import leases
from karat.feedback import schema as tables
from karat.feedback.documents import read_settings, shelf
from karat.feedback.keys import keyed_hash, secret_key
from karat.feedback.leases import Lease
from karat.feedback.openings import Asked
from karat.feedback.schema import task_of
from karat.feedback.store import Store
from karat.feedback.waiting import n_waiting, peek_open
from karat.feedback.work.gates import Admitted, Reason, admit, open_test, over_budget
from karat.feedback.work.orders import draw_order, read_order
from karat.feedback.work.requeue import log_queue
from karat.feedback.work.requeue import pull as pull
from karat.feedback.work.requeue import reissue as reissue
from karat.feedback.work.turns import Turn, turn_of


@dataclass(frozen=True)
class Offer:
    """What a rater is offered."""

    lease: Lease | None
    """The task and until when; None where there is none."""
    reason: Reason
    """"work", or why there is none."""
    shown_order: tuple[int, ...] = ()
    """Identity indices of the responses in the order to show them."""


@dataclass(frozen=True)
class HeldLease:
    """A lease by its opaque id, as a page or client names it."""

    lease: Lease
    """The lease; after it ran out or was used, `expires_at` is when that was at the latest."""
    state: Literal["live", "expired", "submitted", "skipped"]
    """What became of it; an answer to an expired one is stored as late."""
    shown_order: tuple[int, ...]
    """Identity indices of the responses in the order shown."""
    leased_at: float | None
    """When it was handed out; None where it never was."""


def next_task(store: Store, annotator: str, *, now: float) -> Lease | None:
    """The next task for a rater, or None; `next_work` says why there is none."""
    return next_work(store, annotator, now=now).lease


def next_work(store: Store, annotator: str, *, now: float) -> Offer:
    """The next task for a rater with the order in which to show it, or why there is none.

    Asking again without answering gives the same lease, extended. A rater without an account (simulated, imported)
    needs no consent and is asked as an annotator; an expert's account gets tasks of audience "expert" only.

    Args:
        now: seconds since the epoch.
    Raises: StoreError for a rater the store does not know.
    """
    keys = WorkKeys.of(store)

    def write(connection: Connection) -> Offer:
        rater = admit(connection, annotator, shelf(connection), now=now, lock=True)
        return hand_out(connection, rater, keys, now=now)[0]

    # a power cut may take a lease with it, never an answer: the disk is not waited for
    return store.write(write, durable=False)


@dataclass(frozen=True)
class WorkKeys:
    """The store's own keys that decide about turns and orders; read before a transaction, because they may be new."""

    turns: bytes
    """Which turn brings a check."""
    order: bytes
    """In which order responses are shown (`orders`)."""
    arms: bytes
    """Which arm of an experiment somebody is drawn into."""

    @classmethod
    def of(cls, store: Store) -> WorkKeys:
        """Those of a store."""
        return cls(secret_key(store, "turns"), secret_key(store, "order"), secret_key(store, "arms"))


def hand_out(
    connection: Connection, rater: Admitted | Reason, keys: WorkKeys, *, now: float
) -> tuple[Offer, frozenset[Asked] | None]:
    """`next_work` inside a writing transaction, for a rater of `gates.admit` whose row is locked.

    Returns: the offer, and what she had as gold; None = that was not looked up.
    """
    if isinstance(rater, str):
        return Offer(None, rater), None
    who, lease_s = rater.annotator, rater.settings.lease_s
    terms: dict[str, Any] = {"now": now, "lease_s": lease_s, "draw": partial(draw_order, keys.order)}
    held = leases.held_task(connection, who, now=now)
    if held is not None:
        return _offered(leases.renew(connection, held, who, now=now, lease_s=lease_s), "work", keys), None
    if over_budget(connection, rater.settings, now=now):
        return Offer(None, "budget"), None
    if rater.qualification is not None:
        items = open_test(connection, who, rater.qualification, now=now, judge=True)
        if items is not None:
            lease = _qualification_item(connection, who, items, keys.turns, terms) if items else None
            return _offered(lease, "not qualified", keys), None
    turn = Turn(None, frozenset())
    if rater.audience == "annotator":
        turn = turn_of(connection, who, rater.settings, keys.turns, now=now, barred=rater.barred)
    queue = {"audience": rater.audience, "met": turn.had}
    mark = rater.done_to if rater.audience == "annotator" else None
    now_open = queue | {"barred": rater.barred, "done_to": mark, "lapsed": turn.lapsed}
    if turn.check is None:
        lease = leases.first_open(connection, who, **terms, **now_open)
    else:
        hidden = peek_open(connection, who, now=now, **now_open)
        lease = leases.grant(connection, turn.check, who, **terms) if hidden is not None else None
    too_much = (
        lease is None
        and bool(rater.barred)
        and n_waiting(connection, who, now=now, most=1, done_to=rater.done_to, **queue) > 0
    )
    return _offered(lease, "exposure" if too_much else "nothing left", keys), turn.had


def _offered(lease: Lease | None, without: Reason, keys: WorkKeys) -> Offer:
    """A lease as it is offered, or why there is none."""
    if lease is None:
        return Offer(None, without)
    return Offer(lease, "work", read_order(lease.shown_order, lease.task, lease.annotator, keys.order))


def _qualification_item(
    connection: Connection, annotator: str, items: Collection[str], key: bytes, terms: Mapping[str, Any]
) -> Lease | None:
    """A lease on one of the open items of a rater's attempt, in an order of her own."""
    wanted = min(items, key=lambda task_id: keyed_hash(key, annotator, task_id))
    row = connection.execute(select(tables.tasks).where(tables.tasks.c.id == wanted)).one()
    return leases.grant(connection, row, annotator, **terms)


# A lease that a page or client names


def lease_of(store: Store, lease_id: str, annotator: str, *, now: float) -> HeldLease:
    """What a lease is about. Raises: LeaseError where this rater never had it, or has a newer one on the same task."""
    mine = tables.assignments.c
    question = (
        select(tables.tasks, mine.state.label("held"), mine.expires_at, mine.leased_at, mine.shown_order)
        .join(tables.assignments, mine.task_id == tables.tasks.c.id)
        .where(mine.lease_id == lease_id, mine.annotator == annotator)
    )
    with store.connection() as connection:
        row = connection.execute(question).first()
    if row is None:
        raise LeaseError(f"lease {lease_id}: found none of yours by that name; ask for the next task")
    live = row.held == "leased" and (row.expires_at or 0.0) > now
    state = "live" if live else "expired" if row.held == "leased" else row.held
    task = task_of(row)
    lease = Lease(lease_id, task, annotator, row.expires_at if row.expires_at is not None else now, row.shown_order)
    order = read_order(row.shown_order, task, annotator, secret_key(store, "order"))
    return HeldLease(lease, state, order, row.leased_at)


def heartbeat(store: Store, lease_id: str, annotator: str, *, now: float) -> float:
    """Extend a live lease by the minutes of the settings. Returns: its new expiry. Raises: LeaseError as `lease_of`."""

    def write(connection: Connection) -> float:
        lease_s = read_settings(connection).lease_s
        return leases.extend_lease(connection, lease_id, annotator, now=now, lease_s=lease_s)

    return store.write(write, durable=False)


def skip(store: Store, lease_id: str, annotator: str, *, reason: str, now: float) -> None:
    """Give a task back for good, with a reason that is kept. Raises: LeaseError where the lease is not hers."""

    def write(connection: Connection) -> None:
        task_id = leases.skip_lease(connection, lease_id, annotator, reason=reason)
        log_queue(connection, [task_id], "skipped", by=annotator, reason=reason, now=now)

    store.write(write)
