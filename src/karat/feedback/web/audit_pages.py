"""The auditor's pages: every judgement under a pseudonym, slices of who judged, the seals, and the bundle to take away.

Nothing here changes anything: there is no form that posts. Names of raters, accounts and submissions never reach these
pages. Knows requests and templates; the queries are `karat.feedback.record.auditing`'s.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, Response
from starlette.background import BackgroundTask
from starlette.requests import Request

from karat.feedback.documents import question_of, questions
from karat.feedback.keys import secret_key
from karat.feedback.people.who_judged import LEAST, said_mark, slice_tables
from karat.feedback.record.auditing import FILTERS, AuditRow, Pseudonyms, audited, browse, filter_choices
from karat.feedback.record.bundle import write_bundle
from karat.feedback.record.seals import sealed_through, seals
from karat.feedback.web import figures
from karat.feedback.web.access import Visitor, needs
from karat.feedback.web.answer_words import answer_words
from karat.feedback.web.desk import Tabs, kept_figures, number_of, page
from karat.feedback.web.task_view import shown_candidates, shown_turns
from karat.questions import Question, plain_question

TABS: Tabs = (("/audit", "Judgements"), ("/audit/slices", "Who judged"), ("/audit/record", "Record"))
KEY = "auditor"
"""Name of the store's key behind the pseudonyms."""
BUNDLE = "karat-bundle"
"""Name of the directory in the archive."""

router = APIRouter(include_in_schema=False)
Reader = Annotated[Visitor, Depends(needs("auditor", "admin"))]


@router.get("/audit")
def judgement_list(request: Request, visitor: Reader, before: str = "") -> Response:
    """Judgements, newest first, by the filters of the list."""
    store = request.app.state.store
    filters = {name: request.query_params.get(name, "") for name in FILTERS}
    found = browse(store, pseudonyms_of(request, visitor), filters, before=number_of(before))
    asked = questions(store, ids={row.question for row in found.rows if row.question})
    older = urlencode({**{name: value for name, value in filters.items() if value}, "before": found.older or ""})
    return page(
        request,
        visitor,
        "audit_list.html",
        tabs=TABS,
        tab="/audit",
        section="Audit",
        rows=[(row, _listed_words(row, asked)) for row in found.rows],
        n_matching=found.n_matching,
        older=f"?{older}" if found.older else "",
        filters=filters,
        choices=kept_figures(request, "audit choices", lambda: filter_choices(store)),
        sealed=sealed_through(store),
    )


@router.get("/audit/judgement")
def one_judgement(request: Request, visitor: Reader, id: str) -> Response:
    """One judgement with what was shown."""
    store = request.app.state.store
    row = audited(store, pseudonyms_of(request, visitor), id)
    judgement = row.record.judgement
    task = next(one for one in store.tasks(batch=row.batch) if one.id == judgement.task_id)
    question, known = question_of(store, task), store.responses()
    responses = [known[one] for one in judgement.response_ids]
    order = judgement.shown_order or tuple(range(len(responses)))
    texts = [response.text for response in responses]
    return page(
        request,
        visitor,
        "audit_judgement.html",
        tabs=TABS,
        tab="/audit",
        section="Audit",
        row=row,
        judgement=judgement,
        words=answer_words(question, judgement.value, order, texts),
        value=_plain_value(row),
        shown=json.dumps(dict(judgement.shown), indent=2, ensure_ascii=False, sort_keys=True),
        question=question,
        turns=shown_turns(store.prompts()[judgement.prompt_id]),
        candidates=[
            (candidate, responses[order[candidate.position]].source)
            for candidate in shown_candidates(question, responses, order)
        ],
        sealed=row.seq <= sealed_through(store),
    )


@router.get("/audit/slices")
def slices_page(request: Request, visitor: Reader) -> Response:
    """Who judged, as tables in which no small group can be seen, not even by subtraction."""
    store = request.app.state.store
    tables = kept_figures(request, "slices", lambda: slice_tables(store), key=said_mark(store))
    return page(request, visitor, "audit_slices.html", tabs=TABS, section="Audit", tables=tables, least=LEAST)


@router.get("/audit/record")
def record_page(request: Request, visitor: Reader, verify: str = "") -> Response:
    """The seals; whether everything is as it was sealed, where that is asked for."""
    store = request.app.state.store
    found = seals(store)
    problems = store.verify() if verify else []  # never from memory: what was altered moves no counter
    message = ""
    if verify:
        message = (
            f"{figures.counted(len(problems), 'problem was', 'problems were')} found."
            if problems
            else "Everything is as it was submitted and sealed."
        )
    return page(
        request,
        visitor,
        "audit_record.html",
        tabs=TABS,
        section="Audit",
        message=message,
        failed=bool(problems),
        seals=list(reversed(found)),
        problems=problems,
        n_judgements=store.n_judgements(),
    )


@router.get("/audit/bundle")
def bundle(request: Request, _: Reader) -> Response:
    """The whole record without texts, words and names, as an archive."""
    state = request.app.state
    folder = Path(tempfile.mkdtemp(prefix="karat-bundle-"))
    try:
        write_bundle(state.store, folder / BUNDLE, now=state.clock())
        archive = shutil.make_archive(str(folder / "archive"), "zip", folder, BUNDLE)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    swept = BackgroundTask(shutil.rmtree, folder, ignore_errors=True)
    return FileResponse(archive, media_type="application/zip", filename=f"{BUNDLE}.zip", background=swept)


def pseudonyms_of(request: Request, visitor: Visitor) -> Pseudonyms:
    """The names that raters have in this sitting: other ones in the next."""
    return Pseudonyms(secret_key(request.app.state.store, KEY), visitor.csrf)


def _plain_value(row: AuditRow) -> str:
    return json.dumps(dict(row.record.judgement.value), ensure_ascii=False, sort_keys=True)


def _listed_words(row: AuditRow, asked: Mapping[str, Question]) -> str:
    """What a row of the list says: the words of the judgement's own page, but nothing quoted, for that takes the texts."""
    judgement = row.record.judgement
    question = asked.get(row.question) if row.question else plain_question(judgement.kind)
    if question is None:  # a damaged store; what is stored can be read all the same
        return _plain_value(row)
    order = judgement.shown_order or tuple(range(len(judgement.response_ids)))
    return answer_words(question, judgement.value, order)
