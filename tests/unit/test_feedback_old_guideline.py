"""After a change of the guideline: which items are touched, what asking them again costs, and that only they are asked."""

import dataclasses
import html
import re

import pytest

import web_app
from feedback_cases import vote
from karat.feedback.arm_changes import ArmChange
from karat.feedback.documents import Pay, ProjectSettings, add_questions, put_document, put_settings
from karat.feedback.tasks import answer
from karat.feedback.work.experiments import end_experiment, make_experiment
from karat.feedback.work.old_guideline import Choice, counts_of, old_items, price
from karat.questions import Choice as Offered
from karat.questions import Question
from karat.records import Annotator, Response, Task, user_prompt


@pytest.fixture
def site(tmp_path) -> web_app.Served:
    """Six comparisons: of two topics, on two of which two raters disagree; a label with a flag; all under v1."""
    served = web_app.served(tmp_path, 0)
    store = served.store
    put_document(store, "guideline", "v1", {"text": "old"}, now=0.0)
    store.add_annotators([Annotator(who) for who in ("r0", "r1")])
    for number in range(6):
        prompt = user_prompt(f"Question {number} about {'Medicine' if number == 5 else 'cars'}", topic=f"t{number % 2}")
        both = [Response(prompt.id, text, "p") for text in ("x", "y")]
        store.add_prompts([prompt])
        store.add_responses(both)
        task = Task(prompt.id, tuple(one.id for one in both), overlap=2)
        store.add_tasks([task])
        for who in ("r0", "r1"):
            level = 0 if who == "r1" and number in (1, 4) else 2
            store.submit(vote(task, who, level=level, active_s=36.0))
    asked = Question(kind="label", topic="safety", flags=(Offered("unsafe"), Offered("spam")))
    prompt = user_prompt("flagged")
    response = Response(prompt.id, "z", "p")
    store.add_prompts([prompt])
    store.add_responses([response])
    add_questions(store, [asked])
    label = Task(prompt.id, (response.id,), kind="label", question=asked.id, overlap=3)
    store.add_tasks([label])
    given = answer(
        label, {"good": False, "flags": ["unsafe"]}, annotator="r0", shown_order=(0,), active_s=36.0,
        created_at="2026-01-01T00:00:00Z", submission="label",
    )  # fmt: skip
    store.submit(given)
    return served


def names(store, choice: Choice) -> list[str]:
    prompts = store.prompts()
    return [prompts[one.task.prompt_id].text.split(" about")[0] for one in old_items(store) if choice.fits(one)]


def test_nothing_is_old_before_the_guideline_changes(site):
    assert old_items(site.store) == []


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice(), ["0", "1", "2", "3", "4", "5", "flagged"]),
        (Choice(disagree=True), ["1", "4"]),
        (Choice(topics=("t0",)), ["0", "2", "4"]),
        (Choice(topics=("safety",)), ["flagged"]),
        (Choice(flags=("unsafe",)), ["flagged"]),
        (Choice(flags=("spam",)), []),
        (Choice(parts=("kind label",)), ["flagged"]),
        (Choice(words="mediCINE"), ["5"]),
        (Choice(disagree=True, words="medicine", flags=("unsafe",)), ["1", "4", "5", "flagged"]),
    ],
)
def test_an_item_is_asked_again_where_any_choice_fits(site, choice, expected):
    put_document(site.store, "guideline", "v2", {"text": "new"}, now=1.0)
    assert [name.removeprefix("Question ") for name in names(site.store, choice)] == expected


def test_what_can_be_chosen_is_counted(site):
    put_document(site.store, "guideline", "v2", {"text": "new"}, now=1.0)
    counts = counts_of(old_items(site.store))
    assert counts["topics"] == {"safety": 1, "t0": 3, "t1": 3}
    assert counts["flags"] == {"unsafe": 1}
    assert counts["parts"] == {"kind comparison": 6, "kind label": 1}
    assert counts["disagree"] == {"yes": 2}


def test_what_it_costs_is_said_by_answer_by_hour_or_not_at_all(site):
    store = site.store
    put_document(store, "guideline", "v2", {"text": "new"}, now=1.0)
    items = [one for one in old_items(store) if Choice(disagree=True).fits(one)]
    assert price(store, items).cost is None
    assert price(store, items).hours.value == pytest.approx(4 * 36 / 3600)
    put_settings(store, ProjectSettings(pay=Pay(18.0, "EUR", "hour")), now=1.0)
    found = price(store, items)
    assert (found.n_tasks, found.n_answers, found.cost.value) == (2, 4, pytest.approx(18 * 4 * 36 / 3600))
    put_settings(store, ProjectSettings(pay=Pay(0.25, "EUR")), now=2.0)
    label = [one for one in old_items(store) if Choice(flags=("unsafe",)).fits(one)]
    assert price(store, label).cost.value == pytest.approx(0.75)


def test_the_page_says_count_and_cost_before_the_button_and_asks_those_only(site):
    store, admin = site.store, site.browser("admin")
    put_document(store, "guideline", "v2", {"text": "new"}, now=1.0)
    put_settings(store, ProjectSettings(pay=Pay(0.25, "EUR")), now=1.0)
    page = admin.get("/admin/queue", params={"show": "1", "disagree": "yes", "flag": "unsafe"})
    said = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.text)).split())
    assert "3 tasks, at most 7 answers" in said
    assert "1.75 EUR" in said
    fields = {"disagree": "yes", "flag": "unsafe", "words": "", "counted": "3"}
    assert admin.post("/admin/queue/again/items", {**fields, "counted": "2"}).status_code == 409
    assert not [task for task in store.tasks() if task.guideline == "v2"]
    assert admin.post("/admin/queue/again/items", fields).status_code == 303
    again = [task for task in store.tasks() if task.guideline == "v2"]
    assert len(again) == 3
    assert len(old_items(store)) == 4  # those that were asked are no longer offered
    assert admin.post("/admin/queue/again/items", fields).status_code == 404
    assert "disagreement, flag unsafe" in admin.get("/admin/log").text
    said = admin.get("/admin/queue", params={"show": "1", "words": "nothing like it"}).text
    assert "No task fits this choice." in said


def test_what_was_put_to_raters_under_the_newest_version_is_not_old(site):
    store = site.store
    put_document(store, "guideline", "v2", {"text": "new"}, now=1.0)
    first = store.tasks()[0]
    store.add_tasks([dataclasses.replace(first, guideline="v2")])
    assert first.id not in {one.task.id for one in old_items(store)}


def test_nothing_is_asked_again_while_an_experiment_says_which_guideline_is_shown(site):
    store, admin = site.store, site.browser("admin")
    put_document(store, "guideline", "v2", {"text": "new"}, now=1.0)
    arms = [(name, 1.0, ArmChange(guideline=version)) for name, version in (("old", "v1"), ("new", "v2"))]
    make_experiment(store, "rules", arms, unit="task", now=2.0)
    assert "The experiment “rules” says which guideline raters see" in admin.get("/admin/queue").text
    fields = {"disagree": "yes", "words": "", "counted": "2"}
    for path, form in (("/admin/queue/again", {"version": "v1"}), ("/admin/queue/again/items", fields)):
        answer = admin.post(path, form)
        assert answer.status_code == 422, path
        assert "end the experiment first" in answer.text
    assert [task for task in store.tasks() if task.guideline == "v2"] == []
    end_experiment(store, "rules", now=3.0)
    assert "says which guideline raters see" not in admin.get("/admin/queue").text
    assert admin.post("/admin/queue/again/items", fields).status_code == 303


def test_a_limit_that_is_no_number_is_said_and_asks_nothing(site):
    admin = site.browser("admin")
    put_document(site.store, "guideline", "v2", {"text": "new"}, now=1.0)
    page = admin.get("/admin/queue", params={"show": "1", "disagree": "yes", "budget": "about 20"}).text
    assert "Answers at most: found “about 20”; expected a whole number." in page
    assert "these 2 again" not in page
    assert "these 2 again" in admin.get("/admin/queue", params={"show": "1", "disagree": "yes", "budget": "20"}).text
