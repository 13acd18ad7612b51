"""The pages on which raters work: the next task, its answer, drafts, skipping, undo.

Everything works by plain forms; scripts send the same forms and ask for JSON. Knows requests and leases; what a page
says is in `task_view`, what a form means in `forms`.
"""

from __future__ import annotations

import datetime
import functools
import uuid
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import JSONResponse, RedirectResponse, Response
from markupsafe import Markup
from starlette.datastructures import FormData
from starlette.requests import Request

from karat.errors import AnsweredError, LeaseError, StoreError
from karat.feedback import documents
from karat.feedback.people import care, drafts
from karat.feedback.people.own_record import OwnProgress
from karat.feedback.people.standing import standing_of
from karat.feedback.people.studies import way_out
from karat.feedback.web import forms, page_record, person_pages, task_view
from karat.feedback.web.access import PUBLIC, Visitor, needs, sent_form
from karat.feedback.web.failures import wants_json
from karat.feedback.web.lanes import QuickRoute
from karat.feedback.web.rendering import is_long, markdown_html
from karat.feedback.web.task_view import covered_excerpt
from karat.feedback.web.templates import environment, render
from karat.feedback.work import assignment, sitting
from karat.feedback.work.answering import Given, Work, submit_work, work_of
from karat.questions import Question

router = APIRouter(include_in_schema=False, route_class=QuickRoute)
Guest = Annotated[Visitor | None, Depends(PUBLIC)]
Rater = Annotated[Visitor, Depends(needs("annotator", "expert"))]
Sent = Annotated[FormData, Depends(sent_form)]

SKIP_REASONS = {
    "cannot": "I do not know enough about this",
    "unclear": "The question is unclear",
    "broken": "A text is broken or unreadable",
    "upsetting": "I would rather not read this",
    "other": "Another reason",
}
"""Reasons to skip, by what is stored."""
LONG_ANSWER = 200
"""Characters of typed words beyond which skipping is asked back once."""
CHANGED = (
    "The way this is asked has changed since you opened it. Reload the page and choose again; what you wrote is kept."
)
"""Said where an answer was given to an older form of the question."""
HOMES = {"admin": "/admin", "auditor": "/audit"}
CONFIRMATIONS = {
    "fast": "That was very quick for texts of this length. If you have read them, submit once more.",
    "unchanged": "You have not changed the text. If it is right as it stands, submit once more.",
    "again": "You have given another answer to this already, perhaps in another window. If this one is to take its place, "
    "submit once more; to keep the earlier one, leave this page.",
    "skip": "You have written something. If you skip, it is not handed in. To skip all the same, press Skip once more.",
}
"""What is asked back, once, before something unusual is done."""


@router.get("/")
def home(request: Request, visitor: Guest) -> Response:
    """Where everybody starts."""
    if visitor is None:
        return RedirectResponse("/login", 303)
    if visitor.role in HOMES:
        return RedirectResponse(HOMES[visitor.role], 303)
    state = request.app.state
    standing = standing_of(state.store, annotator_of(visitor))
    found = _beside(request, visitor)
    project = found.project
    if project.arm_changes:
        project = care.settings_for(state.store, annotator_of(visitor), now=state.clock())
    said = {"progress": found.progress, "reason": found.reason, "qualifying": found.qualifying}
    return render(request, "rater_home.html", visitor, standing=standing, project=project, **said)


@router.get("/work")
def work_page(request: Request, visitor: Rater) -> Response:
    """The task in hand, else the next one, else why there is none."""
    state, annotator = request.app.state, annotator_of(visitor)
    found = sitting.sit_down(state.store, annotator, now=state.clock())
    work, draft, reason = found.work, found.draft, found.offer.reason
    if work is None:
        elsewhere = {"consent": "/consent", "quarantined": "/standing"}.get(reason)
        return RedirectResponse(elsewhere, 303) if elsewhere else _nothing_left(request, visitor, reason, found.beside)
    if draft is None:
        return _page(request, visitor, work, forms.first_fields(_asked(work)), beside=found.beside)
    fields = _kept_fields(draft.body)
    return _page(request, visitor, work, fields, beside=found.beside, saved_at=draft.saved_at)


@router.post("/work")
def submit(request: Request, visitor: Rater, form: Sent) -> Response:
    """Take an answer; what does not fit comes back with a message and everything that was entered."""
    state, fields = request.app.state, fields_from(form)
    annotator = annotator_of(visitor)
    found = sitting.receive(state.store, _one(fields, "lease"), annotator, visitor.account)
    if not found.consents:
        raise HTTPException(403, "You have not agreed to the consent text, or took it back; nothing was stored.")
    work = found.work
    answer = forms.answer_of(_asked(work), fields)
    messages, value = dict(answer.messages), answer.value
    if value is not None and "missing" not in value and _covered(work, fields):
        messages = {"uncovered": "Uncover the texts before you judge them, or skip this one."}
    if _one(fields, "asked") not in ("", task_view.form_key(work.lease_id, work.question, work.guideline)):
        # an experiment or guideline was changed while she read: her choice may mean something else on the new scale
        fields = {name: values for name, values in fields.items() if name not in ("choice", "asked", "way")}
        return _refuse(request, visitor, work, fields, {"choice": CHANGED})
    if value is None or messages:
        return _refuse(request, visitor, work, fields, messages)
    if question := _asks_back(work, answer, fields):
        return _ask_back(request, visitor, work, fields, question)
    try:
        submit_work(state.store, work, _given(found, fields, answer), now=state.clock())
    except AnsweredError:
        # under a key of its own: the key of this page may be that of the other answer
        return _ask_back(request, visitor, work, {**fields, "submission": [str(uuid.uuid4())]}, "again")
    except LeaseError:
        raise
    except StoreError as error:
        if error.__cause__ is not None:
            raise
        return _refuse(request, visitor, work, fields, {"": str(error)}, status=409)
    return _go(request, "/work", state="stored", lease=work.renewed_as or work.lease_id)


@router.post("/work/skip")
def skip(request: Request, visitor: Rater, form: Sent) -> Response:
    """Give the task back for good."""
    state, fields = request.app.state, fields_from(form)
    annotator = annotator_of(visitor)
    work = work_of(state.store, _one(fields, "lease"), annotator)
    reason = _one(fields, "skip_reason")
    if reason not in SKIP_REASONS:
        return _refuse(request, visitor, work, fields, {"skip_reason": "Say why you skip it."})
    typed = len(_one(fields, "text")) + len(_one(fields, "reason"))
    fresh = forms.first_fields(_asked(work)).get("text", [""])[0]
    if forms.as_sent(_one(fields, "text")) == forms.as_sent(fresh):
        typed -= len(_one(fields, "text"))
    if typed > LONG_ANSWER and _one(fields, "confirm") != "skip":
        return _ask_back(request, visitor, work, fields, "skip")
    assignment.skip(state.store, work.lease_id, annotator, reason=SKIP_REASONS[reason], now=state.clock())
    return _go(request, "/work", state="skipped")


@router.post("/work/draft")
def save_draft(request: Request, visitor: Rater, form: Sent) -> Response:
    """Keep what was entered so far."""
    state, fields = request.app.state, fields_from(form)
    work = work_of(state.store, _one(fields, "lease"), annotator_of(visitor))
    kept = {name: values for name, values in fields.items() if name not in _NOT_KEPT}
    saved = drafts.save_draft(state.store, work.task.id, work.annotator, {"fields": kept}, now=state.clock())
    return _go(request, "/work", saved_at=saved.saved_at)


@router.post("/work/heartbeat")
def heartbeat(request: Request, visitor: Rater, form: Sent) -> Response:
    """Somebody is still at it: the task stays hers a while longer."""
    state = request.app.state
    lease = _one(fields_from(form), "lease")
    until = assignment.heartbeat(state.store, lease, annotator_of(visitor), now=state.clock())
    return JSONResponse({"expires_at": until})


@router.get("/work/undo")
def undo(request: Request, visitor: Rater) -> Response:
    """To the last answer that can still be changed."""
    last = _changeable(request, visitor)
    return RedirectResponse(f"/work/change/{last[0].record.id}" if last else "/work/history", 303)


@router.get("/work/change/{judgement}")
def change_page(request: Request, visitor: Rater, judgement: str) -> Response:
    """The task of an earlier answer again, with that answer."""
    found = [each for each in _changeable(request, visitor) if each.record.id == judgement]
    if not found:
        raise HTTPException(404, "There is no answer of yours by that name that can still be changed.")
    given = found[0].record.judgement
    work = work_of(request.app.state.store, str(found[0].lease_id), annotator_of(visitor))
    fields = forms.fields_of(_asked(work), given.value, given.reason)
    if work.question.content_warning:
        fields = {**fields, "uncovered": ["1"]}
    return _page(request, visitor, work, fields, supersedes=judgement)


@router.get("/work/history")
def history_page(request: Request, visitor: Rater) -> Response:
    """The last answers, and which of them can still be changed."""
    store = request.app.state.store
    found = drafts.history(store, annotator_of(visitor), 20, sealed=True)
    prompts = {each.record.id: _excerpt(store, each.lease_id, annotator_of(visitor)) for each in found}
    changeable = {each.record.id for each in _changeable(request, visitor)}
    values = {"found": found, "prompts": prompts, "changeable": changeable}
    return render(request, "rater_history.html", visitor, project=documents.project_settings(store), **values)


def annotator_of(visitor: Visitor) -> str:
    """The pseudonym of somebody who judges. Raises: HTTPException 403 for an account without one."""
    if visitor.annotator is None:
        raise HTTPException(403, "This account does not judge.")
    return visitor.annotator


def fields_from(form: FormData) -> dict[str, list[str]]:
    """Text fields of a form, each with all its values; files are not asked for and not read."""
    fields: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields.setdefault(name, []).append(value)
    return fields


_NOT_KEPT = ("csrf", "lease", "submission", "supersedes", "confirm", "way", "asked")


def _page(
    request: Request,
    visitor: Visitor,
    work: Work,
    fields: forms.Fields,
    *,
    beside: sitting.Beside | None = None,
    supersedes: str = "",
    status: int = 200,
    saved_at: float | None = None,
    **said: Any,
) -> Response:
    """The page of a task; what stands beside it is read unless it is given."""
    beside = beside or _beside(request, visitor, work)
    view = task_view.TaskView(
        lease=work.lease_id,
        submission=_one(fields, "submission") or str(uuid.uuid4()),
        supersedes=supersedes,
        question=work.question,
        turns=task_view.shown_turns(work.prompt),
        long_prompt=is_long(work.prompt.text),
        candidates=task_view.shown_candidates(work.question, work.responses, work.order),
        guideline=work.guideline,
        tie_apart=work.change.tie == "apart",
        stacked=work.change.layout == "stacked",
        fields=fields,
        saved_at=_clock(saved_at),
        **said,
    )
    controls, foot, key_sheet = _fixed(view.question, len(view.candidates), view.tie_apart)
    fresh = not (view.fields or view.messages or view.confirm or view.supersedes)
    guideline, examples, progress = beside.guideline, beside.examples, beside.progress
    values: dict[str, Any] = {
        "guideline": markdown_html(guideline.text if guideline else _NO_GUIDELINE),
        "guideline_version": guideline.version if guideline else "",
        "examples": markdown_html(examples.text) if examples else "",
        "progress": _progress_words(progress),
        "can_undo": progress.n_done > 0 and beside.project.undo_n > 0,
        "who": work.annotator,
        "login": visitor.login,
        "saved_epoch": saved_at or 0,
        "controls": controls if fresh else "",
        "foot": foot if fresh else "",
        "key_sheet": key_sheet,
        "skip_reasons": SKIP_REASONS,
        "once_more": work.attempt > 1,
    }
    return render(request, "work.html", visitor, status=status, view=view, project=beside.project, **values)


@functools.lru_cache(maxsize=64)
def _fixed(question: Question, n: int, tie_apart: bool) -> tuple[Markup, Markup, Markup]:
    """What does not depend on what was entered: the controls and the foot of a fresh page, and the sheet of keys."""
    kinds = environment().get_template("work_kinds.html").module
    view = task_view.blank_view(question, n, tie_apart=tie_apart)
    return kinds.controls(view), kinds.foot(view, SKIP_REASONS), kinds.key_sheet(view)  # type: ignore[attr-defined]


_NO_GUIDELINE = "No guideline has been written for this yet. Judge as you think best, and say why."


def _refuse(
    request: Request, visitor: Visitor, work: Work, fields: forms.Fields, messages: Mapping[str, str], *,
    status: int = 422,
) -> Response:  # fmt: skip
    if wants_json(request):
        lease = work.renewed_as or work.lease_id
        return JSONResponse({"state": "refused", "messages": dict(messages), "lease": lease}, 422)
    supersedes = _one(fields, "supersedes")
    return _page(request, visitor, work, fields, supersedes=supersedes, status=status, messages=messages)


def _ask_back(request: Request, visitor: Visitor, work: Work, fields: forms.Fields, question: str) -> Response:
    if wants_json(request):
        lease = work.renewed_as or work.lease_id
        body = {"state": "confirm", "confirm": question, "message": CONFIRMATIONS[question], "lease": lease}
        body["submission"] = _one(fields, "submission")
        return JSONResponse(body, 409)
    messages = {"": CONFIRMATIONS[question]}
    supersedes = _one(fields, "supersedes")
    return _page(request, visitor, work, fields, supersedes=supersedes, status=409, messages=messages, confirm=question)


def _asks_back(work: Work, answer: forms.Answer, fields: forms.Fields) -> str:
    confirmed = set(fields.get("confirm", ()))
    if "again" in confirmed:  # asked last
        return ""
    if answer.unchanged and "unchanged" not in confirmed:
        return "unchanged"
    missing = answer.value is None or "missing" in answer.value
    active_s = page_record.seconds(fields, "active_s")
    if not missing and not confirmed and task_view.too_fast(active_s, work.prompt, work.responses):
        return "fast"
    return ""


def _given(found: sitting.Received, fields: forms.Fields, answer: forms.Answer) -> Given:
    shown = page_record.shown_record(
        found.work, fields, arms=found.work.arms, locale=found.project.locale, guideline=found.guideline
    )
    return Given(
        value=answer.value or {},
        key=_one(fields, "submission")[:100] or str(uuid.uuid4()),
        reason=answer.reason,
        active_s=page_record.seconds(fields, "active_s"),
        idle_s=page_record.seconds(fields, "idle_s"),
        shown=shown,
        supersedes=_one(fields, "supersedes") or None,
        replaces="again" in fields.get("confirm", ()),
    )


def _go(request: Request, to: str, **said: Any) -> Response:
    return JSONResponse({"next": to, **said}) if wants_json(request) else RedirectResponse(to, 303)


def _nothing_left(request: Request, visitor: Visitor, reason: str, beside: sitting.Beside) -> Response:
    progress = beside.progress
    found_none = reason in ("nothing left", "budget") and not (progress.n_done or progress.n_skipped)
    end = "screened" if reason == "not qualified" else "no work" if found_none else "completed"
    out = way_out(request.app.state.store, visitor.account, end)
    values = {"reason": reason, "progress": progress, "out": out}
    return render(request, "rater_done.html", visitor, project=beside.project, **values)


def _beside(request: Request, visitor: Visitor, work: Work | None = None) -> sitting.Beside:
    state = request.app.state
    return sitting.beside(state.store, annotator_of(visitor), work, now=state.clock())


def _progress_words(progress: OwnProgress) -> str:
    words = f"{progress.n_today} today · {progress.left} left"
    seconds = progress.seconds_left
    return words if seconds is None else f"{words} · {max(5, round(seconds / 300) * 5)} min"


def _changeable(request: Request, visitor: Visitor) -> list[drafts.Submitted]:
    store = request.app.state.store
    n = documents.project_settings(store).undo_n
    return [each for each in drafts.history(store, annotator_of(visitor), n) if each.lease_id is not None]


def _excerpt(store: Any, lease_id: str | None, annotator: str) -> str:
    work = None if lease_id is None else work_of(store, lease_id, annotator)
    return "" if work is None else covered_excerpt(work.question, work.prompt.turns[-1].content[:200])


def _asked(work: Work) -> forms.Asked:
    return forms.Asked(work.question, work.texts, work.order)


def _covered(work: Work, fields: forms.Fields) -> bool:
    return bool(work.question.content_warning) and "1" not in fields.get("uncovered", ())


def _kept_fields(body: Mapping[str, Any]) -> dict[str, list[str]]:
    """The fields of a draft, whoever wrote it."""
    found = body.get("fields", {})
    if not isinstance(found, Mapping):
        return {}
    return {
        str(name): [value for value in values if isinstance(value, str)]
        for name, values in found.items()
        if isinstance(values, list)
    }


def _clock(at: float | None) -> str:
    return "" if at is None else datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%H:%M:%S UTC")


def _one(fields: forms.Fields, name: str) -> str:
    return (fields.get(name) or ("",))[0]


# one address space: whoever serves this serves both, and what is asked most is tried first
router.routes.extend(person_pages.router.routes)
