"""The API for raters' programs: the next task, an answer, a draft, what was sent lately.

Everything a page can do, by JSON, for whoever may sign in; what a page would refuse is refused here too.
Knows shapes and leases; knows nothing about pages or about who else works.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import JSONResponse, Response
from starlette.requests import Request

from karat.answers import check_value
from karat.errors import InputError, LeaseError
from karat.feedback.documents import project_settings
from karat.feedback.people import accounts, drafts
from karat.feedback.people.standing import standing_of
from karat.feedback.web import api_models as shapes
from karat.feedback.web.access import PUBLIC, ROLES, Visitor, needs, token_of
from karat.feedback.web.forms import Asked, answer_of, fields_of
from karat.feedback.web.lanes import QuickRoute
from karat.feedback.web.positions import as_shown, as_stored
from karat.feedback.web.signing_in import NO_MATCH, drop_cookie, password_session, set_cookie
from karat.feedback.work import assignment
from karat.feedback.work.answering import Given, Work, submit_work, work_of
from karat.feedback.work.sitting import next_held
from karat.identity import canonical_json
from karat.questions import Choice

router = APIRouter(tags=["raters"], route_class=QuickRoute)
signing = APIRouter(tags=["raters"])  # whose passwords take long to check, as they must
Guest = Annotated[Visitor | None, Depends(PUBLIC)]
Anybody = Annotated[Visitor, Depends(needs(*ROLES))]
Rater = Annotated[Visitor, Depends(needs("annotator", "expert"))]
API = "/api/v1"


@signing.post(f"{API}/session", response_model=shapes.Signed, tags=["session"])
def sign_in(request: Request, _: Guest, sent: shapes.SignIn) -> Response:
    """Sign in by password: a bearer token for a program, a cookie for a page."""
    token = password_session(request, sent.login, sent.password, kind=sent.kind)
    if token is None:
        raise HTTPException(401, NO_MATCH)
    state = request.app.state
    session = accounts.session_of(state.store, token, now=state.clock())
    if session is None:
        raise HTTPException(401, NO_MATCH)
    by_cookie = sent.kind == "browser"
    answer = JSONResponse({"token": None if by_cookie else token, "csrf": session.csrf, "role": session.role})
    if by_cookie:
        set_cookie(request, answer, token)
    return answer


@router.delete(f"{API}/session", response_model=shapes.Done, tags=["session"])
def sign_out(request: Request, _: Anybody) -> Response:
    """End the session that this request came with."""
    state = request.app.state
    accounts.close_session(state.store, token_of(request)[0], now=state.clock())
    answer = JSONResponse({"done": True})
    drop_cookie(request, answer)
    return answer


@router.get(f"{API}/me", response_model=shapes.Me)
def me(request: Request, visitor: Anybody) -> dict[str, Any]:
    """Who is asking, and whether there may be work."""
    state = _standing(request, visitor.annotator)
    return {"role": visitor.role, "annotator": visitor.annotator, "state": state, "csrf": visitor.csrf}


@router.post(f"{API}/tasks/next", response_model=shapes.Next)
def next_(request: Request, visitor: Rater) -> dict[str, Any]:
    """The task in hand, else the next one for this rater, else null with why."""
    state, annotator = request.app.state, _annotator(visitor)
    offer, work = next_held(state.store, annotator, now=state.clock())
    return {"task": None if work is None else _shown(work), "reason": offer.reason}


@router.get(f"{API}/tasks/{{lease}}", response_model=shapes.TaskOut)
def task(request: Request, visitor: Rater, lease: str) -> dict[str, Any]:
    """A task of this rater again, as it was shown."""
    return _shown(_own(request, visitor, lease))


@router.post(f"{API}/tasks/{{lease}}/judgement", response_model=shapes.Accepted)
def judge(request: Request, visitor: Rater, lease: str, sent: shapes.AnswerIn) -> dict[str, Any]:
    """Answer a task. The same again adds nothing; another answer to it corrects the first until that is sealed."""
    state, work = request.app.state, _own(request, visitor, lease)
    value, reason = _checked(work, sent)
    shown: dict[str, Any] = {name: found for name in ("page", "locale") if (found := getattr(sent, name))}
    if sent.truncated is not None:
        if len(sent.truncated) != len(work.order):
            raise InputError(f"truncated: found {len(sent.truncated)} entries; expected one for each response")
        by_index = dict(zip(work.order, sent.truncated, strict=True))
        shown["truncated"] = [by_index[index] for index in range(len(work.order))]
    given = Given(value, sent.key, reason, sent.active_s, sent.idle_s, shown)
    stored = submit_work(state.store, work, given, now=state.clock())
    return {"receipt": stored.commitment, "late": stored.late}


@router.post(f"{API}/tasks/{{lease}}/heartbeat", response_model=shapes.Beat)
def heartbeat(request: Request, visitor: Rater, lease: str) -> dict[str, float]:
    """Keep a task a while longer: its rater is still at work."""
    state = request.app.state
    with _named():
        return {"expires_at": assignment.heartbeat(state.store, lease, _annotator(visitor), now=state.clock())}


@router.post(f"{API}/tasks/{{lease}}/skip", response_model=shapes.Done)
def skip(request: Request, visitor: Rater, lease: str, sent: shapes.SkipIn) -> dict[str, bool]:
    """Give a task back for good, with the reason."""
    state = request.app.state
    with _named():
        assignment.skip(state.store, lease, _annotator(visitor), reason=sent.reason, now=state.clock())
    return {"done": True}


@router.get(f"{API}/tasks/{{lease}}/draft", response_model=shapes.DraftOut)
def read_draft(request: Request, visitor: Rater, lease: str) -> dict[str, Any]:
    """What was entered for a task and not yet sent."""
    work = _own(request, visitor, lease)
    found = drafts.draft(request.app.state.store, work.task.id, work.annotator)
    return {"body": dict(found.body) if found else None, "saved_at": found.saved_at if found else None}


@router.put(f"{API}/tasks/{{lease}}/draft", response_model=shapes.DraftOut)
def write_draft(request: Request, visitor: Rater, lease: str, sent: shapes.DraftIn) -> dict[str, Any]:
    """Keep what was entered so far."""
    state, work = request.app.state, _own(request, visitor, lease)
    saved = drafts.save_draft(state.store, work.task.id, work.annotator, sent.body, now=state.clock())
    return {"body": dict(saved.body), "saved_at": saved.saved_at}


@router.get(f"{API}/history", response_model=list[shapes.Past])
def past(request: Request, visitor: Rater) -> list[dict[str, Any]]:
    """The rater's last answers that can still be changed, newest first: send another answer to the same lease."""
    store = request.app.state.store
    last = drafts.history(store, _annotator(visitor), project_settings(store).undo_n)
    return [
        {
            "lease": each.lease_id,
            "created_at": each.record.judgement.created_at,
            "kind": each.record.judgement.kind,
            "value": as_shown(
                each.record.judgement.kind, each.record.judgement.value, each.record.judgement.shown_order
            ),
            "reason": each.record.judgement.reason,
        }
        for each in last
    ]


def _own(request: Request, visitor: Visitor, lease: str) -> Work:
    with _named():
        return work_of(request.app.state.store, lease, _annotator(visitor))


@contextlib.contextmanager
def _named() -> Iterator[None]:
    # somebody else's lease and one that never was look the same
    try:
        yield
    except LeaseError as error:
        raise HTTPException(404, str(error)) from None


def _annotator(visitor: Visitor) -> str:
    if visitor.annotator is None:
        raise HTTPException(403, "This account has no pseudonym to judge under.")
    return visitor.annotator


def _standing(request: Request, annotator: str | None) -> str:
    return "" if annotator is None else standing_of(request.app.state.store, annotator).state


def _shown(work: Work) -> dict[str, Any]:
    asked = work.question
    question = {name: getattr(asked, name) for name in shapes.Asking.model_fields if name != "ways_out"}
    question = {name: _plain(value) for name, value in question.items()} | {"ways_out": list(asked.offers)}
    texts = work.texts
    return {
        "lease": work.lease_id,
        "expires_at": work.expires_at,
        "question": question,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in work.prompt.turns],
        "responses": [{"number": i, "text": texts[index]} for i, index in enumerate(work.order, 1)],
        "guideline": work.guideline,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return {"name": value.name, "label": value.label, "help": value.help} if isinstance(value, Choice) else value


def _checked(work: Work, sent: shapes.AnswerIn) -> tuple[dict[str, Any], str | None]:
    """The answer in identity order and the reason, as the page's form would have taken them."""
    check_value(work.task.kind, sent.value, len(work.order))
    value = as_stored(work.task.kind, sent.value, work.order)
    asked = Asked(work.question, work.texts, work.order)
    answer = answer_of(asked, fields_of(asked, value, sent.reason))
    if answer.value is None:
        raise InputError("; ".join(answer.messages.values()))
    if canonical_json(_essence(answer.value)) != canonical_json(_essence(value)):
        raise InputError("value: found something that the question does not ask for; see the task's question")
    return answer.value, answer.reason


def _essence(value: Mapping[str, Any]) -> dict[str, Any]:
    """The value without what says nothing: absent flags, the order of names and marks, gaps between ranks."""
    said = {name: found for name, found in value.items() if found not in ([], (), False) or name in ("good", "spans")}
    for name in ("flags", "aspects"):
        if name in said:
            said[name] = sorted(said[name])
    if "ranks" in said:
        dense = {rank: i for i, rank in enumerate(sorted(set(said["ranks"])), 1)}
        said["ranks"] = [dense[rank] for rank in said["ranks"]]
    if "spans" in said:
        said["spans"] = sorted(said["spans"], key=canonical_json)
    return said


router.routes.extend(signing.routes)
