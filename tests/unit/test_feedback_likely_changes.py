"""What to ask again first after a change of the guideline: what is most likely to come out otherwise, within a budget."""

import dataclasses
import html
import re

import pytest

import web_app
from feedback_cases import vote
from karat.feedback.documents import put_document
from karat.feedback.work.likely_changes import asked_already, change_plan
from karat.feedback.work.old_guideline import old_items
from karat.records import Annotator, Task


@pytest.fixture
def site(tmp_path) -> web_app.Served:
    """Eight comparisons by four raters under v1: on the last two the raters are divided, on the others of one mind."""
    site = web_app.served(tmp_path, 8, overlap=4)
    site.store.add_annotators([Annotator(f"r{i}") for i in range(4)])
    put_document(site.store, "guideline", "v1", {"text": "old"}, now=0.0)
    for number, task in enumerate(site.store.tasks()):
        for i in range(4):
            site.store.submit(vote(task, f"r{i}", level=2 if number < 6 or i % 2 else 0))
    put_document(site.store, "guideline", "v2", {"text": "new"}, now=1.0)
    return site


def again(store, task: Task, level: int) -> None:
    """The same question under the newest guideline, with one answer; the responses named the other way round."""
    new = dataclasses.replace(task, guideline="v2", response_ids=task.response_ids[::-1])
    store.add_tasks([new])
    store.submit(vote(new, "r0", level=level))


def text_of(answer) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).replace("\u202f", " ").split())


def test_what_raters_were_divided_on_comes_first_and_the_budget_ends_it(site):
    tasks = site.store.tasks()
    items = old_items(site.store)
    found = change_plan(site.store, items, budget=11)
    assert {one.task.id for one in found.items} == {tasks[6].id, tasks[7].id}  # 4 answers each; a third does not fit
    whole = change_plan(site.store, items)
    assert len(whole.items) == 8
    assert {one.task.id for one in whole.items[:2]} == {tasks[6].id, tasks[7].id}
    # rho = 1/2 where nothing was asked again: half of what was sure, and all of what was not
    assert 4 < whole.expected.value < 8
    assert (whole.n_asked, whole.n_changed) == (0, 0)
    assert change_plan(site.store, items, budget=3).items == ()
    assert change_plan(site.store, ()).expected.value == 0


def test_how_many_changed_so_far_says_how_many_will(site):
    store, tasks = site.store, site.store.tasks()
    before = change_plan(store, old_items(store)).expected.value
    for task in tasks[:4]:
        again(store, task, level=0)  # the same response as before, which is b of the task that asks again
    assert asked_already(store, store.judgements()) == (0, 4)
    again(store, tasks[4], level=2)
    again(store, tasks[6], level=2)  # nobody led before: neither changed nor not
    assert asked_already(store, store.judgements()) == (1, 5)
    found = change_plan(store, [one for one in old_items(store) if one.task.id == tasks[5].id])
    assert (found.n_asked, found.n_changed) == (5, 1)
    share = (1 + 1) / (5 + 2)
    assert share < found.expected.value < share + 0.3  # and what was in doubt anyway
    assert before / 8 > found.expected.value


def test_the_page_says_how_many_will_change_and_asks_those_first(site):
    admin, tasks = site.browser("admin"), site.store.tasks()
    said = text_of(admin.get("/admin/queue", params={"show": "1", "budget": "8"}))
    assert "2 tasks, at most 8 answers" in said
    assert "They are those most likely to, of 8 that fit" in said
    assert "none was asked again yet" in said
    fields = {"words": "", "counted": "2", "budget": "8"}
    assert admin.post("/admin/queue/again/items", fields).status_code == 303
    new = [task for task in site.store.tasks() if task.guideline == "v2"]
    assert {task.response_ids for task in new} == {tasks[6].response_ids, tasks[7].response_ids}
