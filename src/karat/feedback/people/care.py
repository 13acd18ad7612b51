"""Care for raters: consent, what they say about themselves, how much disturbing matter they see, and which arm they
are in.

Without consent, where a consent text exists, nobody works; taken back, it stops work at once. Demographics are apart
from everything else and can be deleted by their owner. Knows days in UTC; knows nothing about pages.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam, select

from karat.errors import InputError, StoreError
from karat.feedback import leases
from karat.feedback import people_tables as people
from karat.feedback import schema as tables
from karat.feedback.arm_changes import TASK, ArmChange, change_of, merged
from karat.feedback.documents import CONSENT, ProjectSettings, Shelf, read_document, read_settings, shelf
from karat.feedback.keys import keyed_fraction, secret_key
from karat.feedback.prepared import Prepared
from karat.feedback.schema import json_text
from karat.feedback.store import Store
from karat.feedback.upserts import insert_new, put
from karat.records import Task

MOST_FIELDS, MOST_CHARS = 40, 300
"""Of demographics: fields, and characters of a field."""

DAY_S = 86400.0
_GIVEN = Prepared(
    select(people.consents.c.given_at, people.consents.c.withdrawn_at).where(
        people.consents.c.account == bindparam("account"), people.consents.c.version == bindparam("version")
    )
)
_ARM = Prepared(
    select(people.arms.c.arm).where(
        people.arms.c.annotator == bindparam("who"), people.arms.c.experiment == bindparam("experiment")
    )
)


@dataclass(frozen=True)
class ConsentState:
    """Whether an account has agreed to the newest consent text."""

    version: str | None
    """The newest version; None = the project has no consent text, and none is needed."""
    given_at: float | None
    """When this account agreed to it."""
    withdrawn_at: float | None
    """When it was taken back."""

    @property
    def ok(self) -> bool:
        """True = she may work."""
        return self.version is None or (self.given_at is not None and self.withdrawn_at is None)


@dataclass(frozen=True)
class Demographics:
    """What a rater chose to say about herself."""

    annotator: str
    """Annotator.id."""
    fields: Mapping[str, Any]
    """{field: text or list of texts}; fields left out were not answered."""
    consent: str
    """Version of the consent text under which it was given."""
    saved_at: float
    """Seconds since the epoch."""


# Consent


def give_consent(store: Store, account_id: str, version: str, *, now: float) -> None:
    """Record that somebody agreed to a version of the consent text; again after a withdrawal, too.

    Raises: StoreError where there is no such version.
    """

    def write(connection: Connection) -> None:
        if read_document(connection, CONSENT, version) is None:
            raise StoreError(f"consent: found no text of version {version!r}; show the newest one and ask again")
        row = {"account": account_id, "version": version, "given_at": now, "withdrawn_at": None}
        put(connection, people.consents, row)

    store.write(write)


def withdraw_consent(store: Store, account_id: str, *, now: float) -> None:
    """Take every consent of an account back: work stops, her lease goes back to the queue. What was judged stays
    until it is erased on request."""

    def write(connection: Connection) -> None:
        live = (people.consents.c.account == account_id) & people.consents.c.withdrawn_at.is_(None)
        connection.execute(people.consents.update().where(live).values(withdrawn_at=now))
        annotator = connection.execute(
            select(people.accounts.c.annotator).where(people.accounts.c.id == account_id)
        ).scalar()
        if annotator is not None:
            leases.end_leases(connection, annotator, now=now)

    store.write(write)


def consent_of(store: Store, account_id: str) -> ConsentState:
    """Whether an account has agreed to the newest consent text."""
    with store.connection() as connection:
        return read_consent(connection, account_id)


def read_consent(connection: Connection, account_id: str, papers: Shelf | None = None) -> ConsentState:
    """`consent_of` inside a transaction; papers: its documents, where they are at hand."""
    newest = (papers or shelf(connection)).find(connection, CONSENT)
    if newest is None:
        return ConsentState(None, None, None)
    row = _GIVEN.first(connection, account=account_id, version=newest.version)
    if row is None:
        return ConsentState(newest.version, None, None)
    return ConsentState(newest.version, row.given_at, row.withdrawn_at)


def read_consents(connection: Connection, account_ids: Sequence[str]) -> dict[str, ConsentState]:
    """`consent_of` for many accounts, by one query."""
    newest = shelf(connection).find(connection, CONSENT)
    if newest is None:
        return dict.fromkeys(account_ids, ConsentState(None, None, None))
    columns = people.consents.c
    question = select(columns.account, columns.given_at, columns.withdrawn_at).where(columns.version == newest.version)
    given = {row.account: (row.given_at, row.withdrawn_at) for row in connection.execute(question)}
    return {one: ConsentState(newest.version, *given.get(one, (None, None))) for one in account_ids}


# Demographics


def save_demographics(store: Store, annotator: str, fields: Mapping[str, Any], *, consent: str, now: float) -> None:
    """Keep what a rater chose to say about herself, in place of what she said before.

    Args:
        fields: {field: text or list of texts}; empty ones are left out.    consent: version she agreed to, never "".
    Raises: InputError for something else than short texts, or without a consent.
    """
    if not consent:
        raise InputError("demographics: found no consent; they are kept only with it")
    kept = {}
    for name, value in fields.items():
        texts = [value] if isinstance(value, str) else value
        short = isinstance(texts, list | tuple) and all(
            isinstance(text, str) and len(text) <= MOST_CHARS for text in texts
        )
        if not isinstance(name, str) or not 0 < len(name) <= 64 or not short or len(texts) > MOST_FIELDS:
            raise InputError(
                f"demographics: found {name!r} with something else than texts of at most {MOST_CHARS} characters"
            )
        if any(text.strip() for text in texts):
            kept[name] = value
    if len(kept) > MOST_FIELDS:
        raise InputError(f"demographics: found {len(kept)} fields; expected at most {MOST_FIELDS}")
    row = {"annotator": annotator, "body": json_text(kept), "consent": consent, "saved_at": now}
    store.write(lambda connection: put(connection, people.demographics, row))


def demographics(store: Store, annotator: str) -> Demographics | None:
    """What a rater said about herself; None where she said nothing."""
    return all_demographics(store, [annotator]).get(annotator)


def all_demographics(store: Store, annotators: Sequence[str] | None = None) -> dict[str, Demographics]:
    """What raters said about themselves, by Annotator.id; for estimators only, which suppress small groups."""
    question = select(people.demographics).order_by(people.demographics.c.annotator)
    if annotators is not None:
        question = question.where(people.demographics.c.annotator.in_(list(annotators)))
    with store.connection() as connection:
        rows = connection.execute(question)
        return {
            row.annotator: Demographics(row.annotator, json.loads(row.body), row.consent, row.saved_at) for row in rows
        }


def consented_demographics(store: Store) -> dict[str, Demographics]:
    """`all_demographics` whose consent stands: what was said under a consent that was taken back is kept for its owner
    and counts nowhere."""
    columns = people.consents.c
    question = select(people.accounts.c.annotator, columns.version, columns.withdrawn_at)
    question = question.join(people.accounts, people.accounts.c.id == columns.account)
    given: dict[str, dict[str, bool]] = {}
    with store.connection() as connection:
        for annotator, version, withdrawn_at in connection.execute(question):
            given.setdefault(annotator, {})[version] = withdrawn_at is None
    return {who: one for who, one in all_demographics(store).items() if _stands(given.get(who, {}), one.consent)}


def _stands(given: Mapping[str, bool], version: str) -> bool:
    """Whether a consent stands; where no text of that version was agreed to, unless all others were taken back."""
    return given.get(version, not given or any(given.values()))


def delete_demographics(store: Store, annotator: str) -> bool:
    """Delete what a rater said about herself. Returns: whether there was something."""
    change = people.demographics.delete().where(people.demographics.c.annotator == annotator)
    return store.write(lambda connection: connection.execute(change).rowcount == 1)


# Exposure


def exposure_today(store: Store, annotator: str, *, now: float) -> int:
    """Items with a content warning that a rater has judged or skipped on this day (UTC)."""
    with store.connection() as connection:
        return exposure(connection, annotator, warned_questions(connection), now=now)


def warned_questions(connection: Connection) -> list[str]:
    """Question.ids that carry a content warning."""
    rows = connection.execute(select(people.questions.c.id, people.questions.c.body))
    return [row.id for row in rows if _warns(row.body)]


def exposure(connection: Connection, annotator: str, warned: Sequence[str], *, now: float) -> int:
    """`exposure_today`, given the questions that carry a warning."""
    if not warned:
        return 0
    start = now - now % DAY_S
    day = datetime.datetime.fromtimestamp(start, tz=datetime.UTC).strftime("%Y-%m-%d")
    given, logged = tables.judgements.c, people.queue_log.c
    judged = select(given.task_id).where(given.annotator == annotator, given.created_at >= day)
    skipped = select(logged.task_id).where(logged.by == annotator, logged.action == "skipped", logged.at >= start)
    seen = sa.union(judged, skipped).subquery()
    question = select(sa.func.count()).select_from(tables.tasks.join(seen, seen.c.task_id == tables.tasks.c.id))
    return connection.execute(question.where(tables.tasks.c.question.in_(list(warned)))).scalar_one()


@functools.lru_cache(maxsize=1024)
def _warns(body: str) -> bool:
    return bool(json.loads(body).get("content_warning"))


# Arms


def arm_of(store: Store, annotator: str, experiment: str, *, now: float) -> str | None:
    """The arm of a rater in an experiment, drawn by the weights in the settings when it is first asked for.

    Once drawn it stays, whatever becomes of the weights. Returns: None where the settings name no such experiment
    and she was never in it.
    """
    with store.connection() as connection:
        arm = _ARM.scalar(connection, who=annotator, experiment=experiment)
        weights = read_settings(connection).experiments.get(experiment)
    if arm is not None or weights is None:
        return arm
    drawn = draw_arm(weights, keyed_fraction(secret_key(store, "arms"), experiment, annotator))
    row = {"annotator": annotator, "experiment": experiment, "arm": drawn, "assigned_at": now}

    def write(connection: Connection) -> str:
        insert_new(connection, people.arms, row)
        return str(_ARM.scalar(connection, who=annotator, experiment=experiment))

    return store.write(write)


def arms_of(store: Store, annotator: str, *, now: float, task: Task | None = None) -> dict[str, str]:
    """The arms in every experiment of the settings, as `Judgement.shown` records them.

    Args:
        task: what is asked; None = only experiments that draw raters.
    """
    with store.connection() as connection:
        settings = read_settings(connection)
    return arms_under(store, settings, annotator, now=now, task=task)


def arms_under(
    store: Store, settings: ProjectSettings, annotator: str, *, now: float, task: Task | None = None
) -> dict[str, str]:
    """`arms_of`, given the settings."""
    if not settings.experiments:
        return {}
    with store.connection() as connection:
        known = read_arms(connection, annotator, settings)
    arms, new = complete_arms(known, settings, secret_key(store, "arms"), annotator, task)
    if new:
        kept = {name: arms[name] for name in new}
        store.write(lambda connection: keep_arms(connection, annotator, kept, now=now))
    return arms


def read_arms(connection: Connection, annotator: str, settings: ProjectSettings) -> dict[str, str | None]:
    """The arms of a rater in the experiments that draw raters, inside a transaction; None = not drawn yet."""
    names = sorted(name for name in settings.experiments if settings.arm_units.get(name) != TASK)
    return {name: _ARM.scalar(connection, who=annotator, experiment=name) for name in names}


def complete_arms(
    known: Mapping[str, str | None], settings: ProjectSettings, key: bytes, annotator: str, task: Task | None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Every arm of the settings' experiments: those that are known, and those that are drawn now.

    A draw follows from the rater alone. A task's arm follows from what it asks, whoever answers and however often: a
    hidden repeat is in the arm of its original.

    Args:
        known: `read_arms`.    key: the store's own, of "arms".    task: what is asked; None = raters' arms only.
    Returns: the arms, and the experiments whose draw is not kept yet.
    """
    arms, new = {}, []
    for name, weights in sorted(settings.experiments.items()):
        if name in known:
            arm = known[name]
            if arm is None:
                arm = draw_arm(weights, keyed_fraction(key, name, annotator))
                new.append(name)
            arms[name] = arm
        elif task is not None:
            asked = (task.prompt_id, *sorted(task.response_ids), task.kind)
            arms[name] = draw_arm(weights, keyed_fraction(key, name, *asked))
    return arms, tuple(new)


def keep_arms(connection: Connection, annotator: str, arms: Mapping[str, str], *, now: float) -> None:
    """Keep arms that were just drawn, in a writing transaction: once drawn they stay, whatever becomes of the weights."""
    for name, arm in arms.items():
        row = {"annotator": annotator, "experiment": name, "arm": arm, "assigned_at": now}
        insert_new(connection, people.arms, row)


def change_under(settings: ProjectSettings, arms: Mapping[str, str]) -> ArmChange:
    """What these arms change."""
    bodies = (settings.arm_changes.get(name, {}).get(arm) for name, arm in arms.items())
    return merged(change_of(body) for body in bodies if body)


def settings_for(store: Store, annotator: str, *, now: float) -> ProjectSettings:
    """The settings as they are for one rater: the pay is that of her arm."""
    with store.connection() as connection:
        settings = read_settings(connection)
    if settings.pay is None or not settings.experiments:
        return settings
    change = change_under(settings, arms_under(store, settings, annotator, now=now))
    return settings if change.pay is None else replace(settings, pay=replace(settings.pay, amount=change.pay))


def draw_arm(weights: Mapping[str, float], fraction: float) -> str:
    """The arm at a fraction of the total weight, arms in alphabetical order.

    Args:
        weights: > 0 by arm.    fraction: in [0, 1), uniform for a fair draw.
    """
    names = sorted(weights)
    left = fraction * sum(weights.values())
    for name in names:
        left -= weights[name]
        if left < 0:
            return name
    return names[-1]
