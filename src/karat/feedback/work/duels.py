"""Questions that raters put to two policies, and the answers that a thread beside the server writes to them.

A question waits in the store until both answers are there, so it outlives a worker, a restart and a slow policy. It is
a task that nobody is offered; its two answers become the comparison that only she gets. Knows tasks and samplers; knows
nothing about pages or models, and no rater learns from it who wrote what.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, select

from karat.errors import InputError
from karat.feedback import additions
from karat.feedback.documents import GUIDELINE, document, project_settings
from karat.feedback.openings import CLOSED, LAPSED, LATER, PULLED, set_state
from karat.feedback.people_tables import queue_log
from karat.feedback.schema import prompt_of, prompts, tasks
from karat.feedback.store import Store
from karat.feedback.work.arena import add_duel, arena, arenas
from karat.feedback.work.requeue import log_queue
from karat.records import Prompt, Sampler, Task

LOG = logging.getLogger("karat.arena")
ASKED = "asked in the arena"
"""Task.batch of the questions that wait, or waited, for two answers."""
LIVE_NAME = "live"
"""Name of the arena of the first two policies that were served; another pair is `live-2`."""
AT_ONCE = 8
"""Questions that are answered together."""
SAME, FAILED = "both gave the same answer", "a policy did not answer"
"""Why a question came to nothing."""


@dataclass(frozen=True)
class Asked:
    """The newest question of a rater."""

    text: str
    """What she wrote."""
    waiting: bool
    """True = the answers are still being written."""
    nothing: str
    """SAME or FAILED where it came to nothing, else ""."""
    at: float
    """When it came to nothing, seconds since the epoch; 0 where it did not."""


def ask_duel(store: Store, prompt: Prompt, annotator: str) -> None:
    """Let a rater's question wait for the answers of two policies.

    Raises: InputError where another question of hers waits already.
    """
    task = Task(prompt.id, (), kind="demonstration", batch=ASKED, reserved_for=annotator)

    def write(connection: Connection) -> None:
        if _waiting(connection, annotator):
            raise InputError("arena: your last question is still being answered; wait for its two answers")
        read = (tasks.c.reserved_for == annotator) & (tasks.c.batch == ASKED) & (tasks.c.state == PULLED)
        connection.execute(tasks.update().where(read).values(state=CLOSED))
        additions.add_prompts(connection, [prompt])
        additions.add_tasks(connection, [task])
        set_state(connection, task.id, LATER, LAPSED)

    store.write(write)


def asked_by(store: Store, annotator: str) -> Asked | None:
    """The newest question that waits, or else came to nothing; None where there is none."""
    mine = (tasks.c.batch == ASKED) & (tasks.c.reserved_for == annotator)
    question = select(tasks.c.id, tasks.c.prompt_id, tasks.c.state).where(mine)
    with store.connection() as connection:
        waiting = connection.execute(question.where(tasks.c.state == LATER)).first()
        if waiting is not None:
            return Asked(_text(connection, waiting.prompt_id), True, "", 0.0)
        entry = connection.execute(
            select(queue_log.c.reason, queue_log.c.at, tasks.c.prompt_id)
            .join(tasks, tasks.c.id == queue_log.c.task_id)
            .where(mine, tasks.c.state == PULLED)
            .order_by(queue_log.c.seq.desc())
            .limit(1)
        ).first()
        return None if entry is None else Asked(_text(connection, entry.prompt_id), False, entry.reason, entry.at)


def answer_duels(store: Store, samplers: Mapping[str, Sampler], *, now: float, name: str = "") -> int:
    """Let two policies answer what waits, and put each pair of answers into the hands of whoever asked.

    What a policy cannot answer, and what both answer alike, is written down; whoever asked reads it.

    Args:
        samplers: two policies by name.    now: seconds since the epoch.    name: of their arena; "" = `live_arena`.
    Returns: how many questions were dealt with.
    """
    names = tuple(samplers)
    if len(names) != 2:
        raise InputError(f"arena: found {len(names)} policies; expected 2")
    with store.connection() as connection:
        waiting = select(tasks.c.id.label("task_id"), tasks.c.reserved_for, prompts)
        waiting = waiting.join(prompts, prompts.c.id == tasks.c.prompt_id)
        waiting = waiting.where(tasks.c.batch == ASKED, tasks.c.state == LATER).order_by(tasks.c.seq).limit(AT_ONCE)
        rows = connection.execute(waiting).all()
    if not rows:
        return 0
    asked = [prompt_of(row) for row in rows]
    name = name or live_arena(store, names)
    for row, prompt, pair in zip(rows, asked, _answers(list(samplers.values()), asked), strict=True):
        nothing = FAILED
        if pair is not None:
            nothing = _hand_over(store, name, names, (prompt, *pair), row.reserved_for, now=now)
        _finish(store, row.task_id, nothing, by=row.reserved_for, now=now)
    return len(rows)


def live_arena(store: Store, policies: tuple[str, str], checkpoints: Mapping[str, str] | None = None) -> str:
    """The name of the live arena of these two policies: another pair, or other weights, are another arena.

    Args:
        checkpoints: content hash of each policy's weights; None = not known.
    """
    numbered = [name for name in arenas(store) if name == LIVE_NAME or name.startswith(f"{LIVE_NAME}-")]
    for name in numbered:
        found = arena(store, name)
        if found.policies == policies and found.checkpoints == dict(checkpoints or {}):
            return name
    return LIVE_NAME if not numbered else f"{LIVE_NAME}-{len(numbered) + 1}"


def _hand_over(
    store: Store, name: str, policies: tuple[str, str], pair: tuple[Prompt, str, str], annotator: str, *, now: float
) -> str:
    newest = document(store, GUIDELINE)
    guideline = newest.version if newest else "v1"
    task = add_duel(store, name, policies, pair, annotator=annotator, guideline=guideline, now=now)
    if task is None:
        return SAME
    lease = store.lease_many([(task.id, annotator)], now, project_settings(store).lease_s)[0]
    return "" if lease is not None else SAME  # these very texts were compared by her before


def _finish(store: Store, task_id: str, nothing: str, *, by: str, now: float) -> None:
    def write(connection: Connection) -> None:
        set_state(connection, task_id, PULLED if nothing else CLOSED, LAPSED)
        if nothing:
            log_queue(connection, [task_id], "pulled", by=by, reason=nothing, now=now)

    store.write(write)


def _answers(samplers: Sequence[Sampler], asked: Sequence[Prompt]) -> list[tuple[str, str] | None]:
    """The two answers to each question, None where a policy failed; one that fails does not take others with it."""
    try:
        first, second = (each(asked, n_samples=1, seed=secrets.randbelow(2**31)) for each in samplers)
        return [(a[0], b[0]) for a, b in zip(first, second, strict=True)]
    except Exception:
        if len(asked) == 1:
            LOG.exception("a policy did not answer in the arena")
            return [None]
        return [pair for prompt in asked for pair in _answers(samplers, [prompt])]


def _waiting(connection: Connection, annotator: str) -> bool:
    mine = (tasks.c.batch == ASKED) & (tasks.c.reserved_for == annotator) & (tasks.c.state == LATER)
    return connection.execute(select(func.count()).select_from(tasks).where(mine)).scalar_one() > 0


def _text(connection: Connection, prompt_id: str) -> str:
    return prompt_of(connection.execute(select(prompts).where(prompts.c.id == prompt_id)).one()).text
