"""A failed qualification: a person reads it, and gives another attempt, admits, or lets it stand; the rater asks for it."""

import html
import json
import re

import pytest

import web_app
from feedback_cases import small_store, vote
from karat import cli
from karat.errors import InputError, StoreError
from karat.feedback.people import accounts, standing
from karat.feedback.people.standing import ADMITTED, KEPT, RETRY, standing_of
from karat.feedback.work import assignment, checks
from karat.feedback.work.qualifying import attempt_answers, decide, failed_tests

A = {"level": 2, "n_levels": 3}
ADMIN = "account:a"


@pytest.fixture
def store(new_address):
    return small_store(new_address("k"), n_tasks=6, overlap=2)


def qualify(store, version="1", attempts=1, now=0.0, mark=1.0, **rest) -> None:
    items = [(task, A) for task in store.tasks(batch="main")[:2]]
    checks.add_qualification(store, items, version=version, pass_mark=mark, attempts=attempts, now=now, **rest)


def work(store, who: str, n: int, *, level: int, now: float = 1.0) -> list[str]:
    """Answers the next n tasks; returns their batches."""
    batches = []
    for _ in range(n):
        lease = assignment.next_work(store, who, now=now).lease
        if lease is None:
            break
        store.submit(vote(lease.task, who, level=level, key=f"{who}/{lease.id}"), now=now)
        batches.append(lease.task.batch)
    return batches


def fail(store, who: str, now: float = 1.0) -> None:
    work(store, who, 2, level=0, now=now)
    assert assignment.next_work(store, who, now=now).reason == "not qualified"


def test_another_attempt_asks_all_items_again_and_passing_it_opens_the_queue(store):
    qualify(store)
    fail(store, "r0")
    assert [one.annotator for one in failed_tests(store)] == ["r0"]
    decide(store, "r0", RETRY, reason="item 2 was unclear", by=ADMIN, now=2.0)
    found = standing_of(store, "r0")
    assert (found.state, found.attempts_failed, found.attempts_left) == ("unqualified", 1, 1)
    assert (found.events[-1].reason, found.events[-1].by) == ("item 2 was unclear", ADMIN)
    with pytest.raises(StoreError, match="has an attempt left already"):
        decide(store, "r0", RETRY, reason="once more", by=ADMIN, now=2.0)
    assert work(store, "r0", 2, level=2, now=3.0) == ["qualification:1:2"] * 2
    assert assignment.next_work(store, "r0", now=3.0).lease.task.batch == "main"
    assert [event.action for event in standing_of(store, "r0").events] == ["failed", "another attempt", "qualified"]
    assert failed_tests(store) == []


def test_an_attempt_that_was_given_can_be_failed_and_another_given_after_it(store):
    qualify(store)
    fail(store, "r0")
    fail(store, "r1")
    for attempt in (2, 3):
        for who in ("r0", "r1"):  # the items of an attempt are the same for all who are given it
            decide(store, who, RETRY, reason="try again", by=ADMIN, now=float(attempt))
            fail(store, who, now=float(attempt))
    assert standing_of(store, "r0").attempts_failed == 3
    assert {task.batch for task in store.tasks() if task.batch != "main"} == {f"qualification:1:{i}" for i in (1, 2, 3)}
    assert [one.attempt for one in attempt_answers(store, "r0")] == [1, 1, 2, 2, 3, 3]


def test_who_is_admitted_works_under_this_version_and_is_asked_a_later_one_only_if_it_says_so(store):
    qualify(store)
    fail(store, "r0")
    decide(store, "r0", ADMITTED, reason="her reasons are good", by=ADMIN, now=2.0)
    assert standing_of(store, "r0").state == "working"
    assert assignment.next_work(store, "r0", now=3.0).lease.task.batch == "main"
    qualify(store, version="2", now=4.0)
    assert standing_of(store, "r0").state == "working"
    qualify(store, version="3", now=5.0, requalify=True)
    assert standing_of(store, "r0").state == "unqualified"
    assert standing_of(store, "r0").attempts_left == 1  # what was decided on an older version gives nothing here
    with pytest.raises(StoreError, match="no failed qualification"):
        decide(store, "r0", ADMITTED, reason="again", by=ADMIN, now=6.0)


def test_a_rater_asks_for_a_review_once_until_somebody_has_answered(store):
    qualify(store, attempts=2)
    work(store, "r0", 2, level=0)
    with pytest.raises(StoreError, match="nothing to review"):  # she has another attempt
        standing.ask_review(store, "r0", "please", by="account:r0", now=1.0)
    fail(store, "r0")
    assert standing_of(store, "r0").may_ask_review
    standing.ask_review(store, "r0", " Item 1 is ambiguous. ", by="account:r0", now=2.0)
    with pytest.raises(StoreError, match="still being read"):
        standing.ask_review(store, "r0", "hello?", by="account:r0", now=2.0)
    [row] = failed_tests(store)
    assert (row.asks, row.waits, row.standing.events[-1].reason) == (True, True, "Item 1 is ambiguous.")
    decide(store, "r0", KEPT, reason="both items are plain", by=ADMIN, now=3.0)
    [row] = failed_tests(store)
    assert (row.asks, row.waits, row.standing.state) == (False, False, "unqualified")
    assert standing_of(store, "r0").may_ask_review
    assert standing.quarantined(store) == frozenset()


def test_what_cannot_be_decided_is_said(store):
    qualify(store)
    for who in ("r0", "nobody"):
        with pytest.raises(StoreError, match="no failed qualification"):
            decide(store, who, ADMITTED, reason="why not", by=ADMIN, now=1.0)
    fail(store, "r0")
    with pytest.raises(InputError, match="expected one of another attempt, admitted, result stands"):
        decide(store, "r0", "banned", reason="x", by=ADMIN, now=1.0)
    with pytest.raises(InputError, match="reason: found 0 characters"):
        decide(store, "r0", RETRY, reason=" ", by=ADMIN, now=1.0)
    assert [event.action for event in standing_of(store, "r0").events] == ["failed"]


def test_an_admin_reads_what_was_asked_answered_and_expected(store):
    qualify(store)
    lease = assignment.next_work(store, "r0", now=1.0).lease
    store.submit(vote(lease.task, "r0", level=0, shown_order=(1, 0)), now=1.0)
    assignment.skip(store, assignment.next_work(store, "r0", now=1.0).lease.id, "r0", reason="long", now=1.0)
    assert assignment.next_work(store, "r0", now=1.0).reason == "not qualified"
    found = {one.task.id: one for one in attempt_answers(store, "r0")}
    assert (found[lease.task.id].value, found[lease.task.id].shown_order) == ({"level": 0, "n_levels": 3}, (1, 0))
    [skipped] = [one for key, one in found.items() if key != lease.task.id]
    assert (skipped.value, skipped.right, skipped.expected) == (None, False, A)


# The pages and the command


@pytest.fixture
def site(tmp_path) -> web_app.Served:
    site = web_app.served(tmp_path)
    qualify(site.store, now=site.now, mark=2 / 3)
    fail(site.store, site.annotator(), now=site.now)
    return site


def text_of(answer) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def test_the_rater_asks_the_admin_decides_and_the_rater_reads_why(site):
    rater, admin, who = site.browser("annotator"), site.browser("admin"), site.annotator()
    assert 'href="/standing"' in rater.get("/work").text
    assert "Nothing is final: a person reads your answers" in text_of(rater.get("/standing"))
    hostile = "<img src=x> I misread the first one."
    assert rater.post("/standing", {"answer": hostile}).status_code == 303
    assert "You asked for a review" in text_of(rater.get("/standing"))
    assert "<textarea" not in rater.get("/standing").text  # it is being read
    assert rater.post("/standing", {"answer": "and?"}).status_code == 422
    checks_page = text_of(admin.get("/admin/checks"))
    assert "1 rater 1 asks for a review" in checks_page
    assert "Pass mark 66.67 %, 2 of 2 right" in checks_page
    assert "asks for a review" in text_of(admin.get("/admin/qualification"))
    page = admin.get("/admin/qualification/rater", params={"who": who})
    assert "<img" not in page.text
    for words in ("Question 0?", "Answer 0 to Question 0?", "not right", hostile):
        assert words in html.unescape(page.text)
    answer = admin.post("/admin/qualification", {"who": who, "to": "another attempt", "reason": ""})
    assert (answer.status_code, standing_of(site.store, who).attempts_left) == (422, 0)
    answer = admin.post("/admin/qualification", {"who": who, "to": "no decision", "reason": "read it in peace"})
    assert (answer.status_code, "read it in peace</textarea>" in answer.text) == (422, True)
    answer = admin.post("/admin/qualification", {"who": who, "to": "another attempt", "reason": "read it in peace"})
    assert answer.status_code == 303
    assert "She has another attempt" in text_of(admin.get(answer.headers["location"]))
    said = text_of(rater.get("/standing"))
    assert "you have another attempt" in said
    assert "read it in peace" in said
    assert rater.get("/work").status_code == 200
    assert (accounts.log_entries(site.store)[0].action, accounts.log_entries(site.store)[0].subject) == (
        "qualification: another attempt", who,
    )  # fmt: skip


def test_who_is_admitted_gets_work_and_leaves_the_list(site):
    admin, who = site.browser("admin"), site.annotator()
    assert f"{who} not qualified" in text_of(admin.get("/admin/raters"))
    own = admin.get("/admin/rater", params={"who": who}).text
    assert '<span class="tag away">not qualified</span>' in own
    assert '<span class="tag good">works</span>' not in own
    answer = admin.post("/admin/qualification", {"who": who, "to": "admitted", "reason": "an expert of the field"})
    assert "She is admitted" in text_of(admin.get(answer.headers["location"]))
    assert "an expert of the field" in text_of(site.browser("annotator").get("/standing"))
    assert f"{who} works" in text_of(admin.get("/admin/raters"))
    assert site.program("annotator").post("/api/v1/tasks/next").json()["reason"] == "work"
    assert admin.get("/admin/qualification/rater", params={"who": who}).status_code == 404
    assert "Nobody is kept from work" in text_of(admin.get("/admin/qualification"))


def test_the_command_lists_and_decides(new_address, capsys):
    address = new_address("k")
    with small_store(address, n_tasks=6, overlap=2) as store:
        qualify(store)
        fail(store, "r0")
    assert cli.main(["checks", "failed", address, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["failed"]
    assert (row["annotator"], row["attempts_failed"], row["attempts_left"], row["waits"]) == ("r0", 1, 0, True)
    assert cli.main(["checks", "decide", address, "r0", "--reason", "x", "--admit", "--keep"]) == 2
    assert "found --admit and --keep" in capsys.readouterr().err
    assert cli.main(["checks", "decide", address, "r0", "--reason", "the item was wrong"]) == 0
    assert capsys.readouterr().out == "r0: another attempt\n"
    assert cli.main(["checks", "failed", address]) == 0
    assert capsys.readouterr().out == "r0  1 failed, 1 left\n"
    assert cli.main(["checks", "decide", address, "r0", "--reason", "knows the field", "--admit"]) == 0
    capsys.readouterr()
    assert cli.main(["checks", "failed", address]) == 0
    assert "keeps nobody from work" in capsys.readouterr().out
