"""Raters of another platform: one link a study, one account a participant, nobody by a closed or guessed link."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from karat.errors import InputError, StoreError
from karat.feedback.people.accounts import accounts, lock
from karat.feedback.people.studies import Participant, close_study, join, open_study, participant_in, studies, study_of
from karat.feedback.store import open_store
from web_app import NOW, Served

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
