"""The admin's overview, live; and the gathering of all of the admin's pages.

Knows what stands on the overview. The numbers are `karat.feedback.work.dashboard`'s; the other pages are in modules of
their own, whose routes are taken over here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi import APIRouter
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from karat.feedback.documents import (
    GUIDELINE,
    SETTINGS,
    document,
    documents,
    project_settings,
    put_settings,
    settings_of,
)
from karat.feedback.people import accounts
from karat.feedback.store import Store
from karat.feedback.web import (
    admin_accounts,
    admin_checks,
    admin_documents,
    admin_experiments,
    admin_plan,
    admin_qualification,
    admin_quality,
    admin_queue,
    admin_raters,
    admin_record,
    admin_settings,
    figures,
)
from karat.feedback.web.admin_raters import waiting_for_deletion
from karat.feedback.web.charts import Bar, Whisker, bar_chart, share_bar, whisker_chart
from karat.feedback.web.desk import Admin, Sent, done, field_of, kept_figures, note, page
from karat.feedback.work.dashboard import AgreementRow, QueueRow, agreement_rows, judgements_per_hour, pulse, queue
from karat.feedback.work.gates import over_budget
from karat.feedback.work.outlay import outlay
from karat.feedback.work.qualifying import failed_tests

EVERY_S, MOST_S, ALIVE_S = 2.0, 600.0, 14.0
"""Seconds between two looks at the store, until a connection is renewed (so that its right is checked again), and
between two signs of life where nothing changes."""
MESSAGES = {
    "stopped": "Work is stopped; nobody gets new tasks.",
    "going": "Work is handed out again.",
}

router = APIRouter(include_in_schema=False)


@router.get("/admin")
def overview(request: Request, visitor: Admin, done: str = "") -> Response:
    """How the work goes: progress, queue, agreement, cost."""
    store, now = request.app.state.store, request.app.state.clock()
    settings = project_settings(store)
    with store.connection() as connection:
        spent = over_budget(connection, settings, now=now)
    hours = judgements_per_hour(store, now=now)
    agreement, n_left_out = kept_figures(
        request, "agreement", lambda: agreement_rows(store, store.records(), np.random.default_rng(0))
    )
    beat, rows = pulse(store, now=now), queue(store, now=now)
    return page(
        request,
        visitor,
        "admin_overview.html",
        message=MESSAGES.get(done, ""),
        pulse=beat,
        n_reviews=sum(one.asks for one in failed_tests(store)),
        n_deletions=len(waiting_for_deletion(store)),
        to_begin=[] if beat.n_judgements else to_begin(store, has_questions=bool(rows)),
        hours=hours,
        hours_chart=bar_chart(
            "hours", "Judgements per hour", [Bar(f"{one.hour[11:]}h", one.n, one.hour) for one in hours]
        ),
        queue=[(row, _bar(row, i)) for i, row in enumerate(rows)],
        agreement=agreement,
        agreement_chart=_agreement_chart(agreement),
        n_left_out=n_left_out,
        outlay=outlay(store),
        settings=settings,
        stopped=settings.budget.stopped,
        spent=spent,
    )


def to_begin(store: Store, *, has_questions: bool) -> list[tuple[str, str]]:
    """What a project without an answer still lacks: where it is made ("" = on the terminal), and what to do there."""
    judging = any(one.role in accounts.JUDGING_ROLES for one in accounts.accounts(store))
    steps = [
        (has_questions, "", "Put questions in: karat collect, karat import, or the API."),
        (
            document(store, GUIDELINE) is not None,
            "/admin/documents/guideline",
            "Write the guideline that raters judge by.",
        ),
        (judging, "/admin/accounts", "Make a link for each rater, and give it to her."),
    ]
    return [(address, what) for there, address, what in steps if not there]


@router.get("/admin/events")
async def events(request: Request, _: Admin) -> Response:
    """The overview's figures as server-sent events, from the database: any worker can send them."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(pulses(request), media_type="text/event-stream", headers=headers)


async def pulses(request: Request, *, every_s: float = EVERY_S, most_s: float = MOST_S) -> AsyncIterator[str]:
    """An event whenever the figures differ, a sign of life where they do not, until `most_s` have passed."""
    state = request.app.state
    last: dict[str, Any] | None = None
    silent_s = 0.0
    yield "retry: 3000\n\n"
    for _ in range(max(1, round(most_s / every_s))):
        found = await run_in_threadpool(live_figures, state.store, now=state.clock())
        news = {name: value for name, value in found.items() if name != "at"}
        if news != last:
            last, silent_s = news, 0.0
            yield f"event: pulse\ndata: {json.dumps(found)}\n\n"
        elif silent_s >= ALIVE_S:
            silent_s = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(every_s)
        silent_s += every_s


def live_figures(store: Store, *, now: float) -> dict[str, Any]:
    """The overview's changing figures, as plain JSON."""
    found = dataclasses.asdict(pulse(store, now=now))
    at = found.pop("at")
    rows = []
    for row in queue(store, now=now):
        cells = {name: getattr(row, name) for name in CELLS}
        rows.append(
            {"key": queue_key(row), "share": row.share_done or 0.0, "done": figures.percent(row.share_done), **cells}
        )
    hours = [dataclasses.asdict(hour) for hour in judgements_per_hour(store, now=now)]
    return {"at": figures.moment(at), "figures": found, "hours": hours, "queue": rows}


CELLS = ("n_open", "n_pulled", "n_answers", "n_needed", "n_held", "n_skipped")
"""Columns of the queue that change while one looks."""


def queue_key(row: QueueRow) -> str:
    """By which a line of the queue is found on the page."""
    return f"{row.batch}|{row.kind}|{row.stratum}|{row.audience}"


@router.post("/admin/stop")
def stop(request: Request, visitor: Admin, form: Sent) -> Response:
    """Stop handing out work, or go on: a new version of the settings, with the limit that held before."""
    store, now = request.app.state.store, request.app.state.clock()
    settings = project_settings(store)
    if field_of(form, "to") == "stop":
        put_settings(
            store, dataclasses.replace(settings, budget=dataclasses.replace(settings.budget, judgements=0)), now=now
        )
        note(request, visitor, "work stopped", "budget")
        return done("/admin", "stopped")
    budget = dataclasses.replace(settings.budget, judgements=_limit_before(store))
    put_settings(store, dataclasses.replace(settings, budget=budget), now=now)
    note(request, visitor, "work resumed", "budget")
    return done("/admin", "going")


def _limit_before(store: Store) -> int | None:
    limits = [settings_of(one.body).budget.judgements for one in documents(store, SETTINGS)]
    return next((limit for limit in reversed(limits) if limit != 0), None)


def _bar(row: QueueRow, i: int) -> str:
    return share_bar(f"done-{i}", f"Done in {row.batch}", row.share_done)


def _agreement_chart(rows: list[AgreementRow]) -> str:
    if all(row.by_item.value is None for row in rows):
        return ""  # the table says why; an empty chart says nothing
    shown = [Whisker(f"{row.about}, {row.coefficient}", row.by_item) for row in rows]
    return whisker_chart("agreement", "Agreement between raters", shown, low=-0.2, high=1.0, reference=0.0)


# the routes themselves, so that the app sees each of them with what it declares
for _part in (
    admin_accounts, admin_checks, admin_documents, admin_experiments, admin_plan,
    admin_qualification, admin_quality, admin_queue, admin_raters,
    admin_record, admin_settings,
):  # fmt: skip
    router.routes.extend(_part.router.routes)
