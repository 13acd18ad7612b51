"""The admin's pages about failed qualifications: who failed, what she answered, and what a person decides.

Knows forms and templates; what a decision means is `karat.feedback.work.qualifying`'s.
"""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response
from starlette.requests import Request

from karat.errors import KaratError
from karat.feedback.documents import question_of
from karat.feedback.people import accounts
from karat.feedback.people.standing import ADMITTED, KEPT, RETRY
from karat.feedback.web.access import Visitor
from karat.feedback.web.answer_words import answer_words
from karat.feedback.web.desk import Admin, Sent, done, field_of, note, page
from karat.feedback.work.qualifying import attempt_answers, decide, failed_tests

MESSAGES = {
    RETRY: "She has another attempt: its items are what comes to her next.",
    ADMITTED: "She is admitted and works from now on.",
    KEPT: "The result stands; she reads your reply, and can ask once more.",
}

router = APIRouter(include_in_schema=False)


@router.get("/admin/qualification")
def failed_page(request: Request, visitor: Admin) -> Response:
    """Raters whom a failed qualification keeps from work, those who ask for a review first."""
    rows = failed_tests(request.app.state.store)
    return page(request, visitor, "admin_qualification.html", tab="/admin/checks", rows=rows, one=None)


@router.get("/admin/qualification/rater")
def answers_page(request: Request, visitor: Admin, who: str, done: str = "") -> Response:
    """What one of them was asked and answered, and what can be decided."""
    return _one(request, visitor, who, message=MESSAGES.get(done, ""))


@router.post("/admin/qualification")
def decide_on(request: Request, visitor: Admin, form: Sent) -> Response:
    """Give another attempt, admit, or let the result stand; each with a reason that the rater reads."""
    store, now = request.app.state.store, request.app.state.clock()
    who, to, reason = (field_of(form, name) for name in ("who", "to", "reason"))
    try:
        decide(store, who, to, reason=reason, by=visitor.account, now=now)
    except KaratError as error:
        return _one(request, visitor, who, status=422, message=str(error), failed=True, typed=reason)
    note(request, visitor, f"qualification: {to}", who, reason)
    return done("/admin/qualification/rater", to, who=who)


def _one(
    request: Request,
    visitor: Visitor,
    who: str,
    *,
    status: int = 200,
    message: str = "",
    failed: bool = False,
    typed: str = "",
) -> Response:
    store = request.app.state.store
    rows = failed_tests(store)
    one = next((row for row in rows if row.annotator == who), None)
    if one is None and not message:
        raise HTTPException(404, "There is no failed qualification of such a rater.")
    answers, texts, prompts = [], store.responses(), store.prompts()
    for each in attempt_answers(store, who) if one else ():
        question = question_of(store, each.task)
        shown = [texts[each.task.response_ids[i]].text for i in each.shown_order]
        in_order = [texts[key].text for key in each.task.response_ids]
        said = "" if each.value is None else answer_words(question, each.value, each.shown_order, in_order)
        wanted = answer_words(question, each.expected, each.shown_order, in_order)
        answers.append((each, prompts[each.task.prompt_id].text, shown, said, wanted))
    return page(
        request,
        visitor,
        "admin_qualification.html",
        tab="/admin/checks",
        status=status,
        message=message,
        failed=failed,
        typed=typed,
        rows=rows,
        one=one,
        who=who,
        answers=answers,
        account=accounts.account_by_annotator(store, who),
    )
