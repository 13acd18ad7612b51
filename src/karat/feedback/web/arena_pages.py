"""The blind comparison of two policies: raters ask and vote, admins set up and look.

Which policy wrote what stays on the server: a rater votes on the ordinary page of a comparison, whose two texts are
both there before she sees either. Knows forms and templates; the rest is `karat.feedback.work.arena`'s.
"""

from __future__ import annotations

import threading
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy import func, select
from starlette.background import BackgroundTask
from starlette.requests import Request

from karat.errors import InputError, KaratError
from karat.feedback.documents import GUIDELINE, document, project_settings
from karat.feedback.leases import end_leases, held_task
from karat.feedback.people.accounts import attempt
from karat.feedback.people.care import consent_of
from karat.feedback.people.drafts import read_draft
from karat.feedback.people.standing import QUARANTINED, standing_of
from karat.feedback.schema import responses
from karat.feedback.store import Store
from karat.feedback.web import figures
from karat.feedback.web.access import Visitor, needs
from karat.feedback.web.charts import Whisker, whisker_chart
from karat.feedback.web.desk import Admin, Sent, done, field_of, kept_figures, note, number_of, page
from karat.feedback.work.arena import PREFIX, arena_result, arenas, make_arena
from karat.feedback.work.duels import FAILED, SAME, answer_duels, ask_duel, asked_by
from karat.feedback.work.gates import over_budget
from karat.records import Prompt, user_prompt

MOST_PROMPT = 4000
"""Characters of a prompt that a rater types."""
WINDOW_S, MOST_ASKED = 60.0, 6
"""Prompts that one rater may send to the policies in a window of seconds."""
MOST_OVERLAP = 20
NEWS_S = 600.0
"""For so long a page says that a question came to nothing."""
NOTHING = {
    SAME: "Both gave the same answer, or you have compared these two before. Ask something else.",
    FAILED: "A policy did not answer. What you wrote is still here; send it again in a moment.",
}
"""What a rater reads about that."""
ANSWERING = threading.Lock()
"""Policies in this process answer one after another."""

router = APIRouter(include_in_schema=False)
Rater = Annotated[Visitor, Depends(needs("annotator", "expert"))]
Anybody = Annotated[Visitor, Depends(needs("annotator", "expert", "admin"))]


@router.get("/arena")
def arena_page(request: Request, visitor: Anybody, done: str = "", n: int = 0) -> Response:
    """For raters the place to ask both policies; for admins the comparisons there are."""
    if visitor.role != "admin":
        return _state_page(request, visitor)
    message = (
        f"The comparison is set up with {figures.counted(n, 'question')}; raters find what they are asked in the queue."
        if done == "made"
        else ""
    )
    return _admin_page(request, visitor, message=message)


@router.post("/arena/ask")
def ask(request: Request, visitor: Rater, form: Sent) -> Response:
    """Let both policies answer what a rater typed, and put the two answers to her as her next comparison."""
    state, text = request.app.state, str(form.get("prompt", "")).replace("\r\n", "\n").strip()
    annotator = str(visitor.annotator)
    if elsewhere := _not_now(request, visitor, text):
        return elsewhere
    if not text or len(text) > MOST_PROMPT:
        message = f"The question has {len(text)} characters; write 1 to {MOST_PROMPT}."
        return _ask_page(request, visitor, text=text, message=message)
    now = state.clock()
    if not attempt(state.store, f"arena {annotator}", now=now, window_s=WINDOW_S, most=MOST_ASKED):
        message = "That is many questions in a minute; wait a little, then send it again."
        return _ask_page(request, visitor, text=text, message=message, status=429)
    # a task that she has not begun goes back: handing in one hands out the next, so that she would never be free to ask
    state.store.write(lambda connection: end_leases(connection, annotator, now=now))
    try:
        ask_duel(state.store, user_prompt(text), annotator)
    except InputError:
        return RedirectResponse("/arena", 303)  # which says that her last question is still being answered
    # policies in this process answer after the page is sent; those of `karat serve --arena` have a thread of their own
    return RedirectResponse("/arena", 303, background=BackgroundTask(_answer, state) if state.samplers else None)


@router.get("/arena/waiting")
def waiting(request: Request, visitor: Rater) -> JSONResponse:
    """Whether the answers to a rater's question are still being written."""
    asked = asked_by(request.app.state.store, str(visitor.annotator))
    return JSONResponse({"waiting": asked is not None and asked.waiting})


@router.post("/arena/make")
def make(request: Request, visitor: Admin, form: Sent) -> Response:
    """Set up a comparison of two policies from the samples that are in the store."""
    store, now = request.app.state.store, request.app.state.clock()
    name, first, second = (field_of(form, field) for field in ("name", "first", "second"))
    overlap = number_of(field_of(form, "overlap") or "1", at_most=MOST_OVERLAP) or 1
    newest = document(store, GUIDELINE)
    try:
        if first == second:
            raise InputError("arena: found the same policy twice; choose two")
        samples = {policy: samples_of(store, policy) for policy in (first, second)}
        guideline = newest.version if newest else "v1"
        made = make_arena(store, name, samples, now=now, overlap=overlap, guideline=guideline)
    except KaratError as error:
        typed = {"name": name, "first": first, "second": second, "overlap": str(overlap)}
        return _admin_page(request, visitor, status=422, message=str(error), failed=True, typed=typed)
    note(
        request,
        visitor,
        "arena made",
        name,
        f"{first} and {second}, {figures.counted(len(made.written_by), 'question')}",
    )
    return done("/arena", "made", n=str(len(made.written_by)))


@router.get("/arena/result")
def result_page(request: Request, visitor: Admin, name: str) -> Response:
    """What people said, with the policies' names: for admins only."""
    store = request.app.state.store
    found = kept_figures(request, f"arena {name}", lambda: arena_result(store, name, np.random.default_rng(0)))
    rows = [
        Whisker("All, for other prompts and raters", found.win_rate),
        Whisker("All, for other prompts", found.by_prompt),
        Whisker("All, for other raters", found.by_rater),
        *(Whisker(f"{what}: {label}", rate) for what, label, rate in found.slices if rate.value is not None),
    ]
    title = f"Win rate of {found.arena.policies[0]}"
    chart = whisker_chart("wins", title, rows, low=0.0, high=1.0, reference=0.5)
    return page(request, visitor, "arena_result.html", tab="/arena", found=found, chart=chart)


def samples_of(store: Store, source: str) -> list[tuple[Prompt, str]]:
    """What a source wrote, its first sample for each prompt first."""
    question = select(responses.c.prompt_id, responses.c.text).where(responses.c.source == source)
    prompts = store.prompts()
    with store.connection() as connection:
        rows = connection.execute(question.order_by(responses.c.prompt_id, responses.c.sample, responses.c.id))
        return [(prompts[row.prompt_id], row.text) for row in rows]


def sources(store: Store) -> list[tuple[str, int]]:
    """Who wrote the responses of the store, with how many each wrote, the most first."""
    question = select(responses.c.source, func.count()).group_by(responses.c.source)
    with store.connection() as connection:
        rows = connection.execute(question.order_by(func.count().desc(), responses.c.source).limit(200))
        return [(name, n) for name, n in rows]


def _ask_page(
    request: Request, visitor: Visitor, *, text: str = "", message: str = "", status: int = 0, why: str = ""
) -> Response:
    return page(
        request,
        visitor,
        "arena_ask.html",
        tabs=(),
        status=status or (422 if message else 200),
        message=message,
        failed=bool(message),
        live=bool(policies_of(request)),
        waiting=False,
        why=why,
        text=text,
        most=MOST_PROMPT,
    )


def _state_page(request: Request, visitor: Visitor) -> Response:
    """What has become of a rater's question: two answers to judge, still being written, nothing, or none was asked."""
    state, annotator = request.app.state, str(visitor.annotator)
    asked = asked_by(state.store, annotator)
    if asked is not None and asked.waiting:
        return page(
            request, visitor, "arena_ask.html", tabs=(), live=bool(policies_of(request)), waiting=True,
            text=asked.text, most=MOST_PROMPT,
        )  # fmt: skip
    with state.store.connection() as connection:
        held = held_task(connection, annotator, now=state.clock())
    if held is not None and held.batch.startswith(PREFIX) and held.reserved_for == annotator:
        return RedirectResponse("/work", 303)
    if asked is not None and state.clock() - asked.at < NEWS_S:
        return _ask_page(request, visitor, text=asked.text, message=NOTHING[asked.nothing], status=200)
    return _ask_page(request, visitor, why=_kept_from_asking(request, visitor))


def _admin_page(
    request: Request,
    visitor: Visitor,
    *,
    status: int = 200,
    message: str = "",
    failed: bool = False,
    typed: dict[str, str] | None = None,
) -> Response:
    store = request.app.state.store
    return page(
        request,
        visitor,
        "arena_list.html",
        tab="/arena",
        status=status,
        message=message,
        failed=failed,
        names=arenas(store),
        sources=kept_figures(request, "sources", lambda: sources(store)),
        live=bool(policies_of(request)),
        typed=typed or {"name": "", "first": "", "second": "", "overlap": "1"},
        most=MOST_OVERLAP,
    )


def _not_now(request: Request, visitor: Visitor, text: str) -> Response | None:
    """What a rater gets who cannot ask now: her standing, her consent, or the page again with what she typed."""
    state, annotator = request.app.state, str(visitor.annotator)
    if not policies_of(request):
        return _ask_page(request, visitor)
    if why := _kept_from_asking(request, visitor):
        return _ask_page(request, visitor, text=text, message=f"{why} What you wrote is still here.", status=409)
    with state.store.connection() as connection:
        held = held_task(connection, annotator, now=state.clock())
        begun = held is not None and (held.reserved_for or read_draft(connection, held.id, annotator))
    if begun:
        message = "You have begun a task. Finish or skip it under Work, then send your question: what you wrote is still here."
        return _ask_page(request, visitor, text=text, message=message, status=409)
    return None


def _kept_from_asking(request: Request, visitor: Visitor) -> str:
    """Why a rater cannot ask at present, in her words; "" = she can."""
    state, annotator = request.app.state, str(visitor.annotator)
    if not consent_of(state.store, visitor.account).ok:
        return "Before you can ask there is a text to agree to, under Work."
    standing = standing_of(state.store, annotator)
    if standing.state == QUARANTINED:
        return "You cannot ask while your work is paused; why it is stands under Me, Standing."
    if standing.state != "working":
        done = standing.attempts_failed and not standing.attempts_left
        return (
            "There is no work for you at the moment."
            if done
            else "Before you can ask, answer the first tasks under Work."
        )
    with state.store.connection() as connection:
        over = over_budget(connection, project_settings(state.store), now=state.clock())
    return "The project hands out no more work for now." if over else ""


def policies_of(request: Request) -> tuple[str, ...]:
    """The names of the two policies that answer raters; () = none do."""
    state = request.app.state
    return state.settings.arena or (tuple(state.samplers)[:2] if len(state.samplers) >= 2 else ())


def _answer(state: Any) -> None:
    with ANSWERING:
        answer_duels(state.store, dict(list(state.samplers.items())[:2]), now=state.clock())
