"""The way in for raters of another platform: its link, with the participant's id in it, and one click.

Knows links and cookies; knows nothing about how accounts are made.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import FormData
from starlette.requests import Request

from karat.errors import InputError
from karat.feedback.people.studies import Participant, Study, join, participant_in, study_of
from karat.feedback.web.access import PUBLIC, Visitor, sent_form
from karat.feedback.web.signing_in import open_session, refuse_too_many, set_cookie
from karat.feedback.web.templates import render

router = APIRouter(include_in_schema=False)
Guest = Annotated[Visitor | None, Depends(PUBLIC)]
Sent = Annotated[FormData, Depends(sent_form)]


@router.get("/study/{token}")
def study_page(request: Request, _: Guest, token: str) -> Response:
    """Asks for a click: programs that look at links in messages must not make accounts."""
    study = _study(request, token)
    return render(request, "account_study.html", token=token, study=study, who=_participant(dict(request.query_params)))


@router.post("/study/{token}")
def enter_study(request: Request, _: Guest, token: str, form: Sent) -> Response:
    """Sign in the participant, whose account is made if she comes for the first time."""
    study = _study(request, token)
    state = request.app.state
    refuse_too_many(request)  # each participant id makes an account
    who = _participant({key: value for key, value in form.items() if isinstance(value, str)})
    account = join(state.store, study, who, now=state.clock())
    if account.state != "active":
        raise HTTPException(403, "This account is closed; ask whoever runs the study.")
    session = open_session(request, account.id)
    answer = RedirectResponse("/", 303)
    set_cookie(request, answer, session)
    return answer


def _study(request: Request, token: str) -> Study:
    study = study_of(request.app.state.store, token)
    if study is None:
        refuse_too_many(request)
        raise HTTPException(404, "This study is not open, or the link is not complete.")
    return study


def _participant(sent: dict[str, str]) -> Participant:
    try:
        return participant_in(sent)
    except InputError as error:
        raise HTTPException(422, str(error)) from None
