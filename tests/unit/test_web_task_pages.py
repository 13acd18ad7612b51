"""The rater's pages in process: what is stored and recorded, what is refused, and what nobody gets to see."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from karat.feedback import documents
from karat.feedback.people import accounts, care, drafts, standing
from karat.feedback.people.own_record import OwnProgress
from karat.feedback.store import Store, open_store
from karat.feedback.web import page_record
from karat.feedback.web.app import create_app
from karat.feedback.web.positions import as_shown
from karat.feedback.web.rendering import LONG_TEXT
from karat.feedback.web.settings import ServerSettings
from karat.feedback.work import assignment, checks
from karat.feedback.work.sitting import own_progress
from karat.questions import Choice, Question
from karat.records import Granularity, Prompt, Response, Task, Turn, user_prompt

URL = "http://127.0.0.1:8000"
NOW = 1_800_000_000.0


@dataclass
class Desk:
    """One rater at the pages of one store."""

    client: TestClient
    store: Store
    account: accounts.Account
    clock: list[float]

    def get(self, path: str = "/work", status: int = 200) -> str:
        answer = self.client.get(path)
        assert answer.status_code == status, answer.text
        return answer.text

    def hidden(self, name: str, page: str) -> str:
        found = re.search(f'name="{name}" value="([^"]*)"', page)
        assert found, name
        return found[1]

    def post(self, path: str, page: str, status: int = 303, json: bool = False, **fields: Any) -> Any:
        """Send the hidden fields of a page and more."""
        data: dict[str, Any] = {"csrf": self.hidden("csrf", page)}
        for name in ("lease", "submission", "supersedes", "confirm"):
            if f'name="{name}"' in page:
                data[name] = self.hidden(name, page)
        headers = {"accept": "application/json"} if json else {}
        answer = self.client.post(path, data=data | fields, headers=headers)
        assert answer.status_code == status, answer.text
        return answer.json() if json else answer

    @property
    def given(self) -> list[Any]:
        return [each for each in self.store.judgements() if each.annotator == self.account.annotator]


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    with open_store(tmp_path / "k.db") as store:
        clock = [NOW]
        app = create_app(store, ServerSettings(), clock=lambda: clock[0])
        settings = documents.ProjectSettings(gold_rate=0.0, repeat_rate=0.0, contact="mail@example.org")
        documents.put_settings(store, settings, now=NOW)
        documents.put_document(store, "guideline", "v1", {"text": "Be **fair**."}, now=NOW)
        documents.put_document(store, "guideline", "v2", {"text": "Be kind."}, now=NOW)
        account = accounts.make_account(store, "annotator", now=NOW)
        client = TestClient(app, base_url=URL, headers={"origin": URL}, follow_redirects=False)
        client.post(f"/invite/{accounts.invite(store, account.id, now=NOW)}")
        yield Desk(client, store, account, clock)


def add(desk: Desk, question: Question | None = None, *texts: str, **more: Any) -> Task:
    """Queue a task about texts."""
    question = question or Question()
    prompt = user_prompt(more.pop("prompt", "Why?"))
    responses = [Response(prompt.id, text, "secret-policy") for text in texts or ("first text", "second text")]
    desk.store.add_prompts([prompt])
    desk.store.add_responses(responses)
    documents.add_questions(desk.store, [question])
    task = Task(prompt.id, tuple(each.id for each in responses), kind=question.kind, question=question.id, **more)
    desk.store.add_tasks([task])
    return task


def test_an_answer_is_stored_with_what_was_on_the_page(desk: Desk):
    documents.put_settings(desk.store, documents.ProjectSettings(experiments={"pay": {"high": 1.0}}, gold_rate=0, repeat_rate=0, locale="de"), now=NOW)  # fmt: skip
    task = add(
        desk, Question(content_warning="Blood."), "x" * (LONG_TEXT + 1), "short", strategy="gain", propensity=0.25
    )
    page = desk.get()
    fields = {
        "choice": "1",
        "reason": "because",
        "active_s": "61.25",
        "idle_s": "3",
        "layout": "stacked",
        "width": "phone",
    }
    desk.post("/work", page, uncovered="1", typed="7", pasted="120", **fields)
    [judgement] = desk.given
    assert as_shown("comparison", judgement.value, judgement.shown_order) == {"level": 5, "n_levels": 7}
    assert (judgement.reason, judgement.active_s, judgement.idle_s) == ("because", 61.2, 3.0)
    assert (judgement.guideline, judgement.strategy, judgement.propensity) == ("v1", "gain", 0.25)
    shown = dict(judgement.shown)
    assert shown.pop("server_s") == 0.0
    guideline = documents.document(desk.store, "guideline", "v1")
    assert guideline is not None
    assert shown == {
        "truncated": [True, False], "prompt_truncated": False, "page": page_record.page_version(), "locale": "de",
        "script": True, "uncovered": True, "arms": {"pay": "high"}, "question": task.question,
        "guideline": {"version": "v1", "hash": guideline.hash}, "layout": "stacked", "width": "phone",
        "typed": 7, "pasted": 120, "order_propensity": 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("granularity", "about"),
    [("response", ""), ("conversation", "Judge the whole conversation"), ("turn", "Judge the last message")],
)
def test_a_conversation_is_shown_turn_by_turn_with_what_is_judged_of_it(
    desk: Desk, granularity: Granularity, about: str
):
    turns = (
        Turn("system", "Be brief."), Turn("user", "How do I **add**?"),
        Turn("assistant", "```python\n1 + 1 < 3\n```"), Turn("user", "And *then*?"),
    )  # fmt: skip
    prompt = Prompt(turns)
    responses = [Response(prompt.id, f"- item {i}", "policy") for i in range(2)]
    question = Question(granularity=granularity, principle="Prefer what is <true>.")
    desk.store.add_prompts([prompt])
    desk.store.add_responses(responses)
    documents.add_questions(desk.store, [question])
    desk.store.add_tasks([Task(prompt.id, tuple(each.id for each in responses), question=question.id)])
    page = desk.get()
    shown = re.findall(
        r'<div class="turn (\w+)">\s*<h3>([^<]*)</h3>\s*<div class="text" dir="auto">(.*?)</div>', page, re.S
    )
    assert [(role, speaker) for role, speaker, _ in shown] == [
        ("system", "Instruction to the assistant"), ("user", "Person"), ("assistant", "Assistant"), ("user", "Person"),
    ]  # fmt: skip
    assert "<strong>add</strong>" in shown[1][2]
    assert re.search(r"<pre[ >].*1.*\+.*1.*&lt;.*3.*</pre>", shown[2][2], re.S)
    assert "<em>then</em>" in shown[3][2]
    assert page.count("<li>item ") == 2
    assert "Prefer what is &lt;true&gt;." in page
    said = [text for text in ("Judge the whole conversation", "Judge the last message") if text in page]
    assert said == ([about] if about else [])
    desk.post("/work", page, choice="0", active_s="60")
    assert desk.given[0].shown["question"] == question.id


def test_a_text_that_was_opened_is_not_truncated(desk: Desk):
    add(desk, Question(kind="label"), "x" * (LONG_TEXT + 1))
    desk.post("/work", desk.get(), good="yes", layout="stacked", opened="0")
    assert desk.given[0].shown["truncated"] == [False]


def test_without_scripts_nothing_is_measured_and_nothing_truncated(desk: Desk):
    add(desk, Question(kind="label"), "x" * (LONG_TEXT + 1))
    desk.post("/work", desk.get(), good="yes", active_s="", layout="odd", width="<b>", typed="-1")
    [judgement] = desk.given
    assert (judgement.active_s, judgement.idle_s) == (None, None)
    assert judgement.shown["truncated"] == [False]
    assert judgement.shown["script"] is False
    assert not {"layout", "width", "typed"} & set(judgement.shown)


def test_the_page_says_nothing_about_where_responses_come_from(desk: Desk):
    task = add(desk, None, strategy="uncertainty", batch="round-7")
    page = desk.get()
    for secret in (
        task.id,
        *task.response_ids,
        task.prompt_id,
        "secret-policy",
        "uncertainty",
        "round-7",
        task.question,
    ):
        assert secret not in page, secret


def test_a_gold_item_looks_like_work(desk: Desk):
    add(desk)
    prompt = user_prompt("Gold?")
    responses = [Response(prompt.id, text, "x") for text in ("right answer", "wrong answer")]
    desk.store.add_prompts([prompt])
    desk.store.add_responses(responses)
    gold = Task(prompt.id, tuple(each.id for each in responses), kind="comparison")
    checks.add_gold(desk.store, [(gold, {"level": 6, "n_levels": 7})], version="1")
    settings = dataclasses.replace(documents.project_settings(desk.store), gold_rate=0.99)
    work = desk.get()
    desk.post("/work/skip", desk.get(), skip_reason="cannot")
    documents.put_settings(desk.store, settings, now=NOW + 1)
    add(desk, None, "third", "fourth")
    check = desk.get()
    assert "Gold?" in check

    def shape(page: str) -> list[str]:
        return re.findall(r"<[a-z][^>]*>", re.sub(r'(lease|form):\w+|(?<=name="submission" value=")[^"]+', "", page))

    assert shape(check) == shape(work)


def test_what_is_left_is_said_in_tens_so_that_a_check_does_not_stop_the_count():
    said = {n: OwnProgress(5, 1, 0, n, 30.0) for n in (0, 9, 10, 19, 20, 199, 200)}
    assert [each.left for each in said.values()] == [
        "none", "fewer than 10", "about 10", "about 10", "about 20", "about 190", "200 or more",
    ]  # fmt: skip
    assert [each.seconds_left for each in said.values()] == [None, None, 300.0, 300.0, 600.0, 5700.0, None]


def test_own_progress_counts_only_what_waits_for_this_rater(desk: Desk):
    for i in range(12):
        add(desk, None, f"a{i}", f"b{i}", reserved_for="rater-else" if i == 11 else None)
    add(desk, None, "x", "y", audience="expert")
    annotator = str(desk.account.annotator)
    desk.get()
    assert own_progress(desk.store, annotator, now=NOW).n_left == 11
    desk.post("/work", desk.get(), choice="0", active_s="30")
    desk.post("/work/skip", desk.get(), skip_reason="cannot")
    found = own_progress(desk.store, annotator, now=NOW)
    assert (found.n_done, found.n_today, found.n_skipped, found.n_left, found.seconds_each) == (1, 1, 1, 9, 30.0)
    assert own_progress(desk.store, annotator, now=NOW + 86400).n_today == 0


def test_a_page_says_why_nothing_waits_for_this_rater(desk: Desk):
    who = str(desk.account.annotator)
    base = documents.project_settings(desk.store)

    def said(words: str, **changes: Any) -> None:
        documents.put_settings(desk.store, dataclasses.replace(base, **changes), now=NOW)
        assert words in desk.get("/"), words
        assert words in desk.get(), words

    said("Nothing waits for you at the moment.")
    assert "Nothing to do yet" in desk.get()
    add(desk, None, "for", "another", reserved_for="rater-else")
    add(desk, None, "for", "experts", audience="expert")
    said("Nothing waits for you at the moment.")  # though there is work for others
    add(desk, Question(content_warning="Blood."), "dark", "darker")
    said("the rest waits until tomorrow", exposure_cap_per_day=0)
    said(
        "has all the judgements that it planned for", budget=documents.Budget(money=0.0), pay=documents.Pay(0.1, "EUR")
    )
    said("has stopped handing out work for now", budget=documents.Budget(judgements=0))
    documents.put_settings(desk.store, base, now=NOW)
    assert "waits for you" not in desk.get("/")  # one does, and she has done nothing yet: the welcome says enough
    desk.post("/work", desk.get(), choice="0", uncovered="1", active_s="30")
    add(desk, None, "third", "fourth")
    assert "1 today, 1 in all. Fewer than 10 tasks wait for you." in desk.get("/")
    assert "1 today · fewer than 10 left" in desk.get()
    assert "<dt>Waiting</dt><dd>fewer than 10</dd>" in desk.get("/me")
    standing.quarantine(desk.store, who, reason="Look.", by="x", now=NOW)
    assert "Nothing comes to you while your work is paused." in desk.get("/")
    assert "<dt>Waiting</dt><dd>none</dd>" in desk.get("/me")


@pytest.mark.parametrize("passes", [True, False])
def test_before_a_qualification_is_passed_its_own_items_are_what_waits(desk: Desk, passes: bool):
    tasks = [add(desk, None, f"a{i}", f"b{i}") for i in range(15)]
    items = [(tasks[0], {"level": 3, "n_levels": 7})]
    checks.add_qualification(desk.store, items, version="1", pass_mark=1.0, attempts=1, now=NOW)
    assert "what follows depends on them" in desk.get("/")
    page = desk.get()
    assert "0 today · fewer than 10 left" in page
    if passes:
        desk.post("/work", page, choice="3", active_s="60")
        home = desk.get("/")
        assert "1 today, 1 in all. About 10 tasks wait for you" in home
        assert "depends on them" not in home
        assert "1 today · about 10 left" in desk.get()
    else:
        desk.post("/work/skip", page, skip_reason="cannot")
        assert "differ from what the guidelines ask for" in desk.get("/")
        assert "There is no further work for you at the moment." in desk.get("/")
        assert "Thank you for trying" in desk.get()


def test_what_does_not_fit_keeps_everything_typed(desk: Desk):
    add(desk, Question(kind="critique", aspects=(Choice("tone"),), rationale="required"), "a text")
    page = desk.get()
    answer = desk.post("/work", page, 422, text="</textarea><b>\n mine", aspect="tone")
    assert "Say in a few words why." in answer.text
    assert "\n&lt;/textarea&gt;&lt;b&gt;\n mine</textarea>" in answer.text
    assert re.search(r'value="tone"[^>]* checked', answer.text)
    assert desk.hidden("submission", answer.text) == desk.hidden("submission", page)
    assert desk.post("/work", page, 422, json=True, text="x")["messages"] == {"reason": "Say in a few words why."}
    assert not desk.given


def test_covered_texts_are_not_judged_but_may_be_left(desk: Desk):
    add(desk, Question(content_warning="Blood."))
    page = desk.get()
    assert "Uncover the texts before" in desk.post("/work", page, 422, choice="0").text
    desk.post("/work", page, choice="cannot_judge")
    assert desk.given[0].value == {"missing": "cannot judge"}


def test_the_unusual_is_asked_back_once(desk: Desk):
    add(desk, Question(kind="correction"), "as it is\n")
    page = desk.get()
    answer = desk.post("/work", page, 409, text="as it is\r\n")
    assert "You have not changed the text" in answer.text
    assert desk.hidden("confirm", answer.text) == "unchanged"
    desk.post("/work", answer.text, text="as it is\r\n")
    add(desk, None, "word " * 200, "word " * 100)
    page = desk.get()
    quick = {"choice": "0", "active_s": "4"}
    assert desk.post("/work", page, 409, json=True, **quick)["confirm"] == "fast"
    stored = desk.post("/work", page, 200, json=True, **(quick | {"active_s": "15"}))
    assert stored == {"next": "/work", "state": "stored", "lease": desk.hidden("lease", page)}
    assert len(desk.given) == 2


def test_a_script_is_told_under_which_name_the_task_is_held_now(desk: Desk):
    add(desk)
    old = desk.get()
    desk.clock[0] += 3600
    new = desk.get()
    assert desk.hidden("lease", new) != desk.hidden("lease", old)
    for page in (old, new):
        assert desk.post("/work", page, 422, json=True)["lease"] == desk.hidden("lease", new)


def test_the_same_page_sent_twice_is_one_answer_and_another_answer_a_correction(desk: Desk):
    add(desk)
    page = desk.get()
    for _ in range(3):
        desk.post("/work", page, choice="0")
    assert len(desk.given) == 1
    asked_back = desk.post("/work", page, 409, choice="1").text  # by the browser's back button, without scripts
    assert len(desk.given) == 1
    desk.post("/work", asked_back, choice="1")
    first, second = desk.given
    assert second.supersedes == first.id


def test_a_window_that_still_shows_an_answered_task_asks_before_it_replaces_the_answer(desk: Desk):
    add(desk)
    page, other = desk.get(), desk.get()
    desk.post("/work", page, choice="0")
    desk.post("/work", other, choice="0")  # says the same
    asked_back = desk.post("/work", other, 409, choice="6").text
    assert "You have given another answer to this already" in asked_back
    said = desk.post("/work", other, 409, json=True, choice="6")
    assert (said["confirm"], said["submission"] != desk.hidden("submission", other)) == ("again", True)
    assert len(desk.given) == 1
    desk.post("/work", asked_back, choice="6")
    first, second = desk.given
    assert second.supersedes == first.id


def test_undo_is_a_new_judgement_that_supersedes(desk: Desk):
    add(desk)
    desk.post("/work", desk.get(), choice="0", reason="first")
    answer = desk.client.get("/work/undo")
    page = desk.get(answer.headers["location"])
    assert "You are changing an answer" in page
    assert re.search(r'value="0"[^>]* checked', page)
    desk.post("/work", page, choice="6")
    first, second = desk.given
    assert second.supersedes == first.id
    assert desk.client.get("/work/change/" + first.id).status_code == 404
    assert "Change" in desk.get("/work/history")


def test_a_draft_comes_back(desk: Desk):
    task = add(desk)
    page = desk.get()
    said = desk.post("/work/draft", page, 200, json=True, reason="half", choice="2", active_s="12.5")
    assert said["saved_at"] == NOW
    kept = drafts.draft(desk.store, task.id, str(desk.account.annotator))
    assert kept is not None
    assert set(kept.body["fields"]) == {"reason", "choice", "active_s"}
    page = desk.get()
    assert "\nhalf</textarea>" in page
    assert re.search(r'value="2"[^>]* checked', page)
    assert 'name="active_s" value="12.5"' in page
    desk.post("/work", page, choice="2")
    assert drafts.draft(desk.store, task.id, str(desk.account.annotator)) is None


def test_a_draft_that_is_no_draft_does_not_break_the_page(desk: Desk):
    task = add(desk)
    desk.get()
    for body in ({"fields": "x"}, {"fields": {"choice": "0", "opened": [1, None]}}, {"other": []}):
        drafts.save_draft(desk.store, task.id, str(desk.account.annotator), body, now=NOW)
        assert "Which response is better?" in desk.get()


def test_skipping_needs_a_known_reason(desk: Desk):
    add(desk)
    page = desk.get()
    assert "Say why you skip it." in desk.post("/work/skip", page, 422, reason="typed").text
    assert "typed</textarea>" in desk.post("/work/skip", page, 422, skip_reason="<b>", reason="typed").text
    assert desk.post("/work/skip", page, 409, json=True, skip_reason="unclear", reason="x" * 300)["confirm"] == "skip"
    desk.post("/work/skip", page, skip_reason="unclear")
    assert [reason for *_, reason in desk.store.skips()] == ["The question is unclear"]
    assert "All done" in desk.get()


def test_a_heartbeat_keeps_the_task(desk: Desk):
    add(desk)
    page = desk.get()
    desk.clock[0] += 300
    assert desk.post("/work/heartbeat", page, 200, json=True)["expires_at"] == NOW + 900
    desk.clock[0] += 3600
    assert "error" in desk.post("/work/heartbeat", page, 409, json=True)


def test_nobody_touches_anothers_task(desk: Desk):
    add(desk)
    page = desk.get()
    other = accounts.make_account(desk.store, "annotator", now=NOW)
    desk.client.post(f"/invite/{accounts.invite(desk.store, other.id, now=NOW)}")
    csrf = desk.client.get("/api/v1/me").json()["csrf"]
    lease = desk.hidden("lease", page)
    for path in ("/work", "/work/skip", "/work/draft", "/work/heartbeat"):
        answer = desk.client.post(path, data={"csrf": csrf, "lease": lease, "choice": "0", "skip_reason": "cannot"})
        assert answer.status_code == 409, path
    assert not desk.store.judgements()


def test_consent_comes_first_and_stops_work_when_taken_back(desk: Desk):
    add(desk)
    page = desk.get()
    documents.put_document(desk.store, "consent", "c1", {"text": "Do you **agree**?"}, now=NOW)
    assert desk.client.get("/work").headers["location"] == "/consent"
    assert desk.post("/work", page, 403, choice="0").status_code == 403
    consent = desk.get("/consent")
    desk.post("/consent", consent, version="c0", agree="1")
    assert not care.consent_of(desk.store, desk.account.id).ok
    desk.post("/consent", consent, version="c1", agree="1")
    assert "Which response" in desk.get()
    desk.post("/consent", desk.get("/consent"), withdraw="1")
    assert desk.client.get("/work").headers["location"] == "/consent"
    assert "You took your consent back on" in desk.get("/consent")


def test_a_quarantine_is_read_and_answered(desk: Desk):
    add(desk)
    annotator = str(desk.account.annotator)
    standing.quarantine(desk.store, annotator, reason="<i>Please</i> look again.", by="admin", now=NOW)
    assert desk.client.get("/work").headers["location"] == "/standing"
    page = desk.get("/standing")
    assert "&lt;i&gt;Please&lt;/i&gt; look again." in page
    assert "There is nothing in the box yet" in desk.post("/standing", page, 422, answer=" ").text
    desk.post("/standing", page, answer="I did.\r\nTwice.")
    assert standing.standing_of(desk.store, annotator).events[-1].reason == "I did.\nTwice."
    assert "Your words are sent." in desk.get("/standing")
    change = (desk.store, annotator, standing.QUARANTINED, "Not yet.")
    desk.store.write(lambda connection: standing.write_event(connection, *change[1:], by="admin", now=NOW))
    page = desk.get("/standing")
    assert (page.count("<h2>Paused</h2>"), page.count("<h2>The pause stands</h2>")) == (1, 1)
    assert "Your words are sent." not in page


def test_an_empty_response_says_that_it_is_empty(desk: Desk):
    add(desk, None, "", "words")
    assert desk.get().count("This response is empty.") == 1


def test_own_page_counts_pays_and_keeps_what_is_said(desk: Desk):
    settings = documents.ProjectSettings(pay=documents.Pay(0.5, "EUR"), gold_rate=0, repeat_rate=0)
    documents.put_settings(desk.store, settings, now=NOW + 1)
    add(desk)
    add(desk, None, "third", "fourth")
    desk.post("/work", desk.get(), choice="0", active_s="90")
    page = desk.get("/me")
    assert "0.50 EUR" in page
    assert re.search(r"Judgements</dt><dd>1<", page)
    answer = desk.post("/me/about", page, 422, **{"about-country": "Chad", "about-age": "prefer not to say"})
    assert 'value="Chad"' in answer.text
    desk.post("/me/about", page, agree="1", **{"about-country": "Chad", "about-age": "prefer not to say"})
    kept = care.demographics(desk.store, str(desk.account.annotator))
    assert kept is not None
    assert dict(kept.fields) == {"country": "Chad"}
    data = desk.client.get("/me/data").json()
    assert data["about_you"] == {"country": "Chad"}
    assert data["judgements"][0]["answer_as_shown"] == {"level": 6, "n_levels": 7}
    desk.post("/me/about", page, delete="1")
    assert care.demographics(desk.store, str(desk.account.annotator)) is None
    desk.post("/me/deletion", page, detail="please")
    assert "You asked on" in desk.get("/me")
    assert accounts.log_entries(desk.store)[0].detail == "please"


def test_the_day_ends_where_enough_was_seen(desk: Desk):
    settings = documents.ProjectSettings(exposure_cap_per_day=1, gold_rate=0, repeat_rate=0)
    documents.put_settings(desk.store, settings, now=NOW + 1)
    for text in ("one", "two"):
        add(desk, Question(content_warning="Blood."), text, text + " more")
    desk.post("/work", desk.get(), choice="0", uncovered="1")
    assert "Enough for today" in desk.get()
    assert assignment.next_work(desk.store, str(desk.account.annotator), now=NOW).reason == "exposure"


def test_the_guideline_beside_the_task_is_the_tasks_own(desk: Desk):
    add(desk, None, guideline="v1")
    page = desk.get()
    assert "Be <strong>fair</strong>." in page
    assert "Be kind." not in page
    assert "Be kind." in desk.get("/guidelines")
    assert "fair" in desk.get("/guidelines?version=v1")
    desk.get("/guidelines?version=v9", 404)


def test_headings_of_a_guideline_follow_that_of_its_page(desk: Desk):
    text = "Read.\n\n## Fair\n\n### Short"
    documents.put_document(desk.store, documents.GUIDELINE, "v8", {"text": text}, now=NOW)
    found = re.findall(r"<(h\d)>(.*?)</", desk.get("/guidelines?version=v8"))
    assert found[:3] == [("h1", "Guidelines"), ("h2", "Fair"), ("h3", "Short")]


def test_a_question_that_was_queued_before_any_guideline_is_judged_under_the_newest(desk: Desk):
    add(desk, None, guideline="never written")
    opened = desk.get()
    assert "Be kind." in opened
    documents.put_document(desk.store, "guideline", "v3", {"text": "Be brief."}, now=NOW + 1)
    asked = desk.hidden("asked", opened)
    refused = desk.post(
        "/work", opened, 422, choice="0", asked=asked
    )  # she has not seen what she would be said to follow
    assert "has changed since you opened it" in refused.text
    page = desk.get()
    assert "Be brief." in page
    desk.post("/work", page, choice="0", asked=desk.hidden("asked", page), active_s="30")
    assert [each.guideline for each in desk.given] == ["v3"]


def test_a_screen_reader_hears_the_projects_texts_in_their_language(desk: Desk):
    settings = documents.project_settings(desk.store)
    documents.put_settings(desk.store, dataclasses.replace(settings, locale="ar"), now=NOW)
    add(desk, Question(instruction="أيهما أفضل؟", principle="الصدق أولا"))
    page = desk.get()
    assert '<h1 id="instruction" dir="auto" lang="ar">أيهما أفضل؟' in page
    assert '<span dir="auto" lang="ar">الصدق أولا</span>' in page
    assert page.count('<div class="text" dir="auto" lang="ar">') == 1  # the guideline
    assert '<div class="text" dir="auto" lang="ar">' in desk.get("/guidelines")
    assert page.count('<html lang="en"') == 1  # what the page itself says


def test_the_version_of_the_page_covers_every_file_that_makes_it(desk: Desk):
    add(desk)
    page = desk.get()
    static = Path(page_record.__file__).parent / "static"
    loaded = set(re.findall(r"/static/([\w.]+)", page)) - {"icon.svg"}
    for _ in range(3):
        for name in [each for each in loaded if each.endswith(".js")]:
            loaded |= set(re.findall(r'from "\./([\w.]+)"', (static / name).read_text()))
    assert loaded == set(page_record.SHEETS_AND_MODULES)
    assert len(page_record.page_version()) == 16


def test_everybody_comes_home(desk: Desk):
    assert "Start" in desk.get("/")
    desk.client.cookies.clear()
    assert desk.client.get("/").headers["location"] == "/login"
    assert desk.client.get("/work").headers["location"].endswith("/login?next=%2Fwork")
