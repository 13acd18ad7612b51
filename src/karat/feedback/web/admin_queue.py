"""The admin's pages about work: the queue task by task, what to ask again, what skips say, and how many votes to plan.

Knows forms and templates. What pulling or issuing again means is `karat.feedback.work.requeue`'s, what votes cost is
`karat.feedback.work.outlay`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response
from starlette.datastructures import FormData, QueryParams
from starlette.requests import Request

from karat.errors import KaratError
from karat.feedback.documents import GUIDELINE, documents, project_settings, question_of
from karat.feedback.people.accounts import accounts
from karat.feedback.schema import StoredJudgement
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.feedback.web import figures
from karat.feedback.web.access import Visitor
from karat.feedback.web.answer_words import answer_words
from karat.feedback.web.charts import share_bar
from karat.feedback.web.desk import Admin, Sent, done, field_of, kept_figures, note, number_of, page
from karat.feedback.web.forms import letter
from karat.feedback.web.rendering import markdown_html
from karat.feedback.work.dashboard import queue
from karat.feedback.work.likely_changes import change_plan
from karat.feedback.work.matching import COMPARABLE
from karat.feedback.work.old_guideline import Choice, counts_of, old_items, price
from karat.feedback.work.outlay import ask_again
from karat.feedback.work.requeue import pull, pull_waiting, queue_entries, reissue
from karat.feedback.work.task_browser import TASK_STATES, TaskDetail, task_detail, task_page
from karat.questions import Question

EMPTY = {"reason": "", "extra": "1"}
"""The form of a task before anything is typed."""
MOST_AT_ONCE = 5_000
"""Tasks that one press of a button puts to raters again."""

router = APIRouter(include_in_schema=False)


@router.get("/admin/queue")
def queue_page(
    request: Request, visitor: Admin, batch: str = "", state: str = "", before: str = "", done: str = "", n: int = 0
) -> Response:
    """The queue: all of it as sums, and one task after the other."""
    store, now = request.app.state.store, request.app.state.clock()
    messages = {
        "pulled": f"{figures.counted(n, 'task is', 'tasks are')} taken out of the queue; their answers stay.",
        "reissued": f"{figures.counted(n, 'task is', 'tasks are')} in the queue again.",
    }
    rows, older = task_page(store, now=now, batch=batch, state=state, before=number_of(before))
    sums = queue(store, now=now)
    again = kept_figures(request, "again", lambda: ask_again(store))
    old = kept_figures(request, "old items", lambda: old_items(store)) if again else []
    choice = _choice(request.query_params)
    fitting = [one for one in old if choice.fits(one)] if request.query_params.get("show") else None
    typed = request.query_params.get("budget", "").strip()
    budget = number_of(typed)
    unread = f"Answers at most: found “{typed[:40]}”; expected a whole number." if typed and budget is None else ""
    held_by = project_settings(store).guideline_experiment
    if unread:
        fitting = None  # nothing is offered that the limit was meant to keep small
    plan = change_plan(store, fitting, budget=budget) if fitting else None
    picked = fitting if plan is None else plan.items
    return page(
        request,
        visitor,
        "admin_queue.html",
        message=unread or messages.get(done, ""),
        failed=bool(unread),
        held_by=held_by,
        queue=[(row, share_bar(f"done-{i}", f"Done in {row.batch}", row.share_done)) for i, row in enumerate(sums)],
        batches=list(dict.fromkeys(row.batch for row in sums)),
        states=TASK_STATES,
        chosen={"batch": batch, "state": state},
        n_waiting=sum(row.n_open for row in sums if row.batch == batch),
        rows=rows,
        older=older,
        again=again,
        old=old,
        counts=counts_of(old),
        choice=choice,
        picked=picked,
        plan=plan,
        budget=budget,
        n_fitting=len(fitting or ()),
        price=price(store, picked[:MOST_AT_ONCE]) if picked else None,
        pay=project_settings(store).pay,
        most=MOST_AT_ONCE,
        newest=_newest_guideline(store),
        entries=queue_entries(store, 30),
    )


@router.post("/admin/queue/pull")
def pull_batch(request: Request, visitor: Admin, form: Sent) -> Response:
    """Take what still waits of a batch out of the queue, with a reason."""
    store, now = request.app.state.store, request.app.state.clock()
    batch, reason = field_of(form, "batch"), field_of(form, "reason")
    try:
        pulled = pull_waiting(store, batch, by=visitor.account, reason=reason, now=now)
    except KaratError as error:
        raise HTTPException(422, str(error)) from None
    note(request, visitor, "tasks pulled", f"{len(pulled)} tasks of {batch}", reason)
    return done("/admin/queue", "pulled", batch=batch, n=str(len(pulled)))


@router.get("/admin/task")
def one_task(request: Request, visitor: Admin, id: str, done: str = "") -> Response:
    """One task with everything that was said about it."""
    messages = {
        "pulled": "The task is taken out of the queue; its answers stay.",
        "reissued": "The task is in the queue again.",
    }
    return _one(request, visitor, id, message=messages.get(done, ""))


@router.post("/admin/task")
def change_task(request: Request, visitor: Admin, form: Sent) -> Response:
    """Pull one task, or issue it again, with a reason."""
    store, now = request.app.state.store, request.app.state.clock()
    task_id, to, reason = (field_of(form, name) for name in ("task", "to", "reason"))
    typed = {"reason": reason, "extra": field_of(form, "extra") or "1"}
    extra = number_of(typed["extra"], at_most=50) or 1
    try:
        if to == "pulled":
            pull(store, [task_id], by=visitor.account, reason=reason, now=now)
        else:
            reissue(store, [task_id], by=visitor.account, reason=reason, now=now, extra=extra)
    except KaratError as error:
        return _one(request, visitor, task_id, status=422, message=str(error), failed=True, typed=typed)
    note(request, visitor, f"task {'pulled' if to == 'pulled' else 'reissued'}", task_id, reason)
    return done("/admin/task", "pulled" if to == "pulled" else "reissued", id=task_id)


@router.post("/admin/queue/again")
def ask_those_again(request: Request, visitor: Admin, form: Sent) -> Response:
    """Put everything that was judged under an old guideline to raters again, under the newest one."""
    store, now = request.app.state.store, request.app.state.clock()
    old, newest = field_of(form, "version"), _newest_guideline(store)
    stale = [entry for entry in ask_again(store) if entry.version == old]
    if not stale or not newest:
        raise HTTPException(404, "There is nothing to ask again under that version.")
    reason = f"judged under guideline {old}, now {newest}"
    ids = stale[0].task_ids[:MOST_AT_ONCE]
    made = reissue(store, ids, by=visitor.account, reason=reason, now=now, guideline=newest)
    note(request, visitor, "tasks reissued", f"{len(made)} tasks", reason)
    return done("/admin/queue", "reissued", n=str(len(made)))


@router.post("/admin/queue/again/items")
def ask_items_again(request: Request, visitor: Admin, form: Sent) -> Response:
    """Put the chosen items to raters again under the newest guideline, if they are still as many as were counted."""
    store, now = request.app.state.store, request.app.state.clock()
    choice, newest = _choice(form), _newest_guideline(store)
    fitting = [one for one in old_items(store) if choice.fits(one)]
    picked = change_plan(store, fitting, budget=number_of(field_of(form, "budget"))).items[:MOST_AT_ONCE]
    if not picked or not newest:
        raise HTTPException(404, "There is nothing to ask again that fits this choice.")
    if str(len(picked)) != field_of(form, "counted"):
        raise HTTPException(409, f"There are {len(picked)} such tasks by now; look at the count and the cost again.")
    reason = f"guideline {newest}: {choice.in_words}"[:500]
    ids = [one.task.id for one in picked]
    made = reissue(store, ids, by=visitor.account, reason=reason, now=now, guideline=newest)
    note(request, visitor, "tasks reissued", f"{len(made)} tasks", reason)
    return done("/admin/queue", "reissued", n=str(len(made)))


def _choice(fields: QueryParams | FormData) -> Choice:
    def several(name: str) -> tuple[str, ...]:
        return tuple(one for one in fields.getlist(name) if isinstance(one, str) and one)[:100]

    words = fields.get("words", "")
    return Choice(
        disagree=fields.get("disagree") == "yes",
        topics=several("topic"),
        flags=several("flag"),
        parts=several("part"),
        words=words.strip()[:200] if isinstance(words, str) else "",
    )


def _one(
    request: Request,
    visitor: Visitor,
    task_id: str,
    *,
    status: int = 200,
    message: str = "",
    failed: bool = False,
    typed: Mapping[str, str] = EMPTY,
) -> Response:
    store = request.app.state.store
    found = task_detail(store, task_id, now=request.app.state.clock())
    if found is None:
        raise HTTPException(404, "There is no such task.")
    return page(
        request,
        visitor,
        "admin_task.html",
        tab="/admin/queue",
        status=status,
        message=message,
        failed=failed,
        typed=typed,
        found=found,
        prompt=[(turn.role, markdown_html(turn.content)) for turn in found.prompt.turns],
        responses=[(letter(i), one, markdown_html(one.text)) for i, one in enumerate(found.responses)],
        answers=_answers(found, question_of(store, found.task)),
        current={record.id for record in current_judgements(found.answers)[0]},
        right=_right_answers(found) if not found.purpose else [],
        names={one.id: one.login or one.contact or one.id for one in accounts(store)},
    )


def _answers(found: TaskDetail, question: Question) -> list[tuple[StoredJudgement, str, str]]:
    """The answers to a task, each in words, with the responses called as on the page, and as it is stored."""
    order = tuple(range(len(found.responses)))
    return [
        (
            record,
            answer_words(question, record.judgement.value, order),
            json.dumps(dict(record.judgement.value), ensure_ascii=False),
        )
        for record in found.answers
    ]


def _right_answers(found: TaskDetail) -> list[tuple[str, str]]:
    """What may be said to be the right answer of a task: (value as JSON, words), the answers given among them."""
    kind = found.task.kind
    if kind not in COMPARABLE or found.task.audience != "annotator":
        return []
    plain: dict[str, dict[str, str]] = {
        "comparison": {"a": "A is better", "b": "B is better", "tie": "a tie"},
        "best_of": {chr(97 + i): f"{letter(i)} is best" for i in range(min(26, len(found.responses)))},
        "label": {"good": "good", "bad": "bad"},
    }
    offered = [(json.dumps(value), words) for value, words in plain.get(kind, {}).items()]
    for record in current_judgements(found.answers)[0]:
        value = dict(record.judgement.value)
        if "missing" not in value and not record.erased:
            offered.append((json.dumps(value), f"as {record.judgement.annotator} answered"))
    return offered


def _newest_guideline(store: Store) -> str:
    known = documents(store, GUIDELINE)
    return known[-1].version if known else ""
