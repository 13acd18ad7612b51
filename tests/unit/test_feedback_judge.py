"""A language model that judges: what it is asked, how its words become votes, and that it goes on where it was."""

import re
import threading
import time
from dataclasses import replace

import pytest

from feedback_cases import small_store
from karat.errors import ConfigError, InputError
from karat.feedback import judge
from karat.feedback.documents import add_questions
from karat.feedback.judge import collect_from_judge, conversation, verdict
from karat.feedback.work.checks import add_gold, check_tasks
from karat.questions import Question
from karat.records import Annotator, user_prompt

WHO = Annotator("ai:m", "ai")


class Longer:
    """A judge that prefers the longer response, and remembers what it read; `mumbles` prompts get no verdict."""

    def __init__(self, *, mumbles=(), numbers=False):
        self.read, self.mumbles, self.numbers = [], mumbles, numbers

    def __call__(self, prompts, *, n_samples, seed):  # noqa: ARG002
        return [[self.say(prompt)] for prompt in prompts]

    def say(self, prompt):
        self.read.append(prompt)
        text = prompt.turns[-1].content
        if any(f"question {i}" in text for i in self.mumbles):
            return "Hard to say."
        a, b = re.search(r"Response A:\n\n(.*)\n\nResponse B:\n\n(.*)\n\nJudge by", text).groups()
        if self.numbers:
            return "2" if len(a) > len(b) else "6"
        return "A." if len(a) > len(b) else "Answer: **B**"


def test_votes_are_of_origin_ai_in_both_orders_and_a_second_call_adds_none(tmp_path):
    store = small_store(tmp_path / "s.db", n_tasks=20, overlap=2)
    tasks = {task.id: task for task in store.tasks()}
    judge = Longer(mumbles=(3,), numbers=True)  # a plain question has seven levels
    done = collect_from_judge(store, WHO, judge, seed=0)
    n_mumbled = sum("question 3" in store.prompts()[task.prompt_id].text for task in tasks.values())
    assert (done.n_votes, done.n_missing) == (len(tasks) - n_mumbled, n_mumbled)
    assert len(judge.read) == len(tasks)  # of two places one is left for another rater
    orders, responses = set(), store.responses()
    for judgement in store.judgements():
        assert (judgement.annotator, judgement.origin) == ("ai:m", "ai")
        orders.add(judgement.shown_order)
        if "missing" not in judgement.value:
            a, b = (len(responses[one].text) for one in judgement.response_ids)
            assert judgement.value == {"level": 5 if a > b else 1, "n_levels": 7}  # whichever stood first
    assert orders == {(0, 1), (1, 0)}
    assert collect_from_judge(store, WHO, judge, seed=0).n_votes == 0
    assert len(judge.read) == len(tasks)
    with pytest.raises(ConfigError, match="found the origin person; expected ai"):
        collect_from_judge(store, Annotator("r0"), judge, seed=0)


def test_short_scales_are_answered_by_letter_and_a_principle_is_read(tmp_path):
    store = small_store(tmp_path / "s.db", n_tasks=6, overlap=1)
    question = Question("comparison", n_levels=3, principle="say less")
    add_questions(store, [question])
    store.add_tasks([replace(task, question=question.id, batch="short") for task in store.tasks()])
    judge = Longer()
    assert collect_from_judge(store, WHO, judge, seed=1, batch="short").n_votes == 6
    assert all("Judge by: say less." in prompt.turns[-1].content for prompt in judge.read)
    assert {judgement.value["n_levels"] for judgement in store.judgements()} == {3}
    asked = conversation(user_prompt("q"), ["one", "two"], Question("comparison", n_levels=2), "be kind")
    assert "Judge by: be kind." in asked.turns[-1].content
    assert "tie" not in asked.turns[-1].content


@pytest.mark.parametrize(
    ("text", "n_levels", "level"),
    [
        ("A", 2, 1), ("b", 2, 0), ("**A**, because it is right", 3, 2), ("The verdict is: B", 3, 0), ("tie", 3, 1),
        ("Response B is better", 2, 0), ("tie", 2, None), ("As both are fine", 3, None), ("A better one is B", 3, None), ("", 3, None),
        ("1", 7, 6), ("7.", 7, 0), ("I say 4", 7, 3), ("8", 7, None), ("0", 7, None), ("3.5", 7, None), ("none", 7, None),
    ],
)  # fmt: skip
def test_a_verdict_is_read_from_words(text, n_levels, level):
    assert verdict(text, n_levels) == level


def test_a_judge_leaves_checks_and_what_waits_for_somebody_alone(tmp_path):
    store = small_store(tmp_path / "s.db", n_tasks=8, overlap=1)
    tasks = store.tasks()
    add_gold(store, [(tasks[0], {"level": 2, "n_levels": 3})], version="1")
    mine = replace(tasks[1], reserved_for="r0", batch="hers")
    expert = replace(tasks[2], audience="expert", batch="experts")
    store.add_tasks([mine, expert])
    silent = check_tasks(store)
    judge = Longer(numbers=True)
    done = collect_from_judge(store, WHO, judge, seed=0)
    open_ = {task.id for task in tasks} - set(silent)
    assert {one.task_id for one in store.judgements()} == open_
    assert done.n_votes == len(open_) == len(judge.read)


def test_what_a_judge_held_goes_back_when_its_server_fails(tmp_path):
    store = small_store(tmp_path / "s.db", n_tasks=6, overlap=1)

    def fails(*_, **__):
        raise InputError("no server")

    with pytest.raises(InputError, match="no server"):
        collect_from_judge(store, WHO, fails, seed=0)
    assert store.lease_next("r0", time.time()) is not None
    assert collect_from_judge(store, WHO, Longer(numbers=True), seed=0).n_votes == len(store.tasks()) - 1


def test_a_judge_started_twice_stores_one_vote_a_question_whatever_the_other_said(tmp_path):
    store = small_store(tmp_path / "s.db", n_tasks=6, overlap=1)
    other = []

    def behind(prompts, **_):
        if not other:
            other.append(collect_from_judge(store, WHO, lambda asked, **_: [["7"] for _ in asked], seed=0))
        return [["1"] for _ in prompts]

    done = collect_from_judge(store, WHO, behind, seed=0)
    assert (done.n_votes, done.n_missing, done.n_elsewhere) == (0, 0, len(store.tasks()))
    assert other[0].n_votes == len(list(store.judgements())) == len(store.tasks())


def test_between_the_look_and_the_vote_of_one_judge_no_other_of_its_name_gets_in(new_address, monkeypatch):
    store = small_store(new_address("s"), n_tasks=6, overlap=1)
    look, others, came = judge.states_of, [], []

    def slowly(connection, task_ids):
        states = look(connection, task_ids)
        if not others:
            others.append(threading.Thread(target=other))
            others[0].start()
            others[0].join(0.5)  # which it would need, if nothing kept it waiting
        return states

    def other():
        came.append(collect_from_judge(store, WHO, lambda asked, **_: [["7"] for _ in asked], seed=0))

    monkeypatch.setattr(judge, "states_of", slowly)
    done = collect_from_judge(store, WHO, lambda asked, **_: [["1"] for _ in asked], seed=0)
    others[0].join()
    n_tasks = len(store.tasks())
    assert (done.n_votes, done.n_elsewhere, came[0].n_votes) == (n_tasks, 0, 0)
    assert [one.reason for one in store.judgements()] == ["1"] * n_tasks


def test_a_judge_that_fails_gives_back_what_it_held_itself(tmp_path, monkeypatch):
    store = small_store(tmp_path / "s.db", n_tasks=6, overlap=1)
    monkeypatch.setattr(judge, "CHUNK", 3)

    def fails(*_, **__):
        # the same judge, started twice, took another task meanwhile
        held = {task.id for task in store.tasks() if store.assignments().get((task.id, WHO.id)) == "leased"}
        others.append(next(task.id for task in store.tasks() if task.id not in held))
        store.lease_many([(others[0], WHO.id)], now=time.time(), lease_s=600)
        raise InputError("no server")

    others = []
    with pytest.raises(InputError, match="no server"):
        collect_from_judge(store, WHO, fails, seed=0)
    with store.connection() as connection:
        states = judge.states_of(connection, [task.id for task in store.tasks()])
    assert [task_id for (task_id, _), state in states.items() if state.live(time.time())] == others
