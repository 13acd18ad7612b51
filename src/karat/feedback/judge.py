"""A language model that judges: it reads open comparisons as people do and votes under its own name, as origin "ai".

Knows tasks, questions and a sampler; knows nothing about where the model runs. Its side bias, competence and lapses are
left to the likelihood, which has them for every rater: the order of the two responses is drawn and recorded.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from karat.answers import missing
from karat.errors import ConfigError
from karat.feedback.documents import questions
from karat.feedback.leases import end_leases, locked_rows
from karat.feedback.openings import states_of
from karat.feedback.simulated import Work, open_work
from karat.feedback.store import Store
from karat.feedback.submission import submit
from karat.feedback.tasks import answer
from karat.feedback.work.checks import check_tasks
from karat.questions import Question, plain_question
from karat.records import Annotator, Judgement, Prompt, Sampler, Turn

CHUNK = 32
"""Tasks leased, asked about and answered together: what a kill can leave open."""
LEASE_S = 3600.0
"""A slow server may take minutes for a chunk."""
UNREADABLE = "the judge's answer names no verdict"
SYSTEM = (
    "You compare two responses to the same conversation. Judge what they say, not their order or length. "
    "Answer with the verdict alone."
)


@dataclass(frozen=True)
class Judged:
    """What a judge came to."""

    n_votes: int
    """Comparisons with a verdict, of this call."""
    n_missing: int
    """Answers in which no verdict was found; stored as missing."""
    n_elsewhere: int = 0
    """Questions on which another process of the same name was first: its votes stand, these answers are not stored."""


def collect_from_judge(
    store: Store,
    who: Annotator,
    judge: Sampler,
    *,
    seed: int,
    batch: str | None = None,
    principle: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Judged:
    """Let a model answer the open comparisons of a store, one vote a task; a repeated call goes on where it was.

    Args:
        who: under whom its votes are stored; its origin is "ai".    judge: writes one text to a conversation.
        seed: decides the order in which the two responses are shown.    batch: only tasks of this batch.
        principle: what to judge by where the question says nothing; "" = which is better all in all.
        progress: called with (answers so far, answers planned).
    Raises: ConfigError for an annotator of another origin, a name that is a person's or blank, or a batch without
        questions; InputError of the sampler: what it held goes back into the queue first.
    """
    if who.origin != "ai":
        raise ConfigError(f"judge {who.id}: found the origin {who.origin}; expected ai")
    _check_name(store, who)
    n_planned, todo = _open_comparisons(store, who, seed=seed, batch=batch)
    asked, prompts, responses = questions(store), store.prompts(), store.responses()

    def ask(held: Sequence[Work]) -> list[Judgement]:
        put = [asked.get(task.question) or plain_question("comparison") for _, task, _ in held]
        orders = [shown_order(seed, task_id, who.id) for task_id, _, _ in held]
        conversations = [
            conversation(prompts[task.prompt_id], [responses[task.response_ids[i]].text for i in order], one, principle)
            for (_, task, _), one, order in zip(held, put, orders, strict=True)
        ]
        said = [group[0] for group in judge(conversations, n_samples=1, seed=seed)]
        return [
            _vote(work, text, one.n_levels, order)
            for work, text, one, order in zip(held, said, put, orders, strict=True)
        ]

    n_votes = n_missing = n_elsewhere = 0
    n_before = n_planned - len(todo)
    for begin in range(0, len(todo), CHUNK):
        some = todo[begin : begin + CHUNK]
        votes, n_late = _hold_and_ask(store, who, some, ask)
        n_elsewhere += n_late
        n_lacking = sum("missing" in vote.value for vote in votes)
        n_votes, n_missing = n_votes + len(votes) - n_lacking, n_missing + n_lacking
        if progress is not None:
            progress(n_before + begin + len(some), n_planned)
    return Judged(n_votes, n_missing, n_elsewhere)


def _check_name(store: Store, who: Annotator) -> None:
    known = store.annotators().get(who.id)
    if not who.id.strip():
        raise ConfigError(f"judge: found the name {who.id!r}; expected one that can be seen, as in ai:MODEL")
    if known is not None and known.origin != "ai":
        raise ConfigError(
            f"judge {who.id}: found a rater of origin {known.origin} by that name; expected a name of its own (--name)"
        )


def _open_comparisons(store: Store, who: Annotator, *, seed: int, batch: str | None) -> tuple[int, list[Work]]:
    """`open_work` for everybody: no silent checks, nothing that waits for one rater or for experts."""
    silent = check_tasks(store)
    if batch is not None and not store.tasks(batch=batch):
        there = sorted({task.batch for task in store.tasks() if task.id not in silent})
        raise ConfigError(f"judge: found no question of batch {batch!r}; found {', '.join(there[:8]) or 'none at all'}")
    n_planned, todo = open_work(store, [who], ("comparison",), seed=seed, batch=batch, overlap=1)
    mine = [
        (task_id, task, one)
        for task_id, task, one in todo
        if task_id not in silent and task.audience == "annotator" and task.reserved_for in (None, who.id)
    ]
    return n_planned - len(todo) + len(mine), mine


def _hold_and_ask(
    store: Store, who: Annotator, some: Sequence[Work], ask: Callable[[Sequence[Work]], list[Judgement]]
) -> tuple[list[Judgement], int]:
    """Lease tasks, ask about them and store the votes.

    Returns: the votes that were stored, and how many were not: the same judge, started twice, was first.
    """
    leases = store.lease_many([(task_id, who.id) for task_id, _, _ in some], now=_now().timestamp(), lease_s=LEASE_S)
    held = [one for one, lease in zip(some, leases, strict=True) if lease is not None]
    if not held:
        return [], 0
    try:
        votes = ask(held)
        stored = store.write(lambda connection: _submit_open(connection, votes, now=_now().timestamp()))
    except BaseException:  # an interruption, too: people must not wait an hour for what nobody has in hand
        mine = [task_id for task_id, _, _ in held]
        store.write(lambda connection: end_leases(connection, who.id, now=_now().timestamp(), among=mine))
        raise
    return stored, len(votes) - len(stored)


def _submit_open(connection: Connection, votes: Sequence[Judgement], *, now: float) -> list[Judgement]:
    """Store votes on what is still in hand. Looking and storing are one step: nobody answers between them."""
    task_ids = sorted({vote.task_id for vote in votes})
    locked_rows(connection, task_ids)
    states = states_of(connection, task_ids)
    mine = [vote for vote in votes if states[vote.task_id, vote.annotator].state == "leased"]
    submit(connection, mine, now=now)
    return mine


def conversation(prompt: Prompt, texts: Sequence[str], question: Question, principle: str = "") -> Prompt:
    """What the judge reads: the conversation, both responses in the order shown, what to judge by, and how to answer."""
    by = question.principle or principle or "which response is better, all in all"
    said = "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in prompt.turns)
    parts = [
        f"Conversation:\n\n{said}",
        *(f"Response {name}:\n\n{text}" for name, text in zip("AB", texts, strict=True)),
        f"Judge by: {question.instruction + ' ' if question.instruction else ''}{by}.",
        _how(question.n_levels),
    ]
    return Prompt((Turn("system", SYSTEM), Turn("user", "\n\n".join(parts))))


def verdict(text: str, n_levels: int) -> int | None:
    """The level for "the one shown first": 0 = the second much better … n_levels − 1 = the first; None = none was found.

    >>> verdict("**B** is better", 2), verdict("Tie.", 3), verdict("6", 7), verdict("Both are fine", 2)
    (0, 1, 1, None)
    """
    if n_levels > LETTERS:
        number = re.search(r"(?<![\w.])\d+(?![\w]|\.\d)", text)
        return n_levels - int(number[0]) if number and 1 <= int(number[0]) <= n_levels else None
    named = NAMED.match(text)
    if named is None or (named[1].lower() == "tie" and n_levels == 2):
        return None
    return {"a": n_levels - 1, "b": 0, "tie": 1}[named[1].lower()]


NAMED = re.compile(
    r"\W*(?:(?:the |my )?(?:answer|verdict|better response)\W+(?:is\W+)?)?(?:response\s+)?"
    r"(A|B|tie)(?=\W*$|\s*[.,:;!?*)\n]|\s+(?:is|wins|because)\b)",
    re.IGNORECASE,
)
"""A verdict at the beginning of an answer; "A better one would be B" is none."""
LETTERS = 3
"""Scales of up to so many levels are answered by letter, longer ones by number."""


def shown_order(seed: int, task_id: str, who: str) -> tuple[int, int]:
    """Identity indices in the order shown, drawn by (seed, task, judge)."""
    first = hashlib.sha256(f"judge:{seed}:{task_id}:{who}".encode()).digest()[0] & 1
    return (first, 1 - first)


def _how(n_levels: int) -> str:
    if n_levels <= LETTERS:
        return "Answer with one word: A if response A is better, B if response B is" + (
            ", tie if neither is." if n_levels == LETTERS else "."
        )
    middle = f", {(n_levels + 1) // 2} = neither is better" if n_levels % 2 else ""
    return f"Answer with one number: 1 = response A is much better{middle}, {n_levels} = response B is much better."


def _vote(work: Work, text: str, n_levels: int, order: tuple[int, int]) -> Judgement:
    task_id, task, who = work
    level = verdict(text, n_levels)
    value: Mapping[str, object] = missing(UNREADABLE)
    if level is not None:
        # levels are stored for a, whichever was shown first
        value = {"level": level if order[0] == 0 else n_levels - 1 - level, "n_levels": n_levels}
    return answer(
        task, value, annotator=who.id, shown_order=order, origin="ai", submission=f"ai:{task_id}:{who.id}",
        created_at=_now().strftime("%Y-%m-%dT%H:%M:%SZ"), reason=" ".join(text.split())[:200] or None,
    )  # fmt: skip


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
