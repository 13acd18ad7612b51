"""Raters of another platform: one link a study, one account a participant, nobody by a closed or guessed link."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import event

from karat import cli
from karat.errors import InputError, StoreError
from karat.feedback.documents import CONSENT, Budget, Pay, ProjectSettings, add_questions, put_document, put_settings
from karat.feedback.people.accounts import accounts
from karat.feedback.people.care import give_consent
from karat.feedback.people.roles import COMMAND_LINE, lock
from karat.feedback.people.standing import quarantine, release
from karat.feedback.people.studies import Participant, close_study, join, open_study, participant_in, studies, study_of
from karat.feedback.store import Store, open_store
from karat.feedback.work.checks import add_qualification
from karat.feedback.work.participants import participants
from karat.questions import Question
from karat.records import Response, Task, user_prompt
from web_app import NOW, Browser, Served

LINK = {"PROLIFIC_PID": "5f3c", "STUDY_ID": "s1", "SESSION_ID": "v1"}


@pytest.fixture
def served(tmp_path: Path):
    with open_store(tmp_path / "k.db") as store:
        yield Served(store)


def test_a_platforms_names_are_understood():
    assert participant_in(LINK) == Participant("5f3c", "s1", "v1")
    assert participant_in({"workerId": "w", "assignmentId": "a", "hitId": "h"}) == Participant("w", "h", "a")
    for wrong in (
        {},
        {"participant": "x" * 129},
        {"participant": "a\nb"},
        {"participant": " "},
        {"participant": "\ufffd"},
    ):
        with pytest.raises(InputError, match="study link: found"):
            participant_in(wrong)
    with pytest.raises(InputError, match=r"found '.u202ea' \(2 characters\).* of at most 128 visible characters"):
        participant_in({"participant": "\u202ea"})


@pytest.mark.parametrize("place", ["{{%PROLIFIC_PID%}}", "{{ID}}", "${workerId}", "%ID%"])
def test_a_place_that_no_platform_filled_in_is_not_taken_for_a_participant(place):
    # everybody who came so would share one account
    with pytest.raises(InputError, match="where the platform puts who comes"):
        participant_in({"PROLIFIC_PID": place})


def test_a_participant_has_one_account_however_often_and_in_how_many_windows_she_comes(served):
    study = open_study(served.store, "pilot", now=NOW)
    before = len(accounts(served.store))
    found = []

    def come():
        found.append(join(served.store, study, Participant("5f3c"), now=NOW))

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({account.id for account in found}) == 1
    assert len(accounts(served.store)) == before + 1
    other = join(served.store, study, Participant("other"), now=NOW)
    assert other.annotator != found[0].annotator
    assert "5f3c" not in found[0].annotator


def test_a_study_keeps_its_link_and_closes(served):
    study = open_study(served.store, "pilot", now=NOW)
    assert open_study(served.store, "pilot", now=NOW) == study == study_of(served.store, study.token)
    assert open_study(served.store, "other", now=NOW).token != study.token
    closed = close_study(served.store, "pilot", now=NOW)
    assert study_of(served.store, study.token) is None
    with pytest.raises(StoreError, match="is closed"):
        join(served.store, closed, Participant("p"), now=NOW)
    assert open_study(served.store, "pilot", now=NOW) == study
    assert [one.name for one in studies(served.store)] == ["pilot", "other"]
    with pytest.raises(StoreError, match="there is none of that name"):
        close_study(served.store, "nothing", now=NOW)
    with pytest.raises(InputError, match="expected 1 to 58"):
        open_study(served.store, " ", now=NOW)


def test_the_link_signs_in_after_a_click_and_not_before(served):
    study = open_study(served.store, "pilot", now=NOW)
    browser = served.browser()
    before = len(accounts(served.store))
    page = browser.get(f"/study/{study.token}", params=LINK)
    assert page.status_code == 200
    assert "5f3c" in page.text
    assert len(accounts(served.store)) == before  # a preview of the link makes nobody
    entered = browser.post(f"/study/{study.token}", {"participant": "5f3c", "study": "s1", "session": "v1"})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    account = next(one for one in accounts(served.store) if one.outside)
    assert account.outside == {"participant": "5f3c", "study": "s1", "session": "v1", "link": "pilot"}
    lock(served.store, account.id, by=COMMAND_LINE, now=NOW)
    assert served.browser().post(f"/study/{study.token}", {"participant": "5f3c"}).status_code == 403


def test_what_is_wrong_with_a_link_is_said(served):
    study = open_study(served.store, "pilot", now=NOW)
    browser = served.browser()
    assert browser.get("/study/guess", params=LINK).status_code == 404
    assert browser.get(f"/study/{study.token}").status_code == 422
    close_study(served.store, "pilot", now=NOW)
    assert browser.get(f"/study/{study.token}", params=LINK).status_code == 404


DONE, NONE, SCREENED, DECLINED = (f"https://platform.example/complete?cc={code}" for code in ("DONE", "NONE", "S", "D"))
ALL_ENDS = {"completed": DONE, "no work": NONE, "screened": SCREENED, "declined": DECLINED}


def participant_of(served: Served, ends: dict[str, str]) -> Browser:
    """Somebody who has come by a study's link."""
    study = open_study(served.store, "pilot", now=NOW, ends=ends)
    return served.browser(account=join(served.store, study, Participant("5f3c"), now=NOW).id)


def add_tasks(store: Store, n: int, question: Question) -> list[Task]:
    """Queue comparisons."""
    prompts = [user_prompt(f"Question {i}?") for i in range(n)]
    responses = [[Response(one.id, f"Answer {k} to {one.text}", "policy") for k in range(2)] for one in prompts]
    store.add_prompts(prompts)
    store.add_responses([one for pair in responses for one in pair])
    add_questions(store, [question])
    tasks = [Task(one.id, (a.id, b.id), question=question.id) for one, (a, b) in zip(prompts, responses, strict=True)]
    store.add_tasks(tasks)
    return tasks


def ways_out(page: str) -> list[str]:
    """The completion addresses and codes on a page."""
    return re.findall(r'href="(https://[^"]*)"|Completion code: <code class="number">([^<]*)', page)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (ALL_ENDS, {"no work": NONE, "completed": DONE, "screened": SCREENED, "declined": DECLINED}),
        ({"completed": DONE}, {"no work": DONE, "completed": DONE, "screened": DONE, "declined": ""}),
        ({"completed": "C1-a", "declined": "D2"}, {"no work": "C1-a", "completed": "C1-a", "screened": "C1-a", "declined": "D2"}),
        ({}, {"no work": "https://x.example", "completed": "https://x.example", "screened": "https://x.example", "declined": ""}),
    ],
)  # fmt: skip
def test_every_end_leads_back_to_the_platform_with_its_own_code_or_the_nearest(served, ends, expected):
    def shown(path: str) -> str:
        found = ways_out(browser.get(path).text)
        assert len(found) <= 1
        return "".join(found[0]) if found else ""

    settings = ProjectSettings(gold_rate=0, repeat_rate=0, completion_url="https://x.example")
    put_settings(served.store, settings, now=NOW)
    browser = participant_of(served, ends)
    who = next(one.annotator for one in accounts(served.store) if one.outside)
    assert shown("/work") == expected["no work"]

    put_document(served.store, CONSENT, "1", {"text": "Agree?"}, now=NOW)
    assert shown("/consent") == expected["declined"]
    assert ("give your place back" in browser.get("/consent").text) == (not expected["declined"])
    give_consent(served.store, next(one.id for one in accounts(served.store) if one.outside), "1", now=NOW)
    assert shown("/consent") == ""

    tasks = add_tasks(served.store, 3, Question())
    page = browser.get("/work").text
    assert ways_out(page) == []  # while there is work nobody is sent away
    [lease] = re.findall(r'name="lease" value="([^"]*)"', page)
    assert browser.post("/work", {"lease": lease, "choice": "3", "active_s": "60"}).status_code == 303
    put_settings(served.store, replace(settings, budget=Budget(judgements=1)), now=NOW)
    assert shown("/work") == expected["completed"]
    put_settings(served.store, replace(settings, exposure_cap_per_day=0), now=NOW)
    quarantine(served.store, who, reason="Look.", by="x", now=NOW)
    assert shown("/standing") == expected["completed"]
    release(served.store, who, reason="Well.", by="x", now=NOW)
    assert shown("/standing") == ""
    browser.post("/consent", {"withdraw": "1"})
    assert shown("/consent") == expected["completed"]  # she has worked
    give_consent(served.store, next(one.id for one in accounts(served.store) if one.outside), "1", now=NOW)

    items = [(tasks[1], {"level": 3, "n_levels": 7})]
    add_qualification(served.store, items, version="1", pass_mark=1.0, attempts=1, now=NOW)
    [lease] = re.findall(r'name="lease" value="([^"]*)"', browser.get("/work").text)
    browser.post("/work/skip", {"lease": lease, "skip_reason": "cannot"})
    assert "Thank you for trying" in browser.get("/work").text
    assert shown("/work") == expected["screened"]


def test_who_has_seen_enough_for_today_is_led_back_too(served):
    put_settings(served.store, ProjectSettings(exposure_cap_per_day=0), now=NOW)
    browser = participant_of(served, ALL_ENDS)
    add_tasks(served.store, 1, Question(content_warning="Blood."))
    page = browser.get("/work").text
    assert "Enough for today" in page
    assert ways_out(page) == [(DONE, "")]


def test_ends_are_kept_changed_and_forgotten_one_by_one(served, tmp_path: Path, capsys):
    address = str(tmp_path / "k.db")

    def study(*options: str) -> dict[str, str]:
        assert cli.main(["people", "study", address, "pilot", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["ends"]

    assert study() == {}
    assert study("--completed", "C1", "--screened", SCREENED) == {"completed": "C1", "screened": SCREENED}
    assert study("--no-work", "N1", "--declined", "D1", "--screened", "") == {"completed": "C1", "no work": "N1", "declined": "D1"}  # fmt: skip
    assert cli.main(["people", "study", address, "pilot", "--url", "https://judge.example.org/"]) == 0
    assert capsys.readouterr().out.startswith("https://judge.example.org/study/")
    assert study("--close") == {"completed": "C1", "no work": "N1", "declined": "D1"}
    assert cli.main(["people", "study", address, "pilot", "--json"]) == 0  # the address is not asked for again
    assert json.loads(capsys.readouterr().out)["link"].startswith("https://judge.example.org/study/")
    assert study("--close") == {"completed": "C1", "no work": "N1", "declined": "D1"}
    [found] = studies(served.store)
    assert (found.is_open, found.ends["completed"]) == (False, "C1")
    for wrong in ("http://platform.example", "javascript:alert(1)", "two words", "x" * 65, "https://"):
        assert cli.main(["people", "study", address, "pilot", "--completed", wrong]) == 2
        assert "expected a completion address with https://" in capsys.readouterr().err
    with pytest.raises(InputError, match="found the end 'fled'; expected one of completed, no work"):
        open_study(served.store, "pilot", ends={"fled": "F"}, now=NOW)


def test_an_admin_sees_who_a_participant_is_and_nobody_else_does(served, tmp_path: Path, capsys):
    store, address = served.store, str(tmp_path / "k.db")
    put_settings(store, ProjectSettings(gold_rate=0, repeat_rate=0, pay=Pay(0.25, "EUR")), now=NOW)
    study = open_study(store, "pilot", now=NOW, ends=ALL_ENDS)
    accounts_of = {pid: join(store, study, Participant(pid, "s1", "v1"), now=NOW) for pid in ("5f3c", "=cmd()", "gone")}
    add_tasks(store, 2, Question())
    worker = served.browser(account=accounts_of["5f3c"].id)
    [lease] = re.findall(r'name="lease" value="([^"]*)"', worker.get("/work").text)
    worker.post("/work", {"lease": lease, "choice": "3", "active_s": "60"})
    quarantine(store, accounts_of["=cmd()"].annotator, reason="Look.", by="x", now=NOW)
    lock(store, accounts_of["gone"].id, by=COMMAND_LINE, now=NOW)
    found = {one.participant: one for one in participants(store, "pilot")}
    assert {pid: (one.state, one.n_answers, one.earned, one.way_out) for pid, one in found.items()} == {
        "5f3c": ("worked", 1, 0.25, DONE), "=cmd()": ("paused", 0, 0.0, DONE), "gone": ("locked", 0, 0.0, NONE),
    }  # fmt: skip
    assert (found["5f3c"].platform_study, found["5f3c"].session, found["5f3c"].study) == ("s1", "v1", "pilot")

    admin = served.browser("admin")
    assert "participant 5f3c" in admin.get("/admin/accounts").text
    assert "study pilot" in admin.get("/admin/accounts").text
    assert "<strong>5f3c</strong>" in admin.get("/admin/rater", params={"who": accounts_of["5f3c"].annotator}).text
    assert "study:pilot" not in admin.get("/admin/documents").text
    assert worker.get("/me/data").json()["from_the_platform"]["participant"] == "5f3c"  # her own
    auditor = served.browser("auditor")
    assert "5f3c" not in "".join(auditor.get(path).text for path in ("/audit", "/audit/record", "/audit/slices"))
    assert b"5f3c" not in b"".join(path.read_bytes() for path in _exported(address, tmp_path))

    capsys.readouterr()
    assert cli.main(["people", "participants", address, "pilot"]) == 0
    assert re.search(r"^5f3c +rater-\w+ +worked +1 answers +0\.25 earned$", capsys.readouterr().out, re.MULTILINE)
    table = tmp_path / "came.csv"
    assert cli.main(["people", "participants", address, "--out", str(table)]) == 0
    assert table.stat().st_mode & 0o077 == 0
    lines = table.read_text().splitlines()
    assert lines[0].startswith("participant,study,platform_study,session,annotator,came_at,state,n_answers")
    assert any(line.startswith("'=cmd(),pilot") for line in lines)  # never a formula
    assert cli.main(["people", "participants", address, "--out", str(table)]) == 2
    assert "give a new path" in capsys.readouterr().err
    assert cli.main(["people", "participants", address, "pilots"]) == 2
    assert "there is none of that name; found pilot" in capsys.readouterr().err


def test_a_long_list_of_participants_takes_no_more_questions_to_the_store_than_a_short_one(served):
    store = served.store
    study = open_study(store, "pilot", now=NOW, ends=ALL_ENDS)
    asked = []
    with store.connection() as connection:
        event.listen(connection.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    counts = []
    for n in (2, 9):
        for number in range(n):
            join(store, study, Participant(f"p{number}"), now=NOW)
        asked.clear()
        assert len(participants(store, "pilot")) == n
        counts.append(len(asked))
    assert counts[0] >= counts[1] > 0


def _exported(address: str, folder: Path) -> list[Path]:
    """Everything that is written for others than admins."""
    for form in ("judgements", "votes", "argilla"):
        assert cli.main(["export", address, "--format", form, "--out", str(folder / f"{form}.jsonl")]) == 0
    assert cli.main(["bundle", address, "--out", str(folder / "bundle")]) == 0
    return [*folder.glob("*.jsonl"), *(path for path in (folder / "bundle").rglob("*") if path.is_file())]


def test_who_has_not_agreed_or_does_not_any_more_is_told_what_is_kept(served):
    put_settings(served.store, ProjectSettings(gold_rate=0, repeat_rate=0), now=NOW)
    browser = participant_of(served, ALL_ENDS)
    account = next(one.id for one in accounts(served.store) if one.outside)
    put_document(served.store, CONSENT, "1", {"text": "Agree?"}, now=NOW)
    assert "nothing is kept but" in browser.get("/consent").text
    assert [one.state for one in participants(served.store)] == ["has not agreed"]
    add_tasks(served.store, 1, Question())
    give_consent(served.store, account, "1", now=NOW)
    assert [one.state for one in participants(served.store)] == ["nothing done"]
    [lease] = re.findall(r'name="lease" value="([^"]*)"', browser.get("/work").text)
    browser.post("/work", {"lease": lease, "choice": "3", "active_s": "60"})
    browser.post("/consent", {"withdraw": "1"})
    page = browser.get("/consent").text
    assert "nothing is kept but" not in page
    assert "What you answered so far stays, under your pseudonym" in page
    assert [(one.state, one.way_out) for one in participants(served.store)] == [("took consent back", DONE)]


def test_a_second_attempt_says_that_it_is_one(served):
    put_settings(served.store, ProjectSettings(gold_rate=0, repeat_rate=0), now=NOW)
    [task] = add_tasks(served.store, 1, Question())
    add_qualification(served.store, [(task, {"level": 6, "n_levels": 7})], version="1", pass_mark=1.0, now=NOW)
    browser = participant_of(served, ALL_ENDS)
    for attempt in (1, 2):
        page = browser.get("/work").text
        assert ("The first tasks once more" in page) == (attempt == 2)
        [lease] = re.findall(r'name="lease" value="([^"]*)"', page)
        browser.post("/work", {"lease": lease, "choice": "3", "active_s": "60"})
    assert "Thank you for trying" in browser.get("/work").text
    assert [(one.state, one.way_out) for one in participants(served.store)] == [("not qualified", SCREENED)]
