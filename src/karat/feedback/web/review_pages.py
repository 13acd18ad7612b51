"""The expert's pages: what raters disagree about, judged blind, then seen, then confirmed or changed.

An expert judges on the raters' own page (`/work`), so that both are asked the same in the same way; nothing of what
others said reaches her before her own answer is stored. Knows forms and templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import RedirectResponse, Response
from starlette.requests import Request

from karat.errors import KaratError
from karat.feedback.documents import project_settings, question_of, questions
from karat.feedback.people.drafts import history
from karat.feedback.store import Store
from karat.feedback.web.access import Visitor, needs
from karat.feedback.web.answer_words import answer_words
from karat.feedback.web.desk import ADMIN_TABS, Expert, Sent, done, field_of, kept_figures, note, page
from karat.feedback.web.task_view import covered_excerpt, shown_candidates, shown_turns
from karat.feedback.work.adjudication import disputes
from karat.feedback.work.reviews import (
    CONFIRMED,
    LOOKED,
    Review,
    confirmed_at,
    looked_at,
    n_blind,
    review_of,
    reviews,
    send_all,
    take,
    without_rater_names,
)
from karat.questions import plain_question

MOST_ROWS = 200
"""Disputes on the page; the ones to look at come first."""
MESSAGES = {
    "sent": "They are put to experts; each expert judges before she sees what others said.",
    "full": "Another expert has this one, or it has all the answers it wants. Take another.",
    "confirmed": "Your judgement stands as it was, confirmed after you saw the others'.",
}

router = APIRouter(include_in_schema=False)
Reader = Annotated[Visitor, Depends(needs("expert", "admin"))]


@router.get("/review")
def review_list(request: Request, visitor: Reader, done: str = "") -> Response:
    """What raters disagree about, or called for help with; of unjudged ones nothing but that."""
    return _list(request, visitor, message=MESSAGES.get(done, ""))


@router.post("/review/send")
def send(request: Request, visitor: Reader) -> Response:
    """Put everything disputed to experts."""
    n = send_all(request.app.state.store)
    note(request, visitor, "disputes sent to experts", f"{n} tasks")
    return done("/review", "sent")


@router.post("/review/take")
def take_one(request: Request, visitor: Expert, form: Sent) -> Response:
    """Judge this one now, blind: it becomes the task in hand on the page of work."""
    store, now = request.app.state.store, request.app.state.clock()
    review = _review(request, field_of(form, "task"))
    try:
        taken = take(store, review, str(visitor.annotator), now=now)
    except KaratError as error:
        return _list(request, visitor, status=409, message=f"{error}.", failed=True)
    return RedirectResponse("/work", 303) if taken else done("/review", "full")


@router.get("/review/task")
def review_task(request: Request, visitor: Reader, id: str, done: str = "") -> Response:
    """What everybody said: for an expert who has judged it, and for admins, who judge nothing."""
    store = request.app.state.store
    review = _review(request, id)
    own = review.by(visitor.annotator)
    if visitor.role == "expert" and not own:
        raise HTTPException(403, "Judge it first; then you see what others said.")
    if own and looked_at(store, own[-1].id) is None:
        note(request, visitor, LOOKED, own[-1].id)
    return _detail(request, visitor, review, message=MESSAGES.get(done, ""))


@router.post("/review/confirm")
def confirm(request: Request, visitor: Expert, form: Sent) -> Response:
    """Confirm her own judgement after she has seen the others': it stays, and that she confirmed it is on record."""
    store = request.app.state.store
    review = _review(request, field_of(form, "task"))
    own = review.by(visitor.annotator)
    if not own or looked_at(store, own[-1].id) is None:
        raise HTTPException(403, "Judge it first; then look at what others said, then confirm.")
    if confirmed_at(store, own[-1].id) is None:
        note(request, visitor, CONFIRMED, own[-1].id, field_of(form, "reason")[:2000])
    return done("/review/task", "confirmed", id=review.dispute.task.id)


def _list(
    request: Request, visitor: Visitor, *, status: int = 200, message: str = "", failed: bool = False
) -> Response:
    store = request.app.state.store
    rows = reviews(store, kept_figures(request, "disputes", lambda: disputes(store)))
    excerpts = _excerpts(store, rows)
    own = [row for row in rows if row.by(visitor.annotator)]
    waiting = [row for row in rows if not row.by(visitor.annotator)]
    return page(
        request,
        visitor,
        "review_list.html",
        tabs=ADMIN_TABS if visitor.role == "admin" else (),
        tab="/review",
        status=status,
        message=message,
        failed=failed,
        waiting=[(row, excerpts[row.dispute.task.id]) for row in waiting[:MOST_ROWS]],
        judged=[(row, excerpts[row.dispute.task.id], _stage(request, row, visitor)) for row in own],
        n_waiting=len(waiting),
        n_unsent=sum(not row.sent for row in rows),
    )


def _excerpts(store: Store, rows: Sequence[Review]) -> dict[str, str]:
    """How each disputed task's prompt ends, or its content warning."""
    if not rows:
        return {}
    prompts, known = store.prompts(), questions(store)
    found = {}
    for task in (row.dispute.task for row in rows):
        question = known[task.question] if task.question else plain_question(task.kind)
        found[task.id] = covered_excerpt(question, prompts[task.prompt_id].turns[-1].content)
    return found


def _stage(request: Request, row: Review, visitor: Visitor) -> str:
    own = row.by(visitor.annotator)
    store = request.app.state.store
    if n_blind(store, own) < len(own):
        return "changed"
    if confirmed_at(store, own[-1].id) is not None:
        return "confirmed"
    return "seen" if looked_at(store, own[-1].id) is not None else "look"


def _detail(request: Request, visitor: Visitor, review: Review, *, message: str) -> Response:
    store, task = request.app.state.store, review.dispute.task
    own = review.by(visitor.annotator)
    question = question_of(store, task)
    known = store.responses()
    responses = [known[one] for one in task.response_ids]
    order = own[0].judgement.shown_order if own else tuple(range(len(responses)))
    texts = [response.text for response in responses]
    everybody = without_rater_names(review.dispute.records)
    changeable = own and any(
        one.record.id == own[-1].id for one in history(store, str(visitor.annotator), project_settings(store).undo_n)
    )
    return page(
        request,
        visitor,
        "review_task.html",
        tabs=ADMIN_TABS if visitor.role == "admin" else (),
        tab="/review",
        message=message,
        review=review,
        question=question,
        turns=shown_turns(store.prompts()[task.prompt_id]),
        candidates=shown_candidates(question, responses, order),
        own=[(one, answer_words(question, one.judgement.value, order, texts)) for one in own],
        others=[(one.judgement, answer_words(question, one.judgement.value, order, texts)) for one in everybody],
        experts=[
            (f"Expert {i}", one.judgement, answer_words(question, one.judgement.value, order, texts))
            for i, one in enumerate((one for one in review.verdicts if one not in own), 1)
        ],
        n_blind=n_blind(store, own),
        confirmed=confirmed_at(store, own[-1].id) if own else None,
        changeable=bool(changeable),
    )


def _review(request: Request, task_id: str) -> Review:
    found = review_of(request.app.state.store, task_id)
    if found is None:
        raise HTTPException(404, "There is no such dispute; perhaps it was settled by a correction.")
    return found
