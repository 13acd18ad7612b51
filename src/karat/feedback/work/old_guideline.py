"""Which tasks to ask again after a change of the guideline, item by item, and what that costs before it is done.

A change of one rule touches some items and not others: those on which raters disagreed under the older version, and
those of a topic, a flag, a part or with words that the rule is about. Knows tasks and judgements; knows nothing about
pages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from karat.feedback.documents import GUIDELINE, documents, project_settings, questions
from karat.feedback.people_tables import checks
from karat.feedback.snapshot import current_judgements, work_records
from karat.feedback.store import Store
from karat.feedback.work.matching import COMPARABLE, escalates, gist
from karat.feedback.work.outlay import mean_seconds, outlay
from karat.questions import Question, plain_question
from karat.records import Estimate, Judgement, Task


@dataclass(frozen=True)
class OldItem:
    """A task with answers under an older guideline that was not asked under the newest one."""

    task: Task
    """What was asked."""
    versions: tuple[str, ...]
    """The older versions that its answers were given under."""
    n_answers: int
    """Current answers under them."""
    disagree: bool
    """True = they do not all say the same, or somebody called for an expert."""
    topic: str
    """Topic of its prompt, or else of its question; "" = none."""
    flags: frozenset[str]
    """Flags that somebody raised."""
    parts: frozenset[str]
    """What it is about: its kind, the attributes it rates, the classes and aspects that somebody marked."""
    text: str
    """Prompt and responses, in lower case."""


@dataclass(frozen=True)
class Choice:
    """Which of them to ask again: an item counts where any of these fits; all of them where none is said."""

    disagree: bool = False
    """Where raters disagree."""
    topics: tuple[str, ...] = ()
    """Of one of these topics."""
    flags: tuple[str, ...] = ()
    """With one of these flags."""
    parts: tuple[str, ...] = ()
    """About one of these."""
    words: str = ""
    """With these words, in any case, in prompt or responses."""

    def fits(self, item: OldItem) -> bool:
        """Whether this item is to be asked again."""
        asked = (self.disagree, self.topics, self.flags, self.parts, self.words)
        if not any(asked):
            return True
        return (
            (self.disagree and item.disagree)
            or item.topic in self.topics
            or bool(item.flags & set(self.flags))
            or bool(item.parts & set(self.parts))
            or (bool(self.words) and self.words.lower() in item.text)
        )

    @property
    def in_words(self) -> str:
        """What was chosen, for the record."""
        said = ["disagreement"] if self.disagree else []
        for name, values in (("topic", self.topics), ("flag", self.flags), ("part", self.parts)):
            said += [f"{name} {value}" for value in values]
        return ", ".join(said + ([f"words {self.words!r}"] if self.words else [])) or "all"


@dataclass(frozen=True)
class Price:
    """What it takes to ask some tasks again."""

    n_tasks: int
    """Tasks."""
    n_answers: int
    """Answers wanted at most: an early stop may need fewer."""
    hours: Estimate
    """Hours of active work, at the mean time of the answers so far."""
    cost: Estimate | None
    """Money, in the currency of the settings; None where nothing is paid."""


def old_items(store: Store) -> list[OldItem]:
    """Tasks for raters whose answers were given under another guideline than the newest, in the order of the queue.

    Silent checks, tasks for one rater and what was asked under the newest version already are left out.
    """
    known = documents(store, GUIDELINE)
    if not known:
        return []
    newest = known[-1].version
    with store.connection() as connection:
        silent = set(connection.execute(select(checks.c.task_id)).scalars())
    tasks = [
        one
        for one in store.tasks()
        if one.reserved_for is None and one.audience == "annotator" and one.id not in silent
    ]
    asked = {(one.prompt_id, one.response_ids, one.kind) for one in tasks if one.guideline == newest}
    given: dict[str, list[Judgement]] = {}
    for record in current_judgements(work_records(store))[0]:
        if record.judgement.guideline != newest:
            given.setdefault(record.judgement.task_id, []).append(record.judgement)
    prompts, responses, of = store.prompts(), store.responses(), questions(store)
    found = []
    for task in tasks:
        answers = given.get(task.id)
        if not answers or (task.prompt_id, task.response_ids, task.kind) in asked:
            continue
        prompt, question = prompts[task.prompt_id], of.get(task.question) or plain_question(task.kind)
        texts = [prompt.text, *(responses[one].text for one in task.response_ids)]
        found.append(
            OldItem(
                task=task,
                versions=tuple(sorted({one.guideline for one in answers})),
                n_answers=len(answers),
                disagree=_disagree(task, answers),
                topic=prompt.topic or question.topic,
                flags=frozenset(flag for one in answers for flag in one.value.get("flags") or ()),
                parts=frozenset(_parts(question, answers)),
                text="\n".join(texts).lower(),
            )
        )
    return found


def counts_of(items: Sequence[OldItem]) -> Mapping[str, Mapping[str, int]]:
    """How many items there are of each topic, flag and part, and on how many raters disagree: what can be chosen."""
    return {
        "topics": dict(sorted(Counter(one.topic for one in items if one.topic).items())),
        "flags": dict(sorted(Counter(flag for one in items for flag in one.flags).items())),
        "parts": dict(sorted(Counter(part for one in items for part in one.parts).items())),
        "disagree": {"yes": sum(one.disagree for one in items)},
    }


def price(store: Store, items: Sequence[OldItem]) -> Price:
    """What asking these again takes, with the interval that comes from the time of an answer."""
    n_answers = sum(one.task.overlap for one in items)
    seconds, pay = mean_seconds(store), project_settings(store).pay
    hours = _times(seconds, n_answers / 3600, f"{n_answers} answers at the mean active time of one")
    if pay is None:
        return Price(len(items), n_answers, hours, None)
    if pay.per == "hour":
        return Price(len(items), n_answers, hours, _times(hours, pay.amount, f"{hours.method}, paid by the hour"))
    so_far = outlay(store)
    rate = so_far.spent / so_far.n_judgements if so_far.spent and so_far.n_judgements else pay.amount
    cost = Estimate(rate * n_answers, None, None, n_answers, f"{n_answers} answers at {rate:g} {pay.currency} each")
    return Price(len(items), n_answers, hours, cost)


def _disagree(task: Task, answers: Sequence[Judgement]) -> bool:
    opinions = {gist(task.kind, one.value) for one in answers} if task.kind in COMPARABLE else {None}
    return len(opinions) > 1 or any(escalates(one.value) for one in answers)


def _parts(question: Question, answers: Sequence[Judgement]) -> Iterator[str]:
    yield f"kind {question.kind}"
    if question.granularity != "response":
        yield f"granularity {question.granularity}"
    yield from (f"attribute {one.name}" for one in question.attributes)
    for one in answers:
        yield from (f"span class {span['class']}" for span in one.value.get("spans") or ())
        yield from (f"aspect {aspect}" for aspect in one.value.get("aspects") or ())


def _times(found: Estimate, factor: float, method: str) -> Estimate:
    if found.value is None:
        return found
    low, high = (None if bound is None else bound * factor for bound in (found.low, found.high))
    return Estimate(found.value * factor, low, high, found.n, method)
