"""Two policies compared blind: no name reaches a rater, and the result is that of the votes."""

from __future__ import annotations

import html
import re

import numpy as np
import pytest

import web_app
from karat.errors import ConfigError, InputError
from karat.feedback.documents import put_document
from karat.feedback.people import accounts, care, standing
from karat.feedback.web.app import create_app
from karat.feedback.web.settings import ServerSettings
from karat.feedback.work.arena import LIVE, arena, arena_result
from karat.feedback.work.duels import ASKED, answer_duels


def sampler(word: str):
    """A policy that answers every prompt with its own word."""

    def sample(prompts, *, n_samples: int, **_) -> list[list[str]]:
        return [[f"{word} says: {prompt.text}"] * n_samples for prompt in prompts]

    return sample


def live_site(tmp_path, **samplers) -> web_app.Served:
    site = web_app.served(tmp_path, 0)
    policies = samplers or {"SECRET-POLICY-X": sampler("Alpha"), "SECRET-POLICY-Y": sampler("Beta")}
    site.app = create_app(site.store, site.settings, clock=lambda: site.now, samplers=policies)
    return site


def text_of(answer) -> str:
    """What a reader sees, without tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def voted(rater: web_app.Browser, prefer: str) -> list[str]:
    """A rater votes strongly for the text with a word; returns every page that she saw."""
    page = rater.get("/work")
    shown = re.findall(r'class="panel candidate".*?</article>', page.text, re.S)
    position = next(i for i, one in enumerate(shown) if prefer in one)
    fields = {
        name: html.unescape(re.search(rf'name="{name}" value="([^"]*)"', page.text)[1])
        for name in ("lease", "submission")
    }
    answer = rater.post("/work", {**fields, "choice": "0" if position == 0 else "6", "active_s": "60"})
    assert answer.status_code == 303
    return [page.text, answer.text]


def test_a_live_duel_is_blind_lands_in_her_hands_and_counts_for_the_winner(tmp_path):
    site = live_site(tmp_path)
    put_document(site.store, "guideline", "g7", {"text": "judge"}, now=site.now)
    rater, seen = site.browser("annotator"), []
    for i in range(4):
        seen.append(rater.get("/arena").text)
        answer = rater.post("/arena/ask", {"prompt": f"my question {i}"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/arena")
        assert rater.get("/arena").headers["location"] == "/work"
        seen += voted(rater, "Alpha")
    for page in seen:
        for secret in ("SECRET-POLICY", "arena:", LIVE):
            assert secret not in page
    judged = site.store.judgements()
    assert [one.guideline for one in judged] == ["g7"] * 4
    orders = {one.shown_order for one in judged}
    assert orders <= {(0, 1), (1, 0)}
    said = text_of(site.browser("admin").get("/arena/result", params={"name": "live"}))
    assert "SECRET-POLICY-X against SECRET-POLICY-Y" in said
    assert "100 % Win rate" in said or "Win rate of SECRET-POLICY-X 100 %" in said
    assert "Votes for it 4" in said
    assert site.browser("annotator").get("/arena/result", params={"name": "live"}).status_code == 403
    assert site.browser("auditor").get("/arena").status_code == 403


def test_what_a_rater_typed_is_not_lost_when_a_policy_fails(tmp_path):
    def broken(*_, **__):
        raise RuntimeError("SECRET-STACK of the policy")

    site = live_site(tmp_path, **{"SECRET-POLICY-X": sampler("Alpha"), "SECRET-POLICY-Y": broken})
    rater = site.browser("annotator")
    assert rater.post("/arena/ask", {"prompt": "a long and careful question"}).status_code == 303
    answer = rater.get("/arena")
    assert "A policy did not answer. What you wrote is still here" in text_of(answer)
    assert "a long and careful question</textarea>" in answer.text
    assert "SECRET" not in answer.text
    assert [task.batch for task in site.store.tasks()] == [ASKED]
    assert rater.get("/work").status_code == 200  # the question itself is nobody's work
    assert site.store.assignments() == {}
    site.now += 3600
    assert "did not answer" not in text_of(rater.get("/arena"))


@pytest.mark.parametrize(("prompt", "said"), [("", "write 1 to 4000"), ("x" * 4001, "4001 characters")])
def test_prompts_that_do_not_fit_come_back(tmp_path, prompt, said):
    site = live_site(tmp_path)
    answer = site.browser("annotator").post("/arena/ask", {"prompt": prompt})
    assert answer.status_code == 422
    assert said in text_of(answer)


def test_what_was_typed_with_a_task_in_hand_is_kept(tmp_path):
    site = web_app.served(tmp_path, 1, settings=ServerSettings(arena=("x", "y")))
    rater = site.browser("annotator")
    page = rater.get("/work").text
    lease = re.search(r'name="lease" value="([^"]+)"', page)[1]
    rater.post("/work/draft", {"lease": lease, "reason": "half"})
    answer = rater.post("/arena/ask", {"prompt": "a long and careful question"})
    assert answer.status_code == 409
    assert "You have begun a task" in text_of(answer)
    assert "a long and careful question</textarea>" in answer.text


def test_a_task_that_was_not_begun_goes_back_when_she_asks(tmp_path):
    site = web_app.served(tmp_path, 1, settings=ServerSettings(arena=("x", "y")))
    rater = site.browser("annotator")
    assert 'name="lease"' in rater.get("/work").text  # as after every answer: the next one is in her hands
    assert rater.post("/arena/ask", {"prompt": "Why?"}).status_code == 303
    assert "Two answers" in text_of(rater.get("/arena"))
    assert rater.get("/arena/waiting").json() == {"waiting": True}


def test_equal_answers_are_not_put_to_anybody(tmp_path):
    site = live_site(tmp_path, one=sampler("Same"), two=sampler("Same"))
    rater = site.browser("annotator")
    rater.post("/arena/ask", {"prompt": "q"})
    assert "Both gave the same answer" in text_of(rater.get("/arena"))
    assert [task.batch for task in site.store.tasks()] == [ASKED]
    assert arena(site.store, "live").n_identical == 1


def test_a_question_waits_in_the_store_for_a_thread_beside_the_server(tmp_path):
    site = web_app.served(tmp_path, 0, settings=ServerSettings(arena=("SECRET-X", "SECRET-Y")))
    rater = site.browser("annotator")
    assert "Get two answers" in text_of(rater.get("/arena"))
    assert rater.post("/arena/ask", {"prompt": "what is <b>karat</b>?"}).status_code == 303
    page = rater.get("/arena")
    assert "are writing their answers" in text_of(page)
    assert "what is &lt;b&gt;karat" in page.text
    assert rater.get("/arena/waiting").json() == {"waiting": True}
    assert rater.post("/arena/ask", {"prompt": "another"}).headers["location"] == "/arena"
    asked = [task for task in site.store.tasks() if task.batch == ASKED]
    assert len(asked) == 1  # the first one is still being answered
    assert rater.get("/work").status_code == 200
    assert site.store.assignments() == {}
    samplers = {"SECRET-X": sampler("Alpha"), "SECRET-Y": sampler("Beta")}
    assert answer_duels(site.store, samplers, now=site.now) == 1
    assert answer_duels(site.store, samplers, now=site.now) == 0
    assert rater.get("/arena/waiting").json() == {"waiting": False}
    assert rater.get("/arena").headers["location"] == "/work"
    assert all("SECRET" not in one for one in [page.text, *voted(rater, "Beta")])
    assert "Get two answers" in text_of(rater.get("/arena"))
    found = arena_result(site.store, "live", np.random.default_rng(0))
    assert (found.n_wins, found.n_ties, found.n_losses, found.arena.policies) == (0, 0, 1, ("SECRET-X", "SECRET-Y"))


def test_a_question_that_one_policy_cannot_answer_does_not_take_others_with_it(tmp_path):
    site = web_app.served(tmp_path, 0, settings=ServerSettings(arena=("x", "y")))
    other = site.browser(account=accounts.make_account(site.store, "annotator", now=site.now).id)

    def fussy(prompts, **_):
        if any("too long" in prompt.text for prompt in prompts):
            raise RuntimeError("the context is shorter")
        return [["fine"] for _ in prompts]

    site.browser("annotator").post("/arena/ask", {"prompt": "too long"})
    other.post("/arena/ask", {"prompt": "short"})
    assert answer_duels(site.store, {"x": sampler("Alpha"), "y": fussy}, now=site.now) == 2
    assert "A policy did not answer" in text_of(site.browser("annotator").get("/arena"))
    assert other.get("/arena").headers["location"] == "/work"


@pytest.mark.parametrize("names", [("one",), ("one", "one"), ("a", "b", "c")])
def test_a_server_takes_two_policies_of_different_names(names):
    with pytest.raises(ConfigError, match="expected two policies of different names"):
        ServerSettings(arena=names)


def test_questions_are_limited_and_who_may_not_work_may_not_ask(tmp_path):
    site = live_site(tmp_path)
    rater = site.browser("annotator")
    answers = []
    for i in range(7):
        answers.append(rater.post("/arena/ask", {"prompt": f"q {i}"}).status_code)
        if answers[-1] == 303:
            voted(rater, "Beta")
    assert answers == [303] * 6 + [429]
    site.now += 100
    standing.quarantine(site.store, site.annotator(), reason="x", by="a", now=site.now)
    n = len(site.store.tasks())
    answer = rater.post("/arena/ask", {"prompt": "one more"})
    assert answer.status_code == 409
    assert "while your work is paused; why it is stands under Me, Standing. What you wrote is still here." in text_of(
        answer
    )
    assert "\none more</textarea>" in answer.text
    assert len(site.store.tasks()) == n


def test_nobody_types_a_question_that_she_cannot_send(tmp_path):
    site = live_site(tmp_path)
    rater = site.browser("annotator")
    assert "<textarea" in rater.get("/arena").text
    put_document(site.store, "consent", "c1", {"text": "Do you agree?"}, now=site.now)
    for said in ("a text to agree to, under Work", "while your work is paused"):
        page = rater.get("/arena")
        assert said in text_of(page)
        assert "<textarea" not in page.text
        care.give_consent(site.store, site.accounts["annotator"].id, "c1", now=site.now)
        standing.quarantine(site.store, site.annotator(), reason="x", by="a", now=site.now) if said[0] == "a" else None


def test_without_policies_the_page_says_where_comparisons_are(tmp_path):
    site = web_app.served(tmp_path, 1)
    page = site.browser("annotator").get("/arena")
    assert "No assistants are connected" in text_of(page)
    assert 'href="/arena"' not in page.text
    (tmp_path / "live").mkdir()
    assert 'href="/arena"' in live_site(tmp_path / "live").browser("annotator").get("/").text
    assert site.browser("annotator").post("/arena/ask", {"prompt": "q"}).status_code == 200
    assert len(site.store.tasks()) == 1


def test_an_admin_sets_up_a_comparison_of_samples_that_raters_get_in_their_queue(tmp_path):
    site = web_app.served(tmp_path, 4)
    admin, rater = site.browser("admin"), site.browser("annotator")
    before = len(site.store.tasks())
    fields = {"name": "first", "first": "policy-0", "second": "policy-1", "overlap": "2"}
    answer = admin.post("/arena/make", fields)
    assert "set up with 4 questions" in text_of(admin.get(answer.headers["location"]))
    made = site.store.tasks()[before:]
    assert [(task.batch, task.overlap) for task in made] == [("arena:first", 2)] * 4
    set_up = arena(site.store, "first")
    texts = {one.id: one.source for one in site.store.responses().values()}
    for first, second in set_up.written_by.values():
        assert (texts[first], texts[second]) == ("policy-0", "policy-1")
    page = rater.get("/work").text
    assert "policy-" not in page
    for wrong in ({"second": "policy-0"}, {"name": "a/b"}, {"second": "nobody"}, {"name": ""}):
        answer = admin.post("/arena/make", {**fields, **wrong})
        assert answer.status_code == 422
    assert "There are no votes yet" in text_of(admin.get("/arena/result", params={"name": "first"}))
    assert admin.get("/arena/result", params={"name": "nothing"}).status_code == 422
    with pytest.raises(InputError, match="set it up first"):
        arena(site.store, "nothing")
