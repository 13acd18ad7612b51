"""The admin's pages about raters: the evidence about each, flags to review, quarantine and release.

A program finds, a person decides, says why, and the rater reads it. Knows forms and templates; the evidence is
`karat.feedback.quality.rater_health`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fastapi import APIRouter, HTTPException
from fastapi.responses import Response
from starlette.requests import Request

from karat.errors import KaratError
from karat.feedback.detect.detectors import battery
from karat.feedback.detect.evidence import MIN_VOTES, Flag, vote_record
from karat.feedback.documents import project_settings
from karat.feedback.people import accounts, standing
from karat.feedback.people.own_record import DELETION
from karat.feedback.people.sessions import shared_origins
from karat.feedback.quality import rater_health
from karat.feedback.quality.rater_health import RaterHealth
from karat.feedback.record.erasure import ERASED, Fed, erase_annotator, erase_from_snapshots, fed_artefacts
from karat.feedback.schema import UNKNOWN_ANNOTATOR
from karat.feedback.snapshot import current_judgements
from karat.feedback.store import Store
from karat.feedback.web import figures
from karat.feedback.web.access import Visitor
from karat.feedback.web.background import Background
from karat.feedback.web.charts import Whisker, whisker_chart
from karat.feedback.web.desk import Admin, Sent, done, field_of, kept_figures, note, page
from karat.feedback.work.dashboard import DISMISSAL
from karat.feedback.work.qualifying import failed_tests
from karat.feedback.work.rates import own_pay
from karat.ledger.manifest import runs_within

MESSAGES = {
    "quarantined": "She is in quarantine: she reads the reason, can answer it, and gets no tasks until you release her.",
    "released": "She is released: she works again, and what she judged counts again.",
    "dismissed": "The flags are dismissed; they stay on record.",
    "upheld": "The quarantine stands; she reads your reply.",
    "erased": "Her words, and whatever led from the pseudonym to a person, are deleted; the record still verifies.",
}
MOST_ROWS = 500
"""Raters on the page; the ones to look at come first."""
MOST_BARS = 40
"""Raters in the chart."""
MOST_LOGGED = 20_000
"""Entries of the log that are looked through for what was asked and decided about raters."""
EMPTY = {"reason": "", "erase_reason": "", "pseudonym": ""}
"""The forms of a rater's page before anything is typed."""

router = APIRouter(include_in_schema=False)


@router.get("/admin/raters")
def rater_list(request: Request, visitor: Admin, done: str = "", n: int = 0) -> Response:
    """The evidence about every rater."""
    evidence = evidence_of(request)
    rows = evidence.rows
    said = (
        f"{figures.counted(n, 'new flag')}; those on raters with fewer than {MIN_VOTES} votes are not raised at all."
        if n
        else ""
    )
    message = MESSAGES.get(done, "") or ((said or "No new flag: nothing stood out.") if done == "checked" else "")
    return page(
        request,
        visitor,
        "admin_raters.html",
        message=message,
        evidence=evidence,
        rows=rows[:MOST_ROWS],
        n_rows=len(rows),
        chart=_side_chart(rows),
        asked=waiting_for_deletion(request.app.state.store),
        unqualified={one.annotator for one in failed_tests(request.app.state.store)},
        least=MIN_VOTES,
    )


@router.post("/admin/raters/check")
def check_raters(request: Request, visitor: Admin) -> Response:
    """Run the detectors now, and record what they find for review."""
    store, now = request.app.state.store, request.app.state.clock()
    n = standing.record_flags(store, run_detectors(store), now=now)
    note(request, visitor, "detectors run", "raters", f"{n} new flags")
    return done("/admin/raters", "checked", n=str(n))


@router.get("/admin/rater")
def rater_page(request: Request, visitor: Admin, who: str, done: str = "", fed: str = "") -> Response:
    """Everything about one rater, and what can be done; on request, which artefacts fed on her answers."""
    return _one(request, visitor, who, message=MESSAGES.get(done, ""), with_fed=bool(fed))


@router.post("/admin/rater")
def decide(request: Request, visitor: Admin, form: Sent) -> Response:
    """Quarantine, release, uphold a quarantine, or dismiss the flags of a rater; each with a reason."""
    store, now = request.app.state.store, request.app.state.clock()
    who, to, reason = (field_of(form, name) for name in ("who", "to", "reason"))
    _find(health_rows(request), who)
    by, typed = visitor.account, {"reason": reason}
    try:
        if to == "quarantined":
            standing.quarantine(store, who, reason=reason, by=by, now=now)
        elif to == "released":
            standing.release(store, who, reason=reason, by=by, now=now)
        elif to == "upheld":
            _uphold(store, who, reason, by=by, now=now)
        elif to == "dismissed" and reason:
            note(request, visitor, DISMISSAL, who, reason)
        else:
            message = "Give a reason; it stays on record."
            return _one(request, visitor, who, status=422, message=message, failed=True, typed=typed)
    except KaratError as error:
        return _one(request, visitor, who, status=422, message=str(error), failed=True, typed=typed)
    if to != "dismissed":
        note(request, visitor, f"rater {to}", who, reason)
    return done("/admin/rater", to, who=who)


@router.post("/admin/rater/erase")
def erase(request: Request, visitor: Admin, form: Sent) -> Response:
    """Delete a person's data on request: whoever does it types the pseudonym, because nothing brings the words back."""
    store, now = request.app.state.store, request.app.state.clock()
    who, pseudonym, reason = (field_of(form, name) for name in ("who", "typed", "reason"))
    typed = {"pseudonym": pseudonym, "erase_reason": reason}
    _find(health_rows(request), who)
    if pseudonym != who or not reason:
        message = "Nothing was deleted: type the pseudonym as it stands above, and give the reason."
        return _one(request, visitor, who, status=422, message=message, failed=True, typed=typed)
    try:
        erased = erase_annotator(store, who, reason=reason, by=visitor.account, now=now, runs=_runs(request))
        erase_from_snapshots(erased.artefacts, erased.judgement_ids, reason=reason, now=now)
    except KaratError as error:
        return _one(request, visitor, who, status=422, message=str(error), failed=True, typed=typed)
    return done("/admin/rater", "erased", who=who, fed="show")


def _runs(request: Request) -> list[Path]:
    """The directories that hold runs by now: one that is served before its first stage ends is none yet."""
    return [path for path in map(Path, request.app.state.settings.runs) if runs_within(path)]


def _fed(request: Request, who: str) -> tuple[Fed, ...]:
    """What fed on a rater's answers in the runs that this server knows."""
    ids = [one.id for one in request.app.state.store.records() if one.judgement.annotator == who]
    return fed_artefacts(_runs(request), ids)


@dataclass(frozen=True)
class Evidence:
    """The evidence about every rater, and what it is of."""

    rows: list[RaterHealth]
    """Those to look at first."""
    as_of: float | None = None
    """Where it is made beside the pages: when that began, seconds since the epoch; None = it is of now."""
    n: int = 0
    """Judgements that it is of."""
    making: bool = False
    """True = newer evidence is on its way."""


def evidence_of(request: Request) -> Evidence:
    """The evidence as this worker last made it, and where each rater stands now.

    Above `MOST_AT_ONCE` judgements it is made beside the pages; before the first is there, raters stand without any.
    """
    state = request.app.state
    store, n = state.store, state.store.n_judgements()
    if n <= rater_health.MOST_AT_ONCE:
        rows = kept_figures(request, "raters", lambda: rater_health.rater_health(store, store.records()))
        return Evidence(rater_health.with_standing(store, rows))
    if getattr(state, "background", None) is None:
        state.background = Background()
    made = state.background.get("rater evidence", n, lambda: rater_health.rater_health(store, store.records()),
                                now=state.clock())  # fmt: skip
    rows = rater_health.with_standing(store, made.value if made else [])
    making = state.background.is_making("rater evidence")
    return Evidence(rows, made.at if made else None, made.mark if made else 0, making)


def health_rows(request: Request) -> list[RaterHealth]:
    """The rows of `evidence_of`."""
    return evidence_of(request).rows


def run_detectors(store: Store, *, seed: int = 0) -> tuple[Flag, ...]:
    """The whole battery on the comparisons that count now, raters without a name left out."""
    current = [record.judgement for record in current_judgements(store.records())[0]]
    named = [one for one in current if one.annotator != UNKNOWN_ANNOTATOR]
    origin = {who: address for address, names in shared_origins(store) for who in names}
    record = vote_record(
        named,
        store.responses(),
        topics={key: prompt.topic or "" for key, prompt in store.prompts().items()},
        pasted={one.submission: bool(one.shown["pasted"]) for one in named if "pasted" in one.shown},
        devices={one.submission: origin[one.annotator] for one in named if one.annotator in origin},
    )
    return battery(record, np.random.default_rng(seed)) if len(record) else ()


def _uphold(store: Store, who: str, reason: str, *, by: str, now: float) -> None:
    """A reply to her answer: the same event once more, with the reason that she reads."""
    if who not in standing.quarantined(store):
        standing.release(store, who, reason=reason, by=by, now=now)  # raises: there is nothing to uphold
    words = reason.strip() or "The quarantine stands."
    store.write(lambda connection: standing.write_event(connection, who, standing.QUARANTINED, words, by=by, now=now))


def _one(
    request: Request,
    visitor: Visitor,
    who: str,
    *,
    status: int = 200,
    message: str = "",
    failed: bool = False,
    with_fed: bool = False,
    typed: Mapping[str, str] = EMPTY,
) -> Response:
    store = request.app.state.store
    evidence = evidence_of(request)
    row = _find(evidence.rows, who)
    stands = standing.standing_of(store, who)
    logged = [one for one in accounts.log_entries(store, MOST_LOGGED) if one.subject == who]
    return page(
        request,
        visitor,
        "admin_rater.html",
        tab="/admin/raters",
        status=status,
        message=message,
        failed=failed,
        row=row,
        evidence=evidence,
        events=list(reversed(stands.events)),
        qualified=stands.qualified or not stands.attempts_failed,
        dismissals=[one for one in logged if one.action == DISMISSAL],
        account=accounts.account_by_annotator(store, who),
        asked=next((one.at for one in logged if one.action == DELETION), None),
        erased=next((one.at for one in logged if one.action == ERASED), None),
        chart=_evidence_chart(row),
        earned=own_pay(store, who),
        currency=pay.currency if (pay := project_settings(store).pay) else "",
        least=MIN_VOTES,
        runs=request.app.state.settings.runs,
        fed=_fed(request, who) if with_fed else None,
        typed={**EMPTY, **typed},
    )


def waiting_for_deletion(store: Store) -> set[str]:
    """Raters who asked for deletion after they were last erased, if ever."""
    last: dict[str, str] = {}
    for entry in reversed(accounts.log_entries(store, MOST_LOGGED)):
        if entry.action in (DELETION, ERASED):
            last[entry.subject] = entry.action
    return {who for who, action in last.items() if action == DELETION}


def _find(rows: list[RaterHealth], who: str) -> RaterHealth:
    found = [row for row in rows if row.annotator == who]
    if not found:
        raise HTTPException(404, "There is no such rater.")
    return found[0]


def _side_chart(rows: list[RaterHealth]) -> str:
    shown = [row for row in rows if row.side.value is not None and not row.why_not][:MOST_BARS]
    whiskers = [Whisker(row.annotator, row.side, row.to_review) for row in shown]
    title = "Share of decided votes for what was shown first"
    return whisker_chart("sides", title, whiskers, low=0.0, high=1.0, reference=0.5) if shown else ""


def _evidence_chart(row: RaterHealth) -> str:
    figures = (
        ("Prefers what is shown first", row.side),
        ("Gold items right", row.gold),
        ("Repeats answered as before", row.repeats),
        ("Agrees with others on the same pairs", row.peers),
    )
    shown = [Whisker(name, found) for name, found in figures if found.value is not None]
    title = "Evidence, with 95 % intervals"
    return whisker_chart("evidence", title, shown, low=0.0, high=1.0, reference=0.5) if shown else ""
