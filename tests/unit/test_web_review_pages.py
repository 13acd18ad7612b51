"""Experts judge blind, then see, then confirm or change; nothing of what others said reaches them before."""

from __future__ import annotations

import html
import re

import pytest

import web_app
from feedback_cases import vote
from karat.feedback.documents import ProjectSettings, add_questions, put_settings
from karat.feedback.people import accounts
from karat.feedback.record.seals import seal
from karat.feedback.web.answer_words import answer_words
from karat.feedback.work.reviews import CONFIRMED, LOOKED
from karat.questions import Choice, Question, plain_question
from karat.records import Annotator, Response, Task, user_prompt


@pytest.fixture
def site(tmp_path) -> web_app.Served:
    """Two raters who disagree about the first question and agree about the second."""
    site = web_app.served(tmp_path, 3)
    site.store.add_annotators([Annotator("secret-rater-one"), Annotator("secret-rater-two")])
    first, second, _ = site.store.tasks()
    site.store.submit(vote(first, "secret-rater-one", level=2, reason="because WORD-OF-ONE"))
    site.store.submit(vote(first, "secret-rater-two", level=0, reason="because WORD-OF-TWO"))
    site.store.submit(vote(second, "secret-rater-one", level=2))
    site.store.submit(vote(second, "secret-rater-two", level=2))
    return site


def text_of(answer) -> str:
    """What a reader sees, without tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def hidden_field(answer, name: str) -> str:
    """The value of a field of the form on a page."""
    return html.unescape(re.search(rf'name="{name}" value="([^"]*)"', answer.text)[1])


def judged(site: web_app.Served, expert: web_app.Browser, choice: str = "0"):
    """The expert takes the dispute and answers it on the raters' own page."""
    disputed = site.store.tasks()[0]
    assert expert.post("/review/take", {"task": disputed.id}).headers["location"] == "/work"
    page = expert.get("/work")
    fields = {name: hidden_field(page, name) for name in ("lease", "submission")}
    answer = expert.post("/work", {**fields, "choice": choice, "reason": "MY-OWN-REASON", "active_s": "60"})
    assert answer.status_code == 303
    return disputed, page


SECRETS = ("secret-rater", "WORD-OF", "policy-0", "policy-1", "adjudication:", "level")


def test_nothing_that_others_said_reaches_an_expert_before_her_own_answer(site):
    expert, disputed = site.browser("expert"), site.store.tasks()[0]
    pages = [expert.get("/review"), expert.get("/work")]
    assert expert.get("/review/task", params={"id": disputed.id}).status_code == 403
    expert.post("/review/take", {"task": disputed.id})
    pages += [expert.get("/work"), expert.get("/review"), expert.get("/review/task", params={"id": disputed.id})]
    for page in pages:
        for secret in SECRETS:
            assert secret not in page.text, secret
    assert expert.post("/review/confirm", {"task": disputed.id}).status_code == 403
    assert "Question 0?" in pages[2].text


def test_an_expert_judges_sees_and_confirms_and_all_of_it_is_on_record(site):
    expert = site.browser("expert")
    disputed, page = judged(site, expert)
    for secret in SECRETS:
        assert secret not in page.text
    assert expert.post("/review/confirm", {"task": disputed.id}).status_code == 403  # she has not looked yet
    seen = expert.get("/review/task", params={"id": disputed.id})
    for said in ("WORD-OF-ONE", "WORD-OF-TWO", "MY-OWN-REASON", "Rater 1", "Rater 2"):
        assert said in seen.text
    for secret in ("secret-rater", "policy-0", "policy-1"):
        assert secret not in seen.text
    expert.post("/review/confirm", {"task": disputed.id, "reason": "it stands"})
    own = site.store.judgements()[-1]
    assert own.annotator == site.annotator("expert")
    entries = [(one.action, one.subject, one.detail) for one in reversed(accounts.log_entries(site.store))]
    assert entries[-2:] == [(LOOKED, own.id, ""), (CONFIRMED, own.id, "it stands")]
    assert "confirmed" in text_of(expert.get("/review"))
    assert [one.supersedes for one in site.store.judgements()] == [None] * 5


def test_changing_after_seeing_keeps_both_answers(site):
    expert = site.browser("expert")
    disputed, _ = judged(site, expert, choice="0")
    seen = expert.get("/review/task", params={"id": disputed.id})
    change = re.search(r'href="(/work/change/[^"]+)"', seen.text)[1]
    page = expert.get(html.unescape(change).replace("%3A", ":"))
    fields = {name: hidden_field(page, name) for name in ("lease", "submission", "supersedes")}
    answer = expert.post("/work", {**fields, "choice": "6", "reason": "I had missed a line", "active_s": "60"})
    assert answer.status_code == 303
    first, second = (one for one in site.store.judgements() if one.annotator == site.annotator("expert"))
    assert second.supersedes == first.id
    assert {first.value["level"], second.value["level"]} == {0, 6}
    said = text_of(expert.get("/review/task", params={"id": disputed.id}))
    assert "MY-OWN-REASON" in said
    assert "I had missed a line" in said
    assert "blind" in said
    assert "after you had seen the others" in said
    assert "changed after seeing" in text_of(expert.get("/review"))


def test_what_she_changes_before_she_sees_the_others_is_blind_too(site):
    expert = site.browser("expert")
    disputed, _ = judged(site, expert, choice="0")
    page = expert.get("/work/undo", follow_redirects=True)
    fields = {name: hidden_field(page, name) for name in ("lease", "submission", "supersedes")}
    expert.post("/work", {**fields, "choice": "6", "reason": "on second thoughts", "active_s": "60"})
    assert "judged blind" in text_of(expert.get("/review"))
    said = text_of(expert.get("/review/task", params={"id": disputed.id}))
    assert (said.count(", blind"), "after you had seen" in said) == (2, False)


def test_what_experts_said_replaces_nothing_of_the_raters(site):
    before = list(site.store.judgements())
    expert = site.browser("expert")
    judged(site, expert)
    assert site.store.judgements()[:4] == before
    assert site.store.tasks()[-1].audience == "expert"


def test_an_admin_sends_disputes_and_reads_but_does_not_judge(site):
    admin, disputed = site.browser("admin"), site.store.tasks()[0]
    assert "Put all 1 to experts" in text_of(admin.get("/review"))
    admin.post("/review/send")
    admin.post("/review/send")
    assert sum(task.audience == "expert" for task in site.store.tasks()) == 1
    assert "WORD-OF-ONE" in admin.get("/review/task", params={"id": disputed.id}).text
    assert admin.post("/review/take", {"task": disputed.id}).status_code == 403
    assert admin.post("/review/confirm", {"task": disputed.id}).status_code == 403


def test_a_second_expert_does_not_get_what_the_first_has_in_hand(site):
    first, disputed = site.browser("expert"), site.store.tasks()[0]
    other = accounts.make_account(site.store, "expert", now=site.now)
    second = site.browser(account=other.id)
    first.post("/review/take", {"task": disputed.id})
    answer = second.post("/review/take", {"task": disputed.id})
    assert "Another expert has this one" in text_of(second.get(answer.headers["location"]))


@pytest.mark.parametrize("task", ["task:0", "", "'; DROP TABLE judgements; --"])
def test_what_is_not_disputed_is_not_found(site, task):
    expert, agreed = site.browser("expert"), site.store.tasks()[1]
    for one in (task, agreed.id):
        assert expert.get("/review/task", params={"id": one}).status_code == 404
        assert expert.post("/review/take", {"task": one}).status_code == 404


def test_sealed_answers_are_confirmed_not_changed(site):
    put_settings(site.store, ProjectSettings(undo_n=5), now=site.now)
    expert = site.browser("expert")
    disputed, _ = judged(site, expert)
    seal(site.store, now=site.now)
    seen = expert.get("/review/task", params={"id": disputed.id})
    assert "/work/change/" not in seen.text
    assert "can no longer be changed" in seen.text


# Answers in words


@pytest.mark.parametrize(
    ("question", "value", "order", "said"),
    [
        (Question(n_levels=7), {"level": 6, "n_levels": 7}, (0, 1), "A much better"),
        (Question(n_levels=7), {"level": 6, "n_levels": 7}, (1, 0), "B much better"),
        (Question(n_levels=7), {"level": 3, "n_levels": 7}, (1, 0), "Tie"),
        (Question(n_levels=7), {"level": 3, "n_levels": 7, "both": "bad"}, (0, 1), "Both bad"),
        (Question(n_levels=7), {"level": 0, "n_levels": 3}, (0, 1), "B better (level 1 of 3)"),
        (Question(n_levels=7), {"missing": "cannot judge"}, (0, 1), "cannot judge"),
        (plain_question("ranking"), {"ranks": [2, 1, 2]}, (2, 0, 1), "C > A = B"),
        (plain_question("best_of"), {"best": 2}, (2, 0, 1), "A is best"),
        (plain_question("rating"), {"score": 3, "low": 1, "high": 7}, (0,), "3 on 1 to 7"),
        (
            Question(kind="rating", attributes=(Choice("h", "Helpful"), Choice("t"))),
            {"scores": {"h": 2, "t": 5}, "low": 1, "high": 5}, (0,), "Helpful 2, t 5, on 1 to 5",
        ),
        (plain_question("label"), {"good": False, "flags": ["spam"], "escalate": True}, (0,), "bad; flag: spam; escalated"),
        (plain_question("critique"), {"text": "too long", "aspects": ["style"]}, (0,), "too long\n(about: style)"),
        (
            plain_question("span_marks"),
            {"spans": [{"response": 1, "start": 0, "end": 3, "class": "good"}]}, (1, 0), "A Especially good “two”",
        ),
        (plain_question("span_marks"), {"spans": []}, (0, 1), "nothing marked"),
        (
            plain_question("step_marks"),
            {"steps": [{"start": 0, "end": 2, "mark": -1}, {"start": 2, "end": 4, "mark": 1}]}, (0,), "1: wrong, 2: right",
        ),
    ],
)  # fmt: skip
def test_answers_are_said_in_the_readers_letters(question, value, order, said):
    texts = ("one text", "two texts", "three")[: len(order)]
    assert answer_words(question, value, order, texts) == said


def test_texts_with_a_content_warning_are_folded_away_where_nobody_judges_them(tmp_path):
    """On the experts' list and page, on the auditor's, and among what a rater has done: the warning, and then the text."""
    site = web_app.served(tmp_path, 0)
    question = Question("comparison", n_levels=3, content_warning="Violence.")
    prompt = user_prompt("DISTURBING question?")
    texts = [Response(prompt.id, f"DISTURBING answer {k}", "made") for k in range(2)]
    site.store.add_prompts([prompt])
    site.store.add_responses(texts)
    add_questions(site.store, [question])
    task = Task(prompt.id, tuple(one.id for one in texts), question=question.id, overlap=3)
    site.store.add_tasks([task])
    site.store.add_annotators([Annotator("r1"), Annotator("r2")])
    given = [site.store.submit(vote(task, who, level=level)) for who, level in (("r1", 2), ("r2", 0))]
    rater, expert = site.browser("annotator"), site.browser("expert")
    page = rater.get("/work")
    fields = {name: hidden_field(page, name) for name in ("lease", "submission")}
    assert rater.post("/work", {**fields, "choice": "0", "uncovered": "1", "active_s": "60"}).status_code == 303
    for listed in (rater.get("/work/history"), expert.get("/review")):
        assert "Content warning: Violence." in text_of(listed)
        assert "DISTURBING" not in listed.text
    for folded in (
        site.browser("admin").get("/review/task", params={"id": task.id}),
        site.browser("auditor").get("/audit/judgement", params={"id": given[0].id}),
    ):
        before, _, after = folded.text.partition('<details class="warned">')
        inside, _, behind = after.partition("</details>")
        assert inside.count("DISTURBING") == 3
        assert "DISTURBING" not in before + behind


def test_an_expert_finds_the_review_on_her_first_page_and_a_rater_none(site):
    assert '<a class="button" href="/review">' in site.browser("expert").get("/").text
    assert "/review" not in site.browser("annotator").get("/").text
