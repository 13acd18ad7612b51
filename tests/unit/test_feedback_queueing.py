"""However questions come in, their stratum's overlap and early stop act on them."""

import dataclasses
import json

import pytest
import sqlalchemy as sa

import web_app
from feedback_cases import vote
from karat.feedback.documents import ProjectSettings, add_questions, put_settings
from karat.feedback.exchange.foreign import import_label_studio
from karat.feedback.exchange.importers import import_votes
from karat.feedback.schema import tasks as task_table
from karat.feedback.store import open_store
from karat.feedback.work.arena import add_duel, make_arena
from karat.feedback.work.queueing import queue_tasks
from karat.questions import Question
from karat.records import Annotator, Response, Task, user_prompt

PLAN = ProjectSettings(overlap={"hard": 4, "*": 3}, stop_after=2)


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "k.db") as opened:
        yield opened


def pair(store, topic=None, **rest) -> Task:
    prompt = user_prompt(f"q {topic} {rest}", topic=topic)
    both = [Response(prompt.id, text, "p") for text in "xy"]
    store.add_prompts([prompt])
    store.add_responses(both)
    return Task(prompt.id, tuple(one.id for one in both), **rest)


def wanted(store) -> list[tuple[int, int]]:
    return [(task.overlap, task.stop_after) for task in store.tasks()]


def states(store) -> list[str]:
    with store.connection() as connection:
        return list(connection.execute(sa.select(task_table.c.state).order_by(task_table.c.seq)).scalars())


def test_without_a_plan_a_task_wants_what_it_says(store):
    queue_tasks(store, [pair(store, overlap=2, stop_after=1), pair(store, "hard")])
    assert wanted(store) == [(2, 1), (1, 0)]


def test_a_stratum_is_the_topic_of_the_prompt_or_of_the_question(store):
    put_settings(store, PLAN, now=0.0)
    asked = Question(topic="hard")
    add_questions(store, [asked])
    queue_tasks(store, [pair(store, "hard"), pair(store, "easy"), pair(store, question=asked.id)])
    assert wanted(store) == [(4, 2), (3, 2), (4, 2)]


def test_work_of_one_rater_or_of_experts_keeps_its_number(store):
    put_settings(store, PLAN, now=0.0)
    store.add_annotators([Annotator("r0")])
    queue_tasks(store, [pair(store, audience="expert"), pair(store, reserved_for="r0")])
    assert wanted(store) == [(1, 0), (1, 0)]


def test_equal_answers_close_a_task_that_came_in_by_the_plan(store):
    put_settings(store, PLAN, now=0.0)
    task = pair(store, "hard")
    store.add_annotators([Annotator(who) for who in ("r0", "r1")])
    queue_tasks(store, [task])
    store.submit(vote(task, "r0", level=2), now=0.0)
    assert states(store) == ["open"]
    store.submit(vote(task, "r1", level=2), now=0.0)
    assert states(store) == ["closed"]


def test_an_arena_asks_by_the_plan_and_a_duel_asks_one_rater(store):
    put_settings(store, PLAN, now=0.0)
    store.add_annotators([Annotator("r0")])
    prompt = user_prompt("q", topic="hard")
    make_arena(store, "first", {"x": [(prompt, "one")], "y": [(prompt, "two")]}, now=0.0)
    typed = (user_prompt("typed"), "one", "two")
    add_duel(store, "live", ("x", "y"), typed, annotator="r0", guideline="v1", now=0.0)
    assert wanted(store) == [(4, 2), (1, 0)]


def test_the_api_asks_by_the_plan(tmp_path):
    site = web_app.served(tmp_path, 1)
    put_settings(site.store, PLAN, now=0.0)
    task = pair(site.store, "hard")
    body = [dataclasses.asdict(task)]
    assert site.program("admin").post("/api/v1/tasks", json=body).json() == {"new": 1}
    assert wanted(site.store)[-1] == (4, 2)


@pytest.mark.parametrize(("choices", "state"), [("a", "open"), ("ab", "open"), ("aa", "closed"), ("aba", "open")])
def test_imported_votes_count_towards_the_plan(tmp_path, store, choices, state):
    put_settings(store, PLAN, now=0.0)
    path = tmp_path / "votes.jsonl"
    rows = [
        {"prompt": "q", "topic": "hard", "a": "x", "b": "y", "choice": one, "annotator": f"r{i}", "task": "t"}
        for i, one in enumerate(choices)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    import_votes(store, path)
    assert wanted(store) == [(4, 2)]
    assert states(store) == [state]


def test_imported_records_of_other_tools_are_asked_by_the_plan(tmp_path, store):
    put_settings(store, PLAN, now=0.0)
    result = {"type": "pairwise", "from_name": "pw", "to_name": "a,b", "value": {"selected": "left"}}
    item = {
        "data": {"prompt": "q", "answer1": "x", "answer2": "y"},
        "annotations": [{"completed_by": 1, "result": [result]}],
    }
    path = tmp_path / "studio.json"
    path.write_text(json.dumps([item]), encoding="utf-8")
    import_label_studio(store, path)
    assert wanted(store) == [(3, 2)]
