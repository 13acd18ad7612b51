"""Which task a rater gets next, and in which order she sees the responses.

Her own live lease first; then, in her turn, a qualification item, a silent check or the first task that needs an
answer. When a check comes is decided by a keyed hash of rater and turn, never by a clock, and only while there is real
work to hide it in; every turn asks the database the same questions, so that neither order nor time tells a check from
work. Pages and clients know a task by its lease's id only: Task.ids and batches stay on the server.
Knows rules; knows nothing about pages or what an answer says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam, select

from karat.errors import LeaseError, StoreError
from karat.feedback import leases
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.documents import QUALIFICATION, Document, ProjectSettings, Shelf, read_settings, shelf
from karat.feedback.keys import keyed_hash, secret_key
from karat.feedback.leases import Lease
from karat.feedback.people import care
from karat.feedback.people.standing import DECISION, QUARANTINED, read_standing
from karat.feedback.prepared import Prepared
from karat.feedback.schema import task_of
from karat.feedback.store import Store
from karat.feedback.work import checks
from karat.feedback.work.rates import paid, rates
from karat.feedback.work.requeue import log_queue
from karat.feedback.work.requeue import pull as pull
from karat.feedback.work.requeue import reissue as reissue
from karat.feedback.work.turns import Turn, turn_of
from karat.records import Task

Reason = Literal[
    "work", "locked", "consent", "quarantined", "not qualified", "budget", "exposure", "nothing left"
]  # fmt: skip
"""Why there is work or none: the page says it in the rater's words."""

_RATER = Prepared(
    select(
        tables.annotators.c.id,
        people.accounts.c.id.label("account"),
        people.accounts.c.state,
        people.accounts.c.role,
        DECISION.scalar_subquery().label("decision"),
    )
    .outerjoin(people.accounts, people.accounts.c.annotator == tables.annotators.c.id)
    .where(tables.annotators.c.id == bindparam("who"))
    # one rater's requests pass one after another, so that two tabs do not take two tasks
    .with_for_update(of=tables.annotators, key_share=True)
)


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


@dataclass(frozen=True)
class _Rater:
    annotator: str
    audience: str
    settings: ProjectSettings
    qualification: Document | None
    barred: tuple[str, ...]


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
    # a power cut may take a lease with it, never an answer: the disk is not waited for
    return store.write(lambda connection: offer(connection, annotator, keys, shelf(connection), now=now), durable=False)


@dataclass(frozen=True)
class WorkKeys:
    """The store's own keys that decide about turns and orders; read before a transaction, because they may be new."""

    turns: bytes
    """Which turn brings a check."""
    order: bytes
    """In which order responses are shown."""
    arms: bytes
    """Which arm of an experiment somebody is drawn into."""

    @classmethod
    def of(cls, store: Store) -> WorkKeys:
        """Those of a store."""
        return cls(secret_key(store, "turns"), order_key(store), secret_key(store, "arms"))


def offer(connection: Connection, annotator: str, keys: WorkKeys, papers: Shelf, *, now: float) -> Offer:
    """`next_work` inside a writing transaction, whose documents are `papers`."""
    rater = _read_rater(connection, annotator, papers, now=now)
    if isinstance(rater, str):
        return Offer(None, rater)
    lease, reason = _offer(connection, rater, keys.turns, now=now)
    if lease is None:
        return Offer(None, reason)
    return Offer(lease, "work", shown_order_of(lease.task, annotator, keys.order))


def _read_rater(connection: Connection, annotator: str, papers: Shelf, *, now: float) -> _Rater | Reason:
    """What is known of a rater, whose row is locked, or why she gets nothing."""
    row = _RATER.first(connection, who=annotator)
    if row is None:
        raise StoreError(f"found the rater {annotator!r}, which is not in the store; add_annotators first")
    if row.account is not None and row.state != "active":
        return "locked"
    if row.account is not None and not care.read_consent(connection, row.account, papers).ok:
        return "consent"
    if row.decision == QUARANTINED:
        return "quarantined"
    settings = papers.settings(connection)
    audience = "expert" if row.role == "expert" else "annotator"
    test = papers.find(connection, QUALIFICATION) if audience == "annotator" else None
    if test is not None and read_standing(connection, annotator).state != "unqualified":
        test = None
    barred: tuple[str, ...] = ()
    if settings.exposure_cap_per_day is not None:
        warned = care.warned_questions(connection)
        if care.exposure(connection, annotator, warned, now=now) >= settings.exposure_cap_per_day:
            barred = tuple(warned)
    return _Rater(annotator, audience, settings, test, barred)


def _offer(connection: Connection, rater: _Rater, key: bytes, *, now: float) -> tuple[Lease | None, Reason]:
    who, lease_s = rater.annotator, rater.settings.lease_s
    held = leases.held_task(connection, who, now=now)
    if held is not None:
        return leases.renew(connection, held, who, now=now, lease_s=lease_s), "work"
    if over_budget(connection, rater.settings, now=now):
        return None, "budget"
    if rater.qualification is not None:
        lease, passed = _qualification_item(connection, rater, rater.qualification, key, now=now)
        if not passed:
            return lease, "work" if lease is not None else "not qualified"
    turn = Turn(None, frozenset())
    if rater.audience == "annotator":
        turn = turn_of(connection, who, rater.settings, key, barred=rater.barred)
    queue = {"audience": rater.audience, "met": turn.had}
    now_open = queue | {"barred": rater.barred}
    if turn.check is None:
        lease = leases.first_open(connection, who, now=now, lease_s=lease_s, **now_open)
    else:
        hidden = leases.peek_open(connection, who, now=now, **now_open)
        lease = leases.grant(connection, turn.check, who, now=now, lease_s=lease_s) if hidden is not None else None
    if lease is None and rater.barred and leases.peek_open(connection, who, now=now, **queue):
        return None, "exposure"
    return lease, "work" if lease is not None else "nothing left"


def _qualification_item(
    connection: Connection, rater: _Rater, test: Document, key: bytes, *, now: float
) -> tuple[Lease | None, bool]:
    """A lease on an item of the rater's attempt, and whether she has passed; a finished attempt is judged first."""
    who, attempts = rater.annotator, list(test.body["items"])
    standing = read_standing(connection, who)
    if standing.state == "working":  # since a moment ago
        return None, True
    for attempt in range(standing.attempts_failed + 1, len(attempts) + 1):
        passed = checks.judge_attempt(connection, who, test, attempt, now=now)
        if passed:
            return None, True
        if passed is None:
            ids = sorted(attempts[attempt - 1], key=lambda task_id: keyed_hash(key, who, task_id))
            states = leases.states_of(connection, ids)
            done = {task_id for (task_id, by), state in states.items() if by == who and state.state != "leased"}
            wanted = next(task_id for task_id in ids if task_id not in done)
            row = connection.execute(select(tables.tasks).where(tables.tasks.c.id == wanted)).one()
            return leases.grant(connection, row, who, now=now, lease_s=rater.settings.lease_s), False
    return None, False


def over_budget(connection: Connection, settings: ProjectSettings, *, now: float) -> bool:
    """True = the judgements of people, given or being given, have used up the budget of the settings."""
    if settings.budget.money is not None and settings.pay is not None and rates(settings):
        by_rater = paid(connection, settings, now=now)
        if settings.pay.per == "judgement":
            spent = sum(one.rate * (one.n + one.n_held) for one in by_rater)
            if spent + max(settings.pay.amount, *rates(settings).values()) > settings.budget.money + 1e-9:
                return True  # the next one might pass it
        elif sum(one.rate * one.active_s / 3600.0 for one in by_rater) >= settings.budget.money:
            return True
        settings = replace(settings, budget=replace(settings.budget, money=None))
    limits = []
    if settings.budget.judgements is not None:
        limits.append(settings.budget.judgements)
    if settings.budget.money is not None and settings.pay is not None and settings.pay.per == "judgement":
        limits.append(int(settings.budget.money / settings.pay.amount) if settings.pay.amount else 2**62)
    given = tables.judgements.c
    if limits:
        newest = connection.execute(select(sa.func.max(given.seq))).scalar() or 0
        n_raters = connection.execute(select(sa.func.count()).select_from(tables.annotators)).scalar_one()
        if newest + n_raters >= min(limits):  # only now is it worth counting them
            by_people = select(sa.func.count()).select_from(tables.judgements).where(given.origin == "person")
            live = (
                select(sa.func.count())
                .select_from(tables.assignments)
                .where(tables.assignments.c.state == "leased", tables.assignments.c.expires_at > now)
            )
            if connection.execute(by_people).scalar_one() + connection.execute(live).scalar_one() >= min(limits):
                return True
    if settings.budget.money is not None and settings.pay is not None and settings.pay.per == "hour":
        seconds = (
            connection.execute(select(sa.func.sum(given.active_s)).where(given.origin == "person")).scalar() or 0.0
        )
        return seconds / 3600.0 * settings.pay.amount >= settings.budget.money
    return False


# A lease that a page or client names


def lease_of(store: Store, lease_id: str, annotator: str, *, now: float) -> HeldLease:
    """What a lease is about. Raises: LeaseError where this rater never had it, or has a newer one on the same task."""
    mine = tables.assignments.c
    question = (
        select(tables.tasks, mine.state.label("held"), mine.expires_at, mine.leased_at)
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
    lease = Lease(lease_id, task, annotator, row.expires_at if row.expires_at is not None else now)
    return HeldLease(lease, state, order_for(store, task, annotator), row.leased_at)


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


# The order in which responses are shown


def order_for(store: Store, task: Task, annotator: str) -> tuple[int, ...]:
    """`shown_order_of` under the store's own key."""
    return shown_order_of(task, annotator, order_key(store))


def order_key(store: Store) -> bytes:
    """The store's own key of `shown_order_of`."""
    return secret_key(store, "order")


def shown_order_of(task: Task, annotator: str, key: bytes) -> tuple[int, ...]:
    """Identity indices in the order in which this rater sees the responses: every order has the same chance.

    It depends on what is asked and who is asked, not on the batch, so that a hidden repeat can show the opposite
    order of its original and a page that is loaded again shows the same.

    Args:
        key: secret, or raters could foretell it.
    """
    asked = (task.prompt_id, *task.response_ids, task.question)
    indices = range(len(task.response_ids))
    order = tuple(sorted(indices, key=lambda i: keyed_hash(key, annotator, i, *asked)))
    return order[::-1] if task.batch.startswith(f"{checks.REPEAT}:") else order
