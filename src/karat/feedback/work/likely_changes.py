"""Which of the old answers a change of the guideline will probably change, the likeliest first, within a budget of answers.

How sure the consensus of each item is comes from `consensus_view`'s models, how often a re-asked item changed from those
that were asked again already; the arithmetic is `quality.planning`'s. Knows tasks and judgements; knows nothing about pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from karat.feedback.documents import GUIDELINE, documents
from karat.feedback.quality.planning import ask_again
from karat.feedback.snapshot import current_judgements, work_records
from karat.feedback.store import Store
from karat.feedback.work.consensus_view import certainties
from karat.feedback.work.matching import gist
from karat.feedback.work.old_guideline import OldItem
from karat.records import Estimate, Judgement

PRIOR_ANSWERS, PRIOR_RIGHT = 2.0, 0.7
"""Where no model can be fitted: answers that the prior of the consensus models is worth, and its share of right ones."""


@dataclass(frozen=True)
class ChangePlan:
    """What to ask again, and what to expect of it."""

    items: tuple[OldItem, ...]
    """Those most likely to change first, as many as the budget takes."""
    expected: Estimate
    """How many of them will come out otherwise."""
    n_asked: int
    """Items that were answered under an older and under the newest guideline already."""
    n_changed: int
    """Of these, those whose leading answer is another one now."""


def change_plan(store: Store, items: Sequence[OldItem], *, budget: int | None = None) -> ChangePlan:
    """Those of the chosen items that most probably change, within a budget.

    Args:
        items: what the new rule touches.    budget: answers that can be had; None = for all of them.
    """
    used = [record.judgement for record in current_judgements(work_records(store))[0]]
    n_changed, n_asked = asked_already(store, used)
    sure = certainties(used)
    given = _by_task(used)
    certain = [sure.get(one.task.id, _leading_share(given.get(one.task.id, ()))) for one in items]
    wanted = [one.task.overlap for one in items]
    found = ask_again(
        certain, [True] * len(items), budget_votes=sum(wanted) if budget is None else budget, overlap=wanted or 1,
        changed=n_changed, asked=n_asked,
    )  # fmt: skip
    return ChangePlan(tuple(items[i] for i in found.items), found.expected, n_asked, n_changed)


def asked_already(store: Store, used: Iterable[Judgement]) -> tuple[int, int]:
    """Of the items answered under an older and the newest guideline: how many changed their leading answer, and how many
    there are. Without a leading answer on both sides an item does not count.
    """
    known = documents(store, GUIDELINE)
    if not known:
        return 0, 0
    sides: dict[tuple[Hashable, ...], tuple[list[Judgement], list[Judgement]]] = {}
    for one in used:
        item = (one.prompt_id, tuple(sorted(one.response_ids)), one.kind)
        sides.setdefault(item, ([], []))[one.guideline == known[-1].version].append(one)
    leaders = [(_leader(old), _leader(new)) for old, new in sides.values()]
    both = [(old, new) for old, new in leaders if old is not None and new is not None]
    return sum(old != new for old, new in both), len(both)


def _by_task(used: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    found: dict[str, list[Judgement]] = {}
    for one in used:
        found.setdefault(one.task_id, []).append(one)
    return found


def _leader(answers: Sequence[Judgement]) -> Hashable | None:
    """What most of them say; None where nobody leads or nothing can be compared."""
    ranked = Counter(_essence(one) for one in answers if _essence(one) is not None).most_common(2)
    if not ranked or (len(ranked) > 1 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]


def _leading_share(answers: Sequence[Judgement]) -> float:
    """(answers for the leading value + prior) / (answers + prior): certainty without a model of the raters."""
    counts = Counter(_essence(one) for one in answers if _essence(one) is not None)
    most = max(counts.values(), default=0)
    return (most + PRIOR_ANSWERS * PRIOR_RIGHT) / (counts.total() + PRIOR_ANSWERS)


def _essence(one: Judgement) -> Hashable | None:
    """What an answer says, whatever order its responses are named in."""
    said = gist(one.kind, one.value)
    if said in ("a", "b") and one.kind == "comparison":
        return one.response_ids[0 if said == "a" else 1]
    return said
