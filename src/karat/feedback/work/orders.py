"""In which order a rater sees the responses of her task: drawn when it is handed out, and kept with her assignment.

Over the raters of a task every response stands in every place equally often, as nearly as their number allows; who gets
which order follows from a secret key of the store, so that nobody can foretell hers. Knows orders and the rows that hold
them; knows nothing about leases, pages or what an answer says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, select

from karat.feedback.keys import keyed_hash
from karat.feedback.openings import CHECK, Order
from karat.feedback.prepared import Prepared
from karat.feedback.schema import judgements, task_of
from karat.feedback.work.check_answers import REPEAT
from karat.records import Task

_SHOWN_BEFORE = Prepared(select(judgements.c.shown_order).where(judgements.c.id == bindparam("judgement")))


def draw_order(key: bytes, connection: Connection, row: Any, annotator: str, others: Sequence[Order]) -> Order:
    """The order in which a rater who is handed a task sees its responses.

    Work is counterbalanced over its raters (`balanced_order`). A silent check, which has room for everybody, is drawn
    for each rater alone; a hidden repeat shows the opposite of what its original showed.

    Args:
        key: secret, or raters could foretell it.    row: of the task; that of work is locked.
        others: the orders of those who have answered it or hold it.
    """
    ids = json.loads(row.response_ids)
    if row.state != CHECK:
        return balanced_order(_permutation(len(ids), key, row.id), others)
    purpose, _, judgement = row.batch.partition(":")
    if purpose == REPEAT:
        shown = _SHOWN_BEFORE.scalar(connection, judgement=judgement)
        if shown is not None and len(order := json.loads(shown)) == len(ids):
            return tuple(order[::-1])
    return order_alone(task_of(row), annotator, key)


def balanced_order(base: Order, others: Sequence[Order]) -> Order:
    """The rotation of an order that puts responses where they stood least often, the first of several.

        argmin_c Σ_p #{o ∈ others: o[p] = base[(p + c) mod n]},  c = 0 … n − 1

    Where the others are rotations of the same order too, as many answers as there are responses put each in each place
    once, and after any number the counts differ by at most one. A base with equal chances gives every order the same
    chance, whichever rotation is taken.

    Args:
        base: drawn for the task, a permutation of 0 … n − 1.
    """
    if not others:
        return base
    rotations = [base[c:] + base[:c] for c in range(max(1, len(base)))]
    return min(rotations, key=lambda one: sum(a == b for other in others for a, b in zip(one, other, strict=False)))


def order_alone(task: Task, annotator: str, key: bytes) -> Order:
    """An order drawn for one rater, whatever the others see: every order has the same chance.

    For silent checks, and for what was handed out by a store that did not keep orders. It depends on what is asked, not
    on the batch, so that there, too, a hidden repeat shows the opposite of its original.
    """
    ids = task.response_ids
    order = _permutation(len(ids), key, annotator, task.prompt_id, *ids, task.question)
    return order[::-1] if task.batch.startswith(f"{REPEAT}:") else order


def read_order(shown: str | None, task: Task, annotator: str, key: bytes) -> Order:
    """The order of an assignment: the one kept with it, or `order_alone` where none was.

    Args:
        shown: its column.
    """
    return order_alone(task, annotator, key) if shown is None else tuple(json.loads(shown))


def order_propensity(n_responses: int) -> float:
    """The chance that a rater had of the order that she saw, before anybody was asked: 1/n!."""
    return 1.0 / math.factorial(n_responses)


def _permutation(n: int, key: bytes, subject: str, *rest: str) -> Order:
    """An order of 0 … n − 1, every one with the same chance."""
    return tuple(sorted(range(n), key=lambda i: keyed_hash(key, subject, i, *rest)))
