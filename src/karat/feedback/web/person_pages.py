"""The pages on which raters read and say things about themselves: guidelines, consent, own record, standing, a pause.

Nothing here is compared with anybody else. Knows documents, consent and standing; knows nothing about tasks.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.datastructures import FormData
from starlette.requests import Request

from karat.errors import KaratError
from karat.feedback import documents
from karat.feedback.people import about_you, accounts, care, drafts
from karat.feedback.people import standing as standings
from karat.feedback.people.own_record import DELETION, own_data
from karat.feedback.people.studies import way_out
from karat.feedback.web.access import ROLES, Visitor, needs, sent_form
from karat.feedback.web.positions import as_shown
from karat.feedback.web.rendering import markdown_html
from karat.feedback.web.templates import render
from karat.feedback.work.rates import own_pay
from karat.feedback.work.sitting import own_progress

router = APIRouter(include_in_schema=False)
Anybody = Annotated[Visitor, Depends(needs(*ROLES))]
Rater = Annotated[Visitor, Depends(needs("annotator", "expert"))]
Sent = Annotated[FormData, Depends(sent_form)]

ABOUT_YOU = "about-you-1"
"""Names the consent that stands on the form itself, for projects without a consent text."""
UNSAID = "prefer not to say"


@router.get("/guidelines")
def guidelines_page(request: Request, visitor: Anybody, version: str = "") -> Response:
    """The guidelines in a version, the newest first, with the worked examples."""
    store = request.app.state.store
    mine = "" if version or visitor.annotator is None else _guideline_of(request, visitor)
    found = documents.document(store, documents.GUIDELINE, version or mine or None)
    if found is None and version:
        raise HTTPException(404, "There is no guideline of that version.")
    examples = documents.document(store, documents.EXAMPLES)
    values = {
        "project": documents.project_settings(store),
        "guideline": found,
        "text": markdown_html(found.text, top=2) if found else "",
        "examples": markdown_html(examples.text) if examples else "",
        "versions": [each.version for each in reversed(documents.documents(store, documents.GUIDELINE))],
        "when": _day(found.created_at) if found else "",
    }
    return render(request, "rater_guidelines.html", visitor, **values)


@router.get("/consent")
def consent_page(request: Request, visitor: Rater) -> Response:
    """What a rater agrees to before she works."""
    store = request.app.state.store
    found = documents.document(store, documents.CONSENT)
    state = care.consent_of(store, visitor.account)
    n_done = own_progress(store, _annotator(visitor), now=request.app.state.clock()).n_done
    values = {
        # who judged before she took her consent back gave her time, and is sent as one who completed
        "out": way_out(store, visitor.account, "completed" if n_done else "declined"),
        "n_done": n_done,
        "from_study": bool(accounts.account(store, visitor.account).outside),
        "project": documents.project_settings(store),
        "consent": found,
        "text": markdown_html(found.text, top=2) if found else "",
        "state": state,
        "given": _day(state.given_at) if state.given_at is not None else "",
        "withdrawn": _day(state.withdrawn_at) if state.withdrawn_at is not None else "",
    }
    return render(request, "rater_consent.html", visitor, **values)


@router.post("/consent")
def give_consent(request: Request, visitor: Rater, form: Sent) -> Response:
    """Agree to the version that was shown, or take it back."""
    state = request.app.state
    if _text(form, "withdraw"):
        care.withdraw_consent(state.store, visitor.account, now=state.clock())
        return RedirectResponse("/consent", 303)
    newest = documents.document(state.store, documents.CONSENT)
    version = _text(form, "version")
    if newest is None or version != newest.version or not _text(form, "agree"):
        return RedirectResponse("/consent", 303)
    care.give_consent(state.store, visitor.account, version, now=state.clock())
    return RedirectResponse("/work", 303)


@router.get("/me")
def me_page(request: Request, visitor: Rater, done: str = "") -> Response:
    """Own progress, pay, what is known about oneself, and what one wants known."""
    return _me(request, visitor, message=_DONE.get(done, ""))


@router.post("/me/about")
def save_about(request: Request, visitor: Rater, form: Sent) -> Response:
    """Keep or delete what a rater says about herself; every field is optional."""
    state, annotator = request.app.state, _annotator(visitor)
    if _text(form, "delete"):
        care.delete_demographics(state.store, annotator)
        return RedirectResponse("/me?done=deleted", 303)
    fields = about_you.fields_of(state.store)
    said = {field.name: _text(form, f"about-{field.name}").strip() for field in fields}
    given = {name: value for name, value in said.items() if value and value != UNSAID}
    if given and not _text(form, "agree"):
        return _me(
            request, visitor, said=said, message="Tick the box to have this kept; nothing was stored.", status=422
        )
    version = care.consent_of(state.store, visitor.account).version or ABOUT_YOU
    try:
        about_you.check_said(fields, given)
        care.save_demographics(state.store, annotator, given, consent=version, now=state.clock())
    except KaratError as error:
        return _me(request, visitor, said=said, message=str(error), status=422)
    return RedirectResponse("/me?done=saved", 303)


@router.post("/me/deletion")
def ask_deletion(request: Request, visitor: Rater, form: Sent) -> Response:
    """Ask the people in charge to delete what is stored about oneself."""
    state = request.app.state
    detail = _text(form, "detail").strip()[:2000]
    accounts.log(state.store, visitor.account, DELETION, _annotator(visitor), detail, now=state.clock())
    return RedirectResponse("/me?done=asked", 303)


@router.get("/me/data")
def own_data_file(request: Request, visitor: Rater) -> Response:
    """What a rater gave, as a file; positions as she saw them."""
    store, annotator = request.app.state.store, _annotator(visitor)
    given = [each.record.judgement for each in drafts.history(store, annotator, 1_000_000, sealed=True)]
    about = care.demographics(store, annotator)
    body = {
        "judgements": [
            {
                "at": each.created_at,
                "kind": each.kind,
                "answer_as_shown": as_shown(each.kind, each.value, each.shown_order),
                "reason": each.reason,
                "active_s": each.active_s,
                "guideline": each.guideline,
            }
            for each in reversed(given)
        ],
        "about_you": dict(about.fields) if about else {},
        "from_the_platform": dict(accounts.account(store, visitor.account).outside),
    }
    return JSONResponse(body, headers={"content-disposition": 'attachment; filename="my-data.json"'})


@router.get("/away")
def away_page(request: Request, visitor: Anybody) -> Response:
    """A pause: nothing to read, nothing that runs."""
    project = documents.project_settings(request.app.state.store)
    return render(request, "rater_away.html", visitor, project=project)


@router.get("/standing")
def standing_page(request: Request, visitor: Rater) -> Response:
    """How a rater stands, why, and what she answered."""
    return _standing(request, visitor)


@router.post("/standing")
def answer_standing(request: Request, visitor: Rater, form: Sent) -> Response:
    """Answer a quarantine, or ask for a review of a qualification that was not passed."""
    state, text = request.app.state, _text(form, "answer").replace("\r\n", "\n")
    annotator = _annotator(visitor)
    if not text.strip():
        message = "There is nothing in the box yet; write what we should know, then send it."
        return _standing(request, visitor, message=message, status=422)
    away = standings.standing_of(state.store, annotator).state == "quarantined"
    say = standings.answer_quarantine if away else standings.ask_review
    try:
        say(state.store, annotator, text, by=visitor.account, now=state.clock())
    except KaratError as error:
        return _standing(request, visitor, message=str(error), typed=text, status=422)
    return RedirectResponse("/standing", 303)


_DONE = {
    "saved": "Saved. You can change or delete it at any time.",
    "deleted": "What you said about yourself is deleted.",
    "asked": "Your request has been recorded; the people in charge will answer it.",
}


def _me(
    request: Request, visitor: Visitor, *, message: str = "", said: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    state, annotator = request.app.state, _annotator(visitor)
    project = care.settings_for(state.store, annotator, now=state.clock())
    progress = own_progress(state.store, annotator, now=state.clock())
    earned, paid_s = own_pay(state.store, annotator)
    data = own_data(state.store, visitor.account, annotator)
    kept = care.demographics(state.store, annotator)
    values = {
        "project": project,
        "progress": progress,
        "paid_s": paid_s,
        "earned": "" if project.pay is None else f"{earned or 0.0:,.2f} {project.pay.currency}",
        "about": about_you.fields_of(state.store),
        "said": said if said is not None else (dict(kept.fields) if kept else {}),
        "kept": kept is not None,
        "unsaid": UNSAID,
        "data": data,
        "asked": _day(data.deletion_asked_at) if data.deletion_asked_at is not None else "",
        "consent": care.consent_of(state.store, visitor.account),
        "standing": standings.standing_of(state.store, annotator),
        "message": message,
        "failed": status != 200,
    }
    return render(request, "rater_me.html", visitor, status=status, **values)


def _standing(request: Request, visitor: Visitor, *, message: str = "", typed: str = "", status: int = 200) -> Response:
    store = request.app.state.store
    found = standings.standing_of(store, _annotator(visitor))
    days = {event.seq: _day(event.at) for event in found.events}
    out = way_out(store, visitor.account, "completed") if found.state == standings.QUARANTINED else ""
    mine = (standings.ANSWERED, standings.REVIEW)
    values = {"standing": found, "days": days, "message": message, "typed": typed, "out": out,
              "sent": bool(found.events) and found.events[-1].action in mine}  # fmt: skip
    return render(
        request, "rater_standing.html", visitor, status=status, project=documents.project_settings(store), **values
    )


def _guideline_of(request: Request, visitor: Visitor) -> str:
    """The version that an experiment shows to this rater; "" = the newest."""
    state = request.app.state
    project = documents.project_settings(state.store)
    arms = care.arms_under(state.store, project, _annotator(visitor), now=state.clock())
    return care.change_under(project, arms).guideline


def _annotator(visitor: Visitor) -> str:
    if visitor.annotator is None:
        raise HTTPException(403, "This account does not judge.")
    return visitor.annotator


def _day(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%-d %B %Y, %H:%M UTC")


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    return value if isinstance(value, str) else ""
