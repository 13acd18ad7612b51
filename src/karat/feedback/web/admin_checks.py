"""The admin's page of silent checks: gold items and the qualification, how they were answered, adding and retiring.

Knows forms and the template; what an item may say is `karat.feedback.work.check_items`'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from karat.errors import InputError, KaratError
from karat.feedback.documents import QUALIFICATION, document, project_settings
from karat.feedback.web.access import Visitor
from karat.feedback.web.desk import Admin, Sent, done, field_of, kept_figures, note, number_of, page
from karat.feedback.work import checks
from karat.feedback.work.check_items import put_items
from karat.feedback.work.checks import attempts_at, enough_right, gold_items, gold_leaks, retire
from karat.feedback.work.qualifying import failed_tests
from karat.rowfiles import Row, rows_of_text
from karat.stats import wilson

router = APIRouter(include_in_schema=False)
MESSAGES = {
    "gold": "The gold items are in use: {n} of that set. Raters cannot tell them from work.",
    "qualification": "The qualification is in force: whoever has not passed it gets its {n} items first.",
    "retired": "{n} gold items are out of use; the answers to them stay.",
}
MOST_ROWS = 500
"""Gold items on the page, the newest first."""
EMPTY = {"gold_version": "", "gold_items": "", "version": "", "items": "", "mark": "80", "attempts": "2"}


@router.get("/admin/checks")
def checks_page(request: Request, visitor: Admin, done: str = "", n: int = 0) -> Response:
    """Gold items with their answers, the qualification in force, and what to add."""
    return _page(request, visitor, message=MESSAGES.get(done, "").format(n=n))


@router.post("/admin/checks/gold")
def make_gold(request: Request, visitor: Admin, form: Sent) -> Response:
    """Gold items from lines, or from one task whose right answer was chosen on its page."""
    typed = _typed(form)
    store, version = request.app.state.store, typed["gold_version"]
    try:
        items = put_items(store, _rows(form, typed["gold_items"]), version=version)
        n = len(checks.add_gold(store, items, version=version))
    except KaratError as error:
        return _page(request, visitor, typed=typed, status=422, message=str(error), failed=True)
    note(request, visitor, "gold items added", version, f"{n} items")
    return done("/admin/checks", "gold", n=str(n))


@router.post("/admin/checks/qualification")
def make_qualification(request: Request, visitor: Admin, form: Sent) -> Response:
    """A new version of the qualification; what does not fit comes back with a message, nothing typed is lost."""
    typed = _typed(form)
    store, version = request.app.state.store, typed["version"]
    try:
        pass_mark, attempts = _mark(typed["mark"]), _attempts(typed["attempts"])
        made = checks.add_qualification(
            store,
            put_items(store, rows_of_text(typed["items"], "items"), version=version),
            version=version,
            pass_mark=pass_mark,
            attempts=attempts,
            requalify=field_of(form, "requalify") == "yes",
            now=request.app.state.clock(),
        )
    except KaratError as error:
        return _page(request, visitor, typed=typed, status=422, message=str(error), failed=True)
    n = len(made.body["items"][0])
    note(request, visitor, "qualification made", made.version, f"{n} items, pass mark {typed['mark']} %")
    return done("/admin/checks", "qualification", n=str(n))


@router.post("/admin/checks/retire")
def take_out(request: Request, visitor: Admin, form: Sent) -> Response:
    """Take the chosen gold items out of use."""
    wanted = [one for one in form.getlist("task") if isinstance(one, str)]
    store, now = request.app.state.store, request.app.state.clock()
    n = retire(store, {one.task.id for one in gold_items(store)} & set(wanted), now=now)
    note(request, visitor, "gold items retired", f"{n} items")
    return done("/admin/checks", "retired", n=str(n))


def _page(
    request: Request,
    visitor: Visitor,
    *,
    typed: Mapping[str, str] = EMPTY,
    status: int = 200,
    message: str = "",
    failed: bool = False,
) -> Response:
    store = request.app.state.store
    found = list(reversed(gold_items(store)))
    prompts = store.prompts() if found else {}
    test = document(store, QUALIFICATION)
    kept_out = failed_tests(store)
    return page(
        request,
        visitor,
        "admin_checks.html",
        tab="/admin/checks",
        status=status,
        message=message,
        failed=failed,
        gold=[
            (one, prompts[one.task.prompt_id].text, json.dumps(one.expected, ensure_ascii=False),
             wilson(one.n_right, one.n_answers))
            for one in found[:MOST_ROWS]
        ],
        n_gold=len(found),
        n_in_use=sum(one.retired_at is None for one in found),
        leaks=kept_figures(request, "gold leaks", lambda: gold_leaks(store)),
        test=test,
        enough=enough_right(test) if test is not None else 0,
        tried=attempts_at(store, test.version) if test is not None else (0, 0),
        kept_out=kept_out,
        asking=sum(one.asks for one in kept_out),
        rate=project_settings(store).gold_rate,
        typed=typed,
    )  # fmt: skip


def _typed(form: Sent) -> dict[str, str]:
    return {name: field_of(form, name) for name in EMPTY}


def _rows(form: Sent, lines: str) -> list[Row]:
    task = field_of(form, "task")
    if not task:
        return rows_of_text(lines, "items")
    said = field_of(form, "expected")
    return rows_of_text(f'{{"task": {json.dumps(task)}, "expected": {said or "null"}}}', "item")


def _mark(text: str) -> float:
    try:
        return float(text.replace(",", ".")) / 100
    except ValueError:
        raise InputError(f"pass mark: found {text!r}; expected a percentage, such as 80") from None


def _attempts(text: str) -> int:
    found = number_of(text, at_most=20)
    if found is None:
        raise InputError(f"attempts: found {text!r}; expected a whole number from 1 to 20")
    return found
