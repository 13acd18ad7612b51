"""Raters of another platform: one link a study, one account a participant, nobody by a closed or guessed link."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from karat import cli
from karat.errors import InputError, StoreError
from karat.feedback.documents import CONSENT, Budget, ProjectSettings, add_questions, put_document, put_settings
from karat.feedback.people.accounts import accounts, lock
from karat.feedback.people.care import give_consent
from karat.feedback.people.standing import quarantine, release
from karat.feedback.people.studies import Participant, close_study, join, open_study, participant_in, studies, study_of
from karat.feedback.store import Store, open_store
from karat.feedback.work.checks import add_qualification
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
    for wrong in ({}, {"participant": "x" * 129}, {"participant": "a\nb"}, {"participant": " "}):
        with pytest.raises(InputError, match="study link: found"):
            participant_in(wrong)


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
    lock(served.store, account.id, now=NOW)
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
    assert study("--close") == {"completed": "C1", "no work": "N1", "declined": "D1"}
    [found] = studies(served.store)
    assert (found.is_open, found.ends["completed"]) == (False, "C1")
    for wrong in ("http://platform.example", "javascript:alert(1)", "two words", "x" * 65, "https://"):
        assert cli.main(["people", "study", address, "pilot", "--completed", wrong]) == 2
        assert "expected a completion address with https://" in capsys.readouterr().err
    with pytest.raises(InputError, match="found the end 'fled'; expected one of completed, no work"):
        open_study(served.store, "pilot", ends={"fled": "F"}, now=NOW)
