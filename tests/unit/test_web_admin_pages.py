"""The admin's pages: their numbers are those of the records, and what is done on them is done, logged and undone."""

from __future__ import annotations

import asyncio
import html
import json
import math
import re
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import func, select

import web_app
from feedback_cases import vote
from karat.feedback.detect.evidence import MIN_VOTES
from karat.feedback.documents import (
    Budget,
    Pay,
    ProjectSettings,
    document,
    project_settings,
    put_document,
    put_settings,
)
from karat.feedback.people import accounts, standing
from karat.feedback.people.about_you import Field, fields_of
from karat.feedback.people.care import arm_of, delete_demographics, save_demographics
from karat.feedback.people_tables import admin_log
from karat.feedback.quality import rater_health
from karat.feedback.record.seals import seals
from karat.feedback.snapshot import write_snapshot
from karat.feedback.tasks import answer
from karat.feedback.web import admin_pages, desk
from karat.feedback.web.admin_documents import line_changes
from karat.feedback.web.background import Background
from karat.feedback.web.charts import Bar, Whisker, bar_chart, share_bar, whisker_chart
from karat.feedback.web.figures import duration, interval, money, number, percent, short_id, shortened
from karat.feedback.web.settings import ServerSettings
from karat.feedback.work import dashboard
from karat.ledger.artifacts import ref_of
from karat.ledger.lineage import Manifest
from karat.ledger.manifest import verify_run, write_manifest
from karat.records import Annotator, Estimate, Task

PAGES = (
    "/admin", "/admin/raters", "/admin/queue", "/admin/quality", "/admin/plan", "/admin/experiments", "/admin/accounts", "/admin/documents",
    "/admin/documents/guideline", "/admin/settings", "/admin/record", "/admin/log", "/arena", "/review", "/audit",
    "/audit/slices", "/audit/record", "/admin/qualification",
)  # fmt: skip
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture
def site(tmp_path) -> web_app.Served:
    return web_app.served(tmp_path, 10)


def crowd(site: web_app.Served, n_raters: int = 6, clicker: str | None = "r0") -> None:
    """Raters who agree nine times of ten, and one who clicks what is shown first."""
    rng = np.random.default_rng(1)
    site.store.add_annotators([Annotator(f"r{i}") for i in range(n_raters)])
    for task in site.store.tasks():
        better = task.response_ids[0] < task.response_ids[1]
        for i in range(n_raters):
            order = (0, 1) if rng.random() < 0.5 else (1, 0)
            likes_a = better if rng.random() < 0.9 else not better
            if f"r{i}" == clicker:
                likes_a = order[0] == 0
            site.store.submit(vote(task, f"r{i}", level=2 if likes_a else 0, shown_order=order, active_s=10.0))


def text_of(answer) -> str:
    """What a reader sees, without tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def logged(site: web_app.Served) -> list[tuple[str, str]]:
    return [(entry.action, entry.subject) for entry in accounts.log_entries(site.store)]


# Every page


@pytest.mark.parametrize("n_tasks", [0, 3])
def test_every_page_is_there_in_an_empty_store_and_in_a_full_one(tmp_path, n_tasks):
    site = web_app.served(tmp_path, n_tasks)
    if n_tasks:
        crowd(site, 3)
    admin = site.browser("admin")
    for path in PAGES:
        answer = admin.get(path)
        assert answer.status_code == 200, path
        body = re.sub(r'<script (?:type="module" )?src="/static/[\w.]+\?v=\w+"></script>', "", answer.text)
        for forbidden in ("<script", " style=", "<style", "javascript:", " onclick="):
            assert forbidden not in body, path


def test_what_people_and_models_wrote_is_escaped_everywhere(site):
    admin = site.browser("admin")
    put_document(site.store, "guideline", "v1", {"text": HOSTILE}, now=site.now)
    admin.post("/admin/accounts", {"role": "annotator", "contact": HOSTILE, "annotator": f"r {HOSTILE}"})
    put_settings(site.store, ProjectSettings(title=HOSTILE, contact=HOSTILE), now=site.now)
    task = site.store.tasks()[0]
    site.store.submit(vote(task, f"r {HOSTILE}", reason=HOSTILE))
    pages = [*PAGES, f"/admin/task?id={task.id}"]
    for path in pages:
        body = admin.get(path).text
        assert "<img" not in body, path
        assert "<script>" not in body, path
    answer = admin.get("/admin/rater", params={"who": f"r {HOSTILE}"})
    assert answer.status_code == 200
    assert "<img" not in answer.text


# The evidence about raters


def test_competence_and_side_bias_stand_on_the_raters_page_with_their_intervals(site):
    crowd(site)
    admin = site.browser("admin")
    said = text_of(admin.get("/admin/rater", params={"who": "r0"}))
    for words in (
        r"Side bias \d\.\d\d \[−?\d\.\d\d, \d\.\d\d\]",
        r"Competence −?\d\.\d\d \[",
        "Expected there",
        "of a typical rater",
    ):
        assert re.search(words, said), (words, said[said.find("Usual time") :][:900])
    assert "Side bias" in text_of(admin.get("/admin/raters"))


def test_with_many_judgements_the_evidence_is_made_beside_the_page_and_says_what_it_is_of(site, monkeypatch):
    crowd(site)
    monkeypatch.setattr(rater_health, "MOST_AT_ONCE", 10)
    release, admin = threading.Event(), site.browser("admin")
    made = rater_health.rater_health

    def slowly(*given):
        assert release.wait(60)
        return made(*given)

    monkeypatch.setattr(rater_health, "rater_health", slowly)
    said = text_of(admin.get("/admin/rater", params={"who": "r0"}))  # answered while it is being made
    assert "it is on its way" in said
    assert "Side bias undefined not measured" in said
    [thread] = site.app.state.background.making.values()
    admin.get("/admin/raters")
    assert [*site.app.state.background.making.values()] == [thread]  # made once, whoever looks
    release.set()
    thread.join()
    site.now += 60
    n = len(site.store.judgements())
    said = text_of(admin.get("/admin/raters"))
    assert f"Evidence of {n} judgements, as of" in said
    assert "being made anew" not in said
    release.clear()
    standing.quarantine(site.store, "r0", reason="x", by="a", now=site.now)
    site.store.submit(vote(site.store.tasks()[0], "r1", level=1, key="again"))
    said = text_of(admin.get("/admin/raters"))  # where raters stand is of now, what is slow is of before
    assert "quarantine" in said
    assert f"Evidence of {n} judgements" in said
    assert re.search(r"Side bias \d\.\d\d \[", text_of(admin.get("/admin/rater", params={"who": "r0"})))
    release.set()
    for thread in [*site.app.state.background.making.values()]:
        thread.join()


def test_what_fails_beside_the_page_is_tried_again_and_hides_nothing():
    beside, tried = Background(share=math.inf), []

    def fails():
        tried.append(1)
        raise ValueError("no")

    for mark in (1, 2):
        assert beside.get("x", mark, fails, now=0.0) is None
        while beside.is_making("x"):
            time.sleep(0.001)
    assert len(tried) == 2
    assert beside.get("x", 3, lambda: "there", now=1.0) is None
    while beside.is_making("x"):
        time.sleep(0.001)
    assert beside.get("x", 3, fails, now=2.0).value == "there"
    assert len(tried) == 2


# The overview


def test_the_overview_shows_the_numbers_of_the_records(site):
    put_settings(site.store, ProjectSettings(pay=Pay(0.25, "EUR")), now=site.now)
    crowd(site, 2, clicker=None)
    said = text_of(site.browser("admin").get("/admin"))
    judged = site.store.judgements()
    needed = sum(task.overlap - 2 for task in site.store.tasks())
    assert f"{len(judged)} Judgements" in said or f"Judgements {len(judged)}" in said
    assert f"Paid so far {len(judged) * 0.25:.2f} EUR" in said
    assert f"To come for {needed} answers {needed * 0.25:.2f} EUR" in said
    same = sum(
        len({one.value["level"] for one in judged if one.task_id == task.id}) == 1 for task in site.store.tasks()
    )
    assert f"agreement {same / 10:.2f}" in said
    for name in ("nominal alpha", "Fleiss' kappa", "Gwet's AC1", "ordinal alpha"):
        assert name in said


def test_agreement_of_nobody_is_said_to_be_undefined(site):
    assert "Undefined: nobody has answered" in text_of(site.browser("admin").get("/admin"))


def test_work_stops_and_goes_on_with_the_limit_it_had(site):
    put_settings(site.store, ProjectSettings(), now=site.now)
    budget = project_settings(site.store).budget
    admin, rater = site.browser("admin"), site.program("annotator")
    put_settings(site.store, ProjectSettings(budget=type(budget)(judgements=500)), now=site.now)
    admin.post("/admin/stop", {"to": "stop"})
    assert project_settings(site.store).budget.judgements == 0
    assert rater.post("/api/v1/tasks/next").json()["task"] is None
    assert "Work is stopped." in text_of(admin.get("/admin"))
    admin.post("/admin/stop", {"to": "go"})
    assert project_settings(site.store).budget.judgements == 500
    assert rater.post("/api/v1/tasks/next").json()["task"] is not None
    assert {("work stopped", "budget"), ("work resumed", "budget")} <= set(logged(site))


def test_a_batch_is_called_by_the_beginning_of_its_id():
    long = "batch:" + "0123456789abcdef" * 2
    assert [short_id(one) for one in (long, "live:ppo", long + "0")] == ["batch:0123456789ab", "live:ppo", long + "0"]


def test_agreement_that_is_undefined_throughout_is_no_chart(site):
    [task] = site.store.tasks()[:1]
    site.store.add_annotators([Annotator("r0")])
    site.store.submit(vote(task, "r0"))
    page = site.browser("admin").get("/admin").text
    assert "undefined" in page
    assert 'aria-labelledby="agreement-t' not in page


def test_a_budget_that_is_used_up_is_said_beside_the_cost(site):
    admin = site.browser("admin")
    put_settings(site.store, ProjectSettings(budget=Budget(judgements=1)), now=site.now)
    assert "Work is handed out up to 1 judgements." in text_of(admin.get("/admin"))
    assert site.program("annotator").post("/api/v1/tasks/next").json()["task"] is not None
    assert "The budget is used up" in text_of(admin.get("/admin"))


def events(site: web_app.Served, changes, n: int) -> list[dict]:
    """What a listener gets while something happens between two looks."""
    request = SimpleNamespace(app=site.app)

    async def listen() -> list[dict]:
        found, turn = [], 0
        async for line in admin_pages.pulses(request, every_s=0.001, most_s=0.001 * n):
            if line.startswith("event: pulse"):
                found.append(json.loads(line.split("data: ", 1)[1]))
            if turn < len(changes):
                changes[turn]()
            turn += 1
        return found

    return asyncio.run(listen())


def test_the_live_stream_says_what_is_new_and_nothing_twice(site):
    site.store.add_annotators([Annotator("r0")])
    task = site.store.tasks()[0]
    moment = dashboard._moment(site.now) + "Z"
    found = events(site, [lambda: None, lambda: site.store.submit(vote(task, "r0", created_at=moment))], 6)
    assert [one["figures"]["n_judgements"] for one in found] == [0, 1]
    assert found[1]["figures"]["last_hour"] == 1
    assert found[1]["hours"][-1]["n"] == 1
    [row] = found[1]["queue"]
    assert (row["n_answers"], row["key"]) == (1, "main|comparison|random|annotator")
    page = site.browser("admin").get("/admin").text
    assert f'data-queue="{row["key"]}"' in page
    assert f'data-bar="{found[1]["hours"][-1]["hour"]}"' in page
    for name in ("n_judgements", "last_hour", "n_needed", "n_at_work", "n_flagged", "n_answered"):
        assert f'data-live="{name}"' in page
        assert name in found[0]["figures"]


def test_the_live_stream_ends_so_that_the_right_to_it_is_asked_again(site):
    assert len(events(site, [], 3)) == 1


# Raters: a side-clicker is flagged, looked at, quarantined, answers, and works again


def test_the_journey_of_a_flag(tmp_path):
    site = web_app.served(tmp_path, 24)
    admin, rater = site.browser("admin"), site.browser("annotator")
    who = site.annotator()
    crowd(site, 5, clicker=None)
    for task in site.store.tasks():
        site.store.submit(vote(task, who, level=2, shown_order=(0, 1), active_s=10.0))
    admin.post("/admin/raters/check")
    listed = text_of(admin.get("/admin/raters"))
    row = listed[listed.index(who) : listed.index(who) + 200]
    assert "side-clicker" in row
    assert "100 % [86 %, 100 %]" in row  # 24 of 24, Wilson
    said = text_of(admin.get("/admin/rater", params={"who": who}))
    assert "to review" in said
    assert "24 of 24 decided votes for the text shown first" in said

    assert admin.post("/admin/rater", {"who": who, "to": "quarantined", "reason": " "}).status_code == 422
    assert standing.standing_of(site.store, who).state == "working"
    answer = admin.post("/admin/rater", {"who": who, "to": "quarantined", "reason": "Always the first. Why?"})
    assert answer.status_code == 303
    assert rater.get("/work").headers["location"] == "/standing"
    assert "Always the first. Why?" in text_of(rater.get("/standing"))

    standing.answer_quarantine(site.store, who, "My mouse was broken.", by="x", now=site.now)
    said = text_of(admin.get("/admin/rater", params={"who": who}))
    assert "My mouse was broken." in said
    assert "waits for a reply" in said
    admin.post("/admin/rater", {"who": who, "to": "upheld", "reason": "Try another one first."})
    assert "Try another one first." in text_of(rater.get("/standing"))
    assert "waits for a reply" not in text_of(admin.get("/admin/rater", params={"who": who}))
    admin.post("/admin/rater", {"who": who, "to": "released", "reason": "Thank you."})
    assert standing.standing_of(site.store, who).state == "working"
    assert rater.get("/work").headers.get("location") != "/standing"
    assert [action for action, subject in reversed(logged(site)) if subject == who] == [
        "rater quarantined", "rater upheld", "rater released",
    ]  # fmt: skip
    assert "to review" not in text_of(admin.get("/admin/rater", params={"who": who}))


def test_flags_can_be_dismissed_with_a_reason(tmp_path):
    site = web_app.served(tmp_path, 24)
    crowd(site)
    admin = site.browser("admin")
    admin.post("/admin/raters/check")
    with site.store.connection() as connection:
        flagged = dashboard.undecided_flags(connection)
    assert flagged == {"r0"}
    assert admin.post("/admin/rater", {"who": "r0", "to": "dismissed", "reason": ""}).status_code == 422
    admin.post("/admin/rater", {"who": "r0", "to": "dismissed", "reason": "a lefty"})
    with site.store.connection() as connection:
        assert dashboard.undecided_flags(connection) == set()
    assert "a lefty" in text_of(admin.get("/admin/rater", params={"who": "r0"}))


def test_below_the_least_votes_the_page_says_why_nobody_is_flagged(tmp_path):
    site = web_app.served(tmp_path, MIN_VOTES - 1)
    crowd(site)
    admin = site.browser("admin")
    assert "No new flag" in text_of(admin.get(admin.post("/admin/raters/check").headers["location"]))
    listed = text_of(admin.get("/admin/raters"))
    assert f"Below {MIN_VOTES} votes nobody is flagged" in listed
    assert "too few votes to say" in listed
    assert f"fewer than {MIN_VOTES} votes: found {MIN_VOTES - 1}" in text_of(
        admin.get("/admin/rater", params={"who": "r0"})
    )


def test_a_person_is_deleted_on_request_and_the_record_still_verifies(site):
    admin, who = site.browser("admin"), site.annotator()
    site.store.submit(vote(site.store.tasks()[0], who, reason="MY SECRET WORDS"))
    admin.post("/admin/record/seal")
    site.browser("annotator").post("/me/deletion", {"detail": "please"})
    assert "asks for deletion" in text_of(admin.get("/admin/raters"))
    assert "Requests for deletion" in text_of(admin.get("/admin"))
    for wrong in ({"typed": "someone"}, {"typed": who, "reason": ""}):
        assert admin.post("/admin/rater/erase", {"who": who, "reason": "asked", **wrong}).status_code == 422
    assert site.store.judgements()[0].reason == "MY SECRET WORDS"
    rater = site.browser("annotator")
    admin.post("/admin/rater/erase", {"who": who, "reason": "she asked", "typed": who})
    [left] = site.store.records()
    assert (left.erased, left.judgement.reason, left.judgement.value["level"]) == (True, None, 2)
    assert site.store.verify() == []
    assert rater.get("/work").headers["location"].startswith("/login")
    assert "asks for deletion" not in text_of(admin.get("/admin/raters"))
    assert "Deleted" in text_of(admin.get("/admin/rater", params={"who": who}))


def test_a_deletion_lists_what_fed_on_the_answers_and_takes_the_words_out_of_snapshots(tmp_path):
    site = web_app.served(tmp_path, 4, settings=ServerSettings(runs=(str(tmp_path / "runs"), str(tmp_path / "new"))))
    who, run, like = site.annotator(), tmp_path / "runs" / "one", site.store.tasks()[0]
    asked = Task(like.prompt_id, like.response_ids[:1], kind="critique")
    site.store.add_tasks([asked])
    words = {"text": "MY SECRET WORDS"}
    moment = "2026-03-04T05:06:07Z"
    site.store.submit(answer(asked, words, annotator=who, shown_order=(0,), submission="s", created_at=moment))
    write_snapshot(site.store, run / "snapshots" / "main")
    outputs = (ref_of(run, run / "snapshots" / "main", "snapshot"),)
    write_manifest(run, Manifest("one", "votes", (), outputs, {}, {}, {}, None, "2026-01-01", "", 0.0))
    admin = site.browser("admin")
    assert "What fed on her answers" not in text_of(admin.get("/admin/rater", params={"who": who}))
    assert "one snapshots/main snapshot votes 1 holds words" in text_of(
        admin.get("/admin/rater", params={"who": who, "fed": "show"})
    )
    sent = admin.post("/admin/rater/erase", {"who": who, "reason": "she asked", "typed": who})
    assert "one snapshots/main snapshot votes 1 none" in text_of(admin.get(sent.headers["location"]))
    assert not [path for path in run.rglob("*") if path.is_file() and b"MY SECRET WORDS" in path.read_bytes()]
    assert [(one.kind, one.fatal) for one in verify_run(run)] == [("erased", False)]


def test_a_rater_who_is_not_there_is_not_found(site):
    assert site.browser("admin").get("/admin/rater", params={"who": "nobody"}).status_code == 404
    answer = site.browser("admin").post("/admin/rater", {"who": "nobody", "to": "quarantined", "reason": "x"})
    assert answer.status_code == 404


# Accounts


def test_a_link_is_shown_once_signs_in_and_dies_when_a_new_one_is_made(site):
    admin = site.browser("admin")

    def link(answer) -> str:
        return re.search(r"/invite/[\w-]+", answer.text)[0]

    made = admin.post("/admin/accounts", {"role": "annotator", "contact": "Ada", "n": "1"})
    first = link(made)
    assert first not in admin.get("/admin/accounts").text
    [one] = [each for each in accounts.accounts(site.store) if each.contact == "Ada"]
    guest = site.anybody(Origin=site.settings.url)
    assert guest.post(first).status_code == 303
    second = link(admin.post(f"/admin/accounts/{one.id}/link"))
    assert site.anybody(Origin=site.settings.url).post(first).status_code == 404
    assert site.anybody(Origin=site.settings.url).post(second).status_code == 303
    admin.post(f"/admin/accounts/{one.id}/lock", {"to": "locked"})
    assert site.anybody(Origin=site.settings.url).post(second).status_code == 404
    assert admin.post(f"/admin/accounts/{one.id}/link").status_code == 409
    admin.post(f"/admin/accounts/{one.id}/lock", {"to": "unlocked"})
    assert link(admin.post(f"/admin/accounts/{one.id}/link"))
    assert [action for action, subject in reversed(logged(site)) if subject == one.id] == [
        "account made", "link made", "account locked", "account unlocked", "link made",
    ]  # fmt: skip
    secrets_kept = [first.rsplit("/", 1)[1], second.rsplit("/", 1)[1]]
    assert not any(secret in entry.detail for entry in accounts.log_entries(site.store) for secret in secrets_kept)


def test_accounts_are_called_raters_as_in_the_form(site):
    page = site.browser("admin").get("/admin/accounts").text
    assert "<td>rater</td>" in page
    assert '<option value="annotator" selected>rater</option>' in page
    assert '<span class="tag">rater</span>' in site.browser("admin").post("/admin/accounts", {"role": "annotator"}).text


def test_the_log_calls_whoever_has_no_name_by_the_pseudonym(site):
    admin = site.browser("admin")
    admin.post("/admin/accounts", {"role": "annotator", "annotator": "blue-finch"})
    log = admin.get("/admin/log").text
    assert '<td class="wide-text">blue-finch</td>' in log
    assert "account:" not in log


def test_the_same_role_once_more_is_no_change_and_said_to_be_none(site):
    admin, one = site.browser("admin"), site.accounts["expert"]
    sent = admin.post(f"/admin/accounts/{one.id}/role", {"role": "expert"})
    assert "nothing is changed" in admin.get(sent.headers["location"]).text
    sent = admin.post(f"/admin/accounts/{one.id}/role", {"role": "auditor"})
    assert "The role is changed" in admin.get(sent.headers["location"]).text


def test_a_form_that_fails_comes_back_with_what_was_typed(site):
    admin, who = site.browser("admin"), site.annotator()

    def kept(path, fields):
        answer = admin.post(path, fields)
        assert answer.status_code == 422
        return answer.text

    typed = {"role": "expert", "n": "2", "login": "zoë", "contact": "Zoë, by <mail>", "annotator": "blue-finch"}
    page = kept("/admin/accounts", typed)
    assert '<option value="expert" selected>expert: judges' in page
    for name in ("n", "login", "contact", "annotator"):
        assert re.search(rf'<input name="{name}"[^>]* value="{html.escape(typed[name])}"', page), name
    assert 'name="n" type="number" min="1" max="100" value="1"' in admin.get("/admin/accounts").text
    assert 'value="boss"' in kept("/admin/accounts", {"role": "admin", "login": "boss", "n": "x"})
    for path, fields in (
        ("/admin/rater", {"who": who, "to": "nothing", "reason": "too\nquick"}),
        ("/admin/rater/erase", {"who": who, "typed": "somebody", "reason": "too\nquick"}),
    ):
        assert 'rows="2" required maxlength="2000">\ntoo\nquick' in kept(path, fields), path
    again = {"task": site.store.tasks()[0].id, "to": "reissued", "reason": "", "extra": "7"}
    assert 'name="extra" type="number" min="1" max="50" value="7"' in kept("/admin/task", again)


def test_many_accounts_are_made_at_once_and_nobody_locks_herself_out(site):
    admin = site.browser("admin")
    before = len(accounts.accounts(site.store))
    answer = admin.post("/admin/accounts", {"role": "annotator", "n": "5"})
    assert len(set(re.findall(r"/invite/[\w-]+", answer.text))) == 5
    assert len(accounts.accounts(site.store)) == before + 5
    assert admin.post("/admin/accounts", {"role": "annotator", "n": "2", "login": "x"}).status_code == 422
    assert admin.post("/admin/accounts", {"role": "root", "n": "1"}).status_code == 422
    assert admin.post("/admin/accounts", {"role": "annotator", "login": "admin"}).status_code == 422  # taken
    own = site.accounts["admin"].id
    assert admin.post(f"/admin/accounts/{own}/lock", {"to": "locked"}).status_code == 409
    assert accounts.account(site.store, own).state == "active"
    assert admin.post("/admin/accounts/nobody/link").status_code == 404


# Documents and settings


def test_a_document_is_previewed_then_stored_as_a_new_version_and_compared(site):
    admin = site.browser("admin")
    first = "# Guide\n\nOne.\n"
    assert admin.post("/admin/documents/guideline", {"text": first, "to": "preview"}).status_code == 200
    assert document(site.store, "guideline") is None
    admin.post("/admin/documents/guideline", {"text": first, "version": "v1", "to": "save"})
    admin.post("/admin/documents/guideline", {"text": first.replace("One.", "Two."), "version": "", "to": "save"})
    assert document(site.store, "guideline", "v1").text == first
    assert document(site.store, "guideline").text == "# Guide\n\nTwo.\n"
    page = admin.get("/admin/documents/guideline").text
    assert "<del>One.</del><ins>Two.</ins>" in page
    same = admin.post("/admin/documents/guideline", {"text": "other", "version": "v1", "to": "save"})
    assert same.status_code == 422
    assert "other" in same.text  # nothing typed is lost
    assert document(site.store, "guideline", "v1").text == first
    assert admin.get("/admin/documents/settings").status_code == 404
    assert admin.get("/admin/documents/..%2fx").status_code == 404


def test_what_raters_are_asked_about_themselves_is_a_document_of_lines(site):
    admin = site.browser("admin")
    assert "demographics" in admin.get("/admin/documents").text
    assert "age: Age = 18–24, 25–34" in text_of(admin.get("/admin/documents/demographics"))  # what is asked without one
    wrong = admin.post("/admin/documents/demographics", {"text": "age = young, old", "to": "save"})
    assert wrong.status_code == 422
    assert "line 1" in text_of(wrong)
    text = "age: Your age = young, old\nregion: Where you live"
    assert admin.post("/admin/documents/demographics", {"text": text, "to": "save"}).status_code == 303
    assert fields_of(site.store) == (Field("age", "Your age", ("young", "old")), Field("region", "Where you live"))
    rater = site.browser("annotator")
    page = rater.get("/me").text
    assert "Where you live" in page
    assert "<option>young</option>" in page
    said = rater.post("/me/about", {"about-age": "999", "agree": "1"})
    assert said.status_code == 422
    assert "expected one of young, old" in text_of(said)
    assert rater.post("/me/about", {"about-age": "old", "agree": "1"}).status_code == 303


def test_changes_between_two_texts_are_lines_added_and_taken_away():
    old, new = "a\nb\nc\nd\ne\nf\ng\nh", "a\nb\nc\nd\ne\nf\ng\nH\ni"
    found = line_changes(old, new)
    assert [(mark, line) for mark, line in found if mark in ("ins", "del")] == [
        ("del", "h"),
        ("ins", "H"),
        ("ins", "i"),
    ]
    assert ("span", "g") in found
    assert ("span", "a") not in found
    assert line_changes(old, old) == []
    assert line_changes("a", "a\u202eb")[1] == ("ins", "a⟨U+202E⟩b")


def test_settings_are_read_back_as_they_were_typed_and_faults_lose_nothing(site):
    admin = site.browser("admin")
    fields = {
        "title": "Cats", "contact": "x@y.example", "locale": "de-AT", "completion_url": "https://a.example/done",
        "repeat_gap": "7", "undo_n": "3", "stop_after": "2", "gold_rate": "5,5", "repeat_rate": "3", "lease_minutes": "12.5",
        "exposure_cap_per_day": "20", "pay_amount": "18", "pay_currency": "eur", "pay_per": "hour",
        "budget_judgements": "100", "budget_money": "", "overlap": "hard = 5\n* = 2", "experiments": "guide: a = 1, b = 2",
    }  # fmt: skip
    assert admin.post("/admin/settings", fields).status_code == 303
    stored = project_settings(site.store)
    assert (stored.title, stored.locale, stored.gold_rate, stored.lease_minutes) == ("Cats", "de-AT", 0.055, 12.5)
    assert (stored.pay, stored.budget.judgements) == (Pay(18.0, "EUR", "hour"), 100)
    assert (dict(stored.overlap), {k: dict(v) for k, v in stored.experiments.items()}) == (
        {"hard": 5, "*": 2}, {"guide": {"a": 1.0, "b": 2.0}},
    )  # fmt: skip
    page = admin.get("/admin/settings").text
    again = dict(re.findall(r'name="(\w+)" value="([^"]*)"', page))
    assert again["gold_rate"] == "5.5"
    # every digit comes back, so that the form can be stored again as it stands
    large = fields | {"budget_judgements": "100000000", "budget_money": "123456.78", "pay_amount": "0.0000125"}
    assert admin.post("/admin/settings", large).status_code == 303
    again = dict(re.findall(r'name="(\w+)" value="([^"]*)"', admin.get("/admin/settings").text))
    assert {name: again[name] for name in ("budget_judgements", "budget_money", "pay_amount")} == {
        name: large[name] for name in ("budget_judgements", "budget_money", "pay_amount")
    }
    assert admin.post("/admin/settings", fields).status_code == 303
    assert "guide: a = 1, b = 2" in page
    for name, wrong, said in (
        ("lease_minutes", "soon", "Minutes for a task: found 'soon'"),
        ("lease_minutes", "9999", "Minutes for a task: found 9999"),
        ("budget_money", "-1", "Most money: found '-1'"),
        ("pay_currency", "money", "currency"),
        ("overlap", "hard 5", "Answers wanted, by stratum: found the line"),
        ("gold_rate", "120", "gold_rate"),
        ("completion_url", "javascript:alert(1)", "https"),
        ("locale", "<b>", "Language: found"),
    ):
        answer = admin.post("/admin/settings", {**fields, "title": "Typed", name: wrong})
        assert answer.status_code == 422, name
        assert said in text_of(answer), name
        assert "Typed" in answer.text, name
    assert project_settings(site.store) == stored


def test_what_documents_are_for_is_said_without_markdown(site):
    admin = site.browser("admin")
    for path in ("/admin/documents", "/admin/documents/demographics"):
        text = admin.get(path).text
        assert "one field a line: <code>age: Your age = 18–24, 25–34</code>" in text, path
        assert "`" not in text_of(admin.get(path)), path


# The queue


def test_answers_to_a_task_are_said_in_words_with_the_letters_of_the_page(site):
    task = site.store.tasks()[0]
    site.store.add_annotators([Annotator("gone"), Annotator("here")])
    site.store.submit(vote(task, "here", level=0))
    stored = site.store.submit(vote(task, "gone", level=2, reason="words"))
    site.store.erase_words([stored.id], reason="asked", by="boss", now=site.now)
    text = text_of(site.browser("admin").get("/admin/task", params={"id": task.id}))
    assert "B better" in text
    assert "shown B, A" in text
    assert "A better" in text  # her words are gone, her choice is not


def test_a_task_is_pulled_and_issued_again_with_a_reason(site):
    admin, task = site.browser("admin"), site.store.tasks()[0]
    assert admin.post("/admin/task", {"task": task.id, "to": "pulled", "reason": ""}).status_code == 422
    admin.post("/admin/task", {"task": task.id, "to": "pulled", "reason": "a private letter"})
    offered = {
        site.store.lease_next(f"x{i}", site.now).task.id
        for i in range(9)
        if site.store.add_annotators([Annotator(f"x{i}")])
    }
    assert task.id not in offered
    assert "a private letter" in text_of(admin.get("/admin/task", params={"id": task.id}))
    admin.post("/admin/task", {"task": task.id, "to": "reissued", "reason": "it was none", "extra": "2"})
    assert dashboard.queue(site.store, now=site.now)[0].n_pulled == 0
    assert ("task pulled", task.id) in logged(site)
    assert admin.get("/admin/task", params={"id": "task:0"}).status_code == 404


def test_a_batch_is_ended_with_a_reason_and_what_was_answered_stays(site):
    admin, task = site.browser("admin"), site.store.tasks()[0]
    site.store.add_annotators([Annotator("r0")])
    site.store.submit(vote(task, "r0"))
    assert "End this batch" not in text_of(admin.get("/admin/queue"))
    page = text_of(admin.get(f"/admin/queue?batch={task.batch}"))
    n = sum(row.n_open for row in dashboard.queue(site.store, now=site.now))
    assert f"Takes the {n} tasks out of the queue that still want answers." in page
    assert admin.post("/admin/queue/pull", {"batch": task.batch, "reason": " "}).status_code == 422
    answer = admin.post("/admin/queue/pull", {"batch": task.batch, "reason": "Enough."})
    assert f"{n} tasks are taken out of the queue; their answers stay." in text_of(
        admin.get(answer.headers["location"])
    )
    assert sum(row.n_needed for row in dashboard.queue(site.store, now=site.now)) == 0
    assert len(site.store.judgements()) == 1
    assert ("tasks pulled", f"{n} tasks of {task.batch}") in logged(site)


def test_after_a_new_guideline_the_page_counts_and_asks_again(site):
    admin = site.browser("admin")
    site.store.add_annotators([Annotator("r0")])
    for task in site.store.tasks()[:4]:
        site.store.submit(vote(task, "r0"))
    put_document(site.store, "guideline", "v2", {"text": "new"}, now=site.now)
    said = text_of(admin.get("/admin/queue"))
    assert "v1 4 4 0 Ask these again" in said
    answer = admin.post("/admin/queue/again", {"version": "v1"})
    assert "4 tasks are in the queue again" in text_of(admin.get(answer.headers["location"]))
    assert sum(task.guideline == "v2" for task in site.store.tasks()) == 4
    assert admin.post("/admin/queue/again", {"version": "v9"}).status_code == 404


def test_the_plan_says_what_votes_cost_or_what_is_missing(site):
    admin = site.browser("admin")
    opened = admin.get("/admin/plan")
    assert "found no comparisons to plan from" in text_of(opened)
    assert 'role="alert"' not in opened.text  # nobody has done anything wrong
    assert 'role="alert"' in admin.get("/admin/plan", params={"width": "10"}).text
    crowd(site, 3, clicker=None)
    put_settings(site.store, ProjectSettings(pay=Pay(36.0, "EUR", "hour")), now=site.now)
    answer = admin.get("/admin/plan", params={"width": "10", "raters": "1000"})
    rows = re.findall(r'<th scope="row" class="n">(\d+)</th>(.*?)</tr>', answer.text, re.S)
    assert [int(overlap) for overlap, _ in rows] == [1, 2, 3, 5]
    for overlap, cells in rows:
        pairs, votes, hours, cost = (
            float(one.replace("\u202f", "")) for one in re.findall(r'num">([\d.\u202f]+)<', cells)
        )
        assert votes == pairs * int(overlap)
        assert hours == pytest.approx(round(votes * 10 / 3600, 1))  # each took ten seconds
        assert cost == pytest.approx(votes * 10 / 3600 * 36.0)
    for wrong in ({"width": "0"}, {"width": "x"}, {"pay": "-1"}, {"raters": "0"}, {"accuracy": "200"}):
        assert "expected" in text_of(admin.get("/admin/plan", params=wrong))


def test_the_plan_says_once_that_raters_are_too_few(site):
    crowd(site, 3, clicker=None)
    said = text_of(site.browser("admin").get("/admin/plan", params={"width": "1", "raters": "2"}))
    assert said.count("2 raters are too few, ask at least") == 1
    assert "Raters for each pair" not in said


def test_the_plan_for_a_reward_says_why_there_is_no_curve(site):
    crowd(site, 3, clicker=None)
    said = text_of(site.browser("admin").get("/admin/plan", params={"accuracy": "70"}))
    n = len(site.store.tasks()) * 3
    assert f"A learning curve cannot be drawn: {n} decided comparisons of random questions" in said
    assert "A learning curve" not in text_of(site.browser("admin").get("/admin/plan", params={"accuracy": "40"}))


def test_the_quality_page_shows_the_consensus_and_the_population(site):
    admin = site.browser("admin")
    crowd(site, 24)
    page = admin.get("/admin/quality")
    assert "Dawid–Skene" in text_of(page)
    assert '<a href="/admin/rater?who=r0">r0</a>' in page.text  # the side-clicker is least sure to be right
    for i in range(24):
        save_demographics(site.store, f"r{i}", {"gender": "woman" if i < 12 else "man"}, consent="1", now=site.now)
    target = '{"gender": {"woman": 0.75, "man": 0.25}}'
    wrong = admin.post("/admin/quality/population", {"target": '{"gender": '})
    assert (wrong.status_code, "found no JSON object" in wrong.text) == (422, True)
    assert "{&#34;gender&#34;:</textarea>" in wrong.text  # nothing typed is lost
    answer = admin.post("/admin/quality/population", {"target": target})
    said = text_of(admin.get(answer.headers["location"]))
    # weights 1.5 and 0.5: 1 + 1/4
    assert "Design effect 1.2 Effective number about 10 Largest weight 1.5" in said
    assert "Gender: woman 12 75 % 50 % 75 %" in said.replace("\u202f", " ")
    assert ("target population set", "population") in logged(site)
    delete_demographics(site.store, "r0")
    delete_demographics(site.store, "r13")
    assert "Not shown: a group of the target" in text_of(admin.get("/admin/quality"))
    answer = admin.post("/admin/quality/population", {"target": ""})
    assert "no target population any more" in text_of(admin.get(answer.headers["location"]))


def test_the_effect_of_an_arm_is_that_of_its_raters(site):
    put_settings(site.store, ProjectSettings(experiments={"pay": {"low": 1.0, "high": 1.0}}), now=site.now)
    admin = site.browser("admin")
    assert "Nobody was drawn yet." in text_of(admin.get("/admin/experiments"))
    names = [f"r{i:02d}" for i in range(60)]
    site.store.add_annotators([Annotator(name) for name in names])
    drawn = {name: arm_of(site.store, name, "pay", now=site.now) for name in names}
    chosen = {arm: [name for name in names if drawn[name] == arm][:4] for arm in ("low", "high")}
    assert [len(some) for some in chosen.values()] == [4, 4]  # 60 fair coins
    seconds = {
        name: (30.0 if arm == "high" else 10.0) + i for arm, some in chosen.items() for i, name in enumerate(some)
    }
    for task in site.store.tasks()[:3]:
        given = [vote(task, name, active_s=slow) for name, slow in seconds.items()]
        site.store.submit_many([replace(one, shown={"arms": {"pay": drawn[one.annotator]}}) for one in given])
    said = text_of(admin.get("/admin/experiments"))
    means = {arm: float(np.mean([seconds[name] for name in some])) for arm, some in chosen.items()}
    assert f"seconds of activity high {means['high']:.2f}" in said
    assert f"low {means['low']:.2f}" in said
    assert f"{means['low'] - means['high']:.2f}".replace("-", "−") in said


def test_slow_figures_wait_for_their_share_of_time_and_quick_ones_do_not(site, monkeypatch):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(desk, "time", clock)

    def taking(seconds: float):
        def make() -> float:
            clock.now += seconds
            return clock.now

        return make

    names = iter(f"new{i}" for i in range(9))

    def later(kept: desk.Kept, name: str, seconds: float, after: float) -> bool:
        """Whether figures that took `seconds` are made anew for a change seen `after` seconds later."""
        first = kept.get(site.store, name, taking(seconds))
        assert kept.get(site.store, name, taking(seconds)) == first  # the store has not changed
        rater = next(names)
        site.store.add_annotators([Annotator(rater)])
        site.store.submit(vote(site.store.tasks()[0], rater))
        clock.now += after
        return kept.get(site.store, name, taking(seconds)) != first

    kept = desk.Kept(share=0.05)
    assert later(kept, "quick", 0.9 * desk.AT_ONCE, 0.0)
    assert not later(kept, "slow", 2.0, 39.0)
    assert later(kept, "slower", 2.0, 41.0)
    assert later(desk.Kept(share=np.inf), "slow", 2.0, 0.0)


# The record


def test_sealing_shows_the_root_and_verifying_says_what_it_found(site):
    admin = site.browser("admin")
    site.store.add_annotators([Annotator("r0")])
    site.store.submit(vote(site.store.tasks()[0], "r0"))
    assert "Not sealed yet 1" in text_of(admin.get("/admin/record"))
    answer = admin.post("/admin/record/seal")
    said = text_of(admin.get(answer.headers["location"]))
    newest = seals(site.store)[-1]
    assert newest.line in said
    assert newest.root in said
    assert "Not sealed yet 0" in said
    assert "as it was submitted and sealed" in text_of(admin.post("/admin/record/verify"))
    with site.store.connection() as connection:
        n = connection.execute(select(func.count()).select_from(admin_log)).scalar_one()
    assert n == len(logged(site)) == 2
    assert "verified" in text_of(admin.get("/admin/log"))


# Charts and numbers


def test_a_chart_says_its_numbers_in_words_and_its_bars_in_proportion():
    drawn = str(bar_chart("c", "Votes", [Bar("a", 1), Bar("<b>", 4), Bar("c", 0)]))
    heights = [float(one) for one in re.findall(r'class="bar"[^>]* height="([\d.]+)"', drawn)]
    assert heights[1] == pytest.approx(4 * heights[0])
    assert heights[2] == 0
    assert "3 bars, 5 in all; the highest is 4 at &lt;b&gt;" in drawn
    assert 'role="img" aria-labelledby="c-t c-d"' in drawn
    assert "<b>" not in drawn
    assert "style" not in drawn


def test_whiskers_stay_inside_and_what_is_undefined_is_not_drawn():
    rows = [
        Whisker("one", Estimate(0.5, -3.0, 3.0, 2, "m")),
        Whisker("two", Estimate(None, None, None, 0, "undefined: no variation")),
    ]
    drawn = str(whisker_chart("w", "Agreement", rows, low=0.0, high=1.0, reference=0.5))
    assert drawn.count("<circle") == 1
    assert drawn.count("<polygon") == 2  # both ends go on
    assert ">two: undefined</text>" in drawn  # not over the row's name
    ends = [float(one) for one in re.findall(r' x[12]="([\d.-]+)"', drawn)]
    assert min(ends) >= 0
    assert max(ends) <= 720
    assert 'width="50.0"' in str(share_bar("s", "Done", 0.5))
    assert 'width="0.0"' in str(share_bar("s", "Done", None))


@pytest.mark.parametrize(
    ("ends", "marks"),
    [((0.0, 1.0), ["0", "0.25", "0.5", "0.75", "1"]), ((-0.2, 1.0), ["−0.2", "0", "0.2", "0.4", "0.6", "0.8", "1"])],
)
def test_a_scale_is_marked_in_round_steps_from_nought(ends: tuple[float, float], marks: list[str]):
    drawn = str(whisker_chart("w", "Agreement", [], low=ends[0], high=ends[1]))
    assert re.findall(r">([−0-9.]+)</text>", drawn) == marks


def test_numbers_are_written_for_people():
    assert number(1234567) == "1\u202f234\u202f567"
    assert number(-0.5, 2) == "−0.50"
    assert percent(0.555, 1) == "55.5\u202f%"
    assert [duration(one) for one in (None, 4.4, 60, 3725)] == ["–", "4\u202fs", "1\u202fmin", "1\u202fh 2\u202fmin"]
    assert money(1234.5, "EUR") == "1\u202f234.50\u202fEUR"
    assert interval(Estimate(0.5, None, None, 1, "m")) == "no interval"
    assert shortened("a\n b " + "c" * 300, 10) == "a b ccccc…"


def test_a_project_without_an_answer_says_what_it_lacks_and_later_nothing(tmp_path):
    empty = web_app.open_store(tmp_path / "empty.db")
    accounts.make_account(empty, "admin", login="boss", now=1.0)
    lacks = admin_pages.to_begin(empty, has_questions=False)
    assert [address for address, _ in lacks] == ["", "/admin/documents/guideline", "/admin/accounts"]
    site = web_app.served(tmp_path, 2)
    page = site.browser("admin").get("/admin").text
    assert "To begin" in page
    assert '<a href="/admin/documents/guideline">Write the guideline' in page
    assert "Make a link for each rater" not in page  # there is one
    site.store.add_annotators([Annotator("rater-one")])
    site.store.submit(vote(site.store.tasks()[0], "rater-one"))
    assert "To begin" not in site.browser("admin").get("/admin").text
