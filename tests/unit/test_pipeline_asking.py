"""What a policy writes becomes questions: of every kind, of two policies, and whenever the queue runs low."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from karat.belief import Belief
from karat.errors import ConfigError, InputError
from karat.feedback.documents import ProjectSettings, put_document, put_settings, question_of
from karat.feedback.store import open_store
from karat.feedback.tasks import random_tasks
from karat.feedback.work.arena import arena
from karat.lm.chat import prompt_tokens
from karat.lm.load import load_lm
from karat.pipeline import asking as asking_module
from karat.pipeline.asking import (
    Asking,
    arena_batch,
    ask_about,
    asked_question,
    collect_from,
    keep_filled,
    n_waiting,
    sampler_of,
)
from karat.pipeline.room import longest_response
from karat.progress import open_progress
from karat.questions import Question, plain_question
from karat.records import KINDS, user_prompt
from karat.seeding import numpy_generator
from tiny_models import tiny_checkpoint

PROMPTS = [user_prompt(f"ab {i}") for i in range(6)]
SMALL = Asking(n_tasks=10, n_samples=3, max_new_tokens=8)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return [tiny_checkpoint("qwen3", root / "first"), tiny_checkpoint("llama", root / "second")]


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "k.db") as opened:
        yield opened


@pytest.fixture
def progress():
    with open_progress(quiet=True) as shown:
        yield shown


def test_samples_become_tasks_that_name_the_question_and_the_guideline(checkpoints, store, progress):
    put_document(store, "guideline", "v7", {"text": "Be fair."}, now=0.0)
    asking = replace(SMALL, question=Question(n_levels=3, principle="Be kind."), overlap=2, stop_after=1, batch="b")
    done = ask_about(store, {"first": load_lm(checkpoints[0])}, PROMPTS, asking, progress=progress)
    assert (done.n_prompts, done.n_tasks, done.batch) == (6, 10, "b")
    assert {(t.guideline, t.overlap, t.stop_after, t.batch, t.strategy) for t in store.tasks()} == {
        ("v7", 2, 1, "b", "random")
    }
    assert {question_of(store, task) for task in store.tasks()} == {asking.question}
    assert {response.source for response in store.responses().values()} == {"first"}
    assert n_waiting(store, "b") == 10
    again = ask_about(store, {"first": load_lm(checkpoints[0])}, PROMPTS, asking, progress=progress)
    assert again.n_tasks == 0


def test_what_the_settings_say_of_a_stratum_acts_on_collected_questions(checkpoints, store, progress):
    put_settings(store, ProjectSettings(overlap={"hard": 4}, stop_after=2), now=0.0)
    prompts = [user_prompt("ab 0", topic="hard"), user_prompt("ab 1")]
    models = {"x": load_lm(checkpoints[0]), "y": load_lm(checkpoints[1])}
    ask_about(store, models, prompts, replace(SMALL, batch="arena:b"), progress=progress)
    topics = {prompt.id: prompt.topic for prompt in prompts}
    assert {(topics[t.prompt_id], t.overlap, t.stop_after) for t in store.tasks()} == {("hard", 4, 2), (None, 1, 0)}


def test_an_arena_shows_one_response_of_either_policy_on_either_side(checkpoints, store, progress):
    models = {"x": load_lm(checkpoints[0]), "y": load_lm(checkpoints[1])}
    many = [user_prompt(f"ab {i}") for i in range(24)]
    ask_about(store, models, many, replace(SMALL, n_tasks=24), progress=progress)
    responses = store.responses()
    sources = [tuple(responses[one].source for one in task.response_ids) for task in store.tasks()]
    assert set(sources) == {("x", "y"), ("y", "x")}
    assert len({task.prompt_id for task in store.tasks()}) == len(sources) == 24
    set_up = arena(store, "main")  # which is where its win rate is read
    assert set_up.policies == ("x", "y")
    for task in store.tasks(batch=set_up.batch):
        assert [responses[one].source for one in set_up.written_by[task.id]] == ["x", "y"]


def test_two_policies_that_write_the_same_cannot_be_compared(checkpoints, store, progress, monkeypatch):
    monkeypatch.setattr(asking_module, "texts_of", lambda _, drawn: [["same"] * len(group) for group in drawn])
    models = {"x": load_lm(checkpoints[0]), "y": load_lm(checkpoints[1])}
    with pytest.raises(InputError, match="write the same responses to every prompt"):
        ask_about(store, models, PROMPTS, SMALL, progress=progress)
    assert store.tasks() == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_asked(kind):
    by_prompt = {"p1": ["a", "b", "c", "a"], "p2": ["d", "e"], "p3": ["f"]}
    tasks = random_tasks(by_prompt, kind, 100, numpy_generator(0, "t"), batch="k", overlap=2)
    n_responses = {"comparison": {2}, "ranking": {2, 3}, "best_of": {2, 3}, "demonstration": {0}}.get(kind, {1})
    assert {len(task.response_ids) for task in tasks} == n_responses
    assert len(tasks) == {"comparison": 4, "ranking": 2, "best_of": 2, "demonstration": 3}.get(kind, 6)
    assert {(task.kind, task.overlap, task.batch, task.propensity) for task in tasks} == {(kind, 2, "k", 1.0)}
    assert len({task.id for task in tasks}) == len(tasks)
    fewer = random_tasks(by_prompt, kind, 2, numpy_generator(0, "t"))
    assert {task.propensity for task in fewer} == {2 / len(tasks)}


def test_nothing_to_ask_is_said():
    with pytest.raises(InputError, match="found nothing to ask as ranking"):
        random_tasks({"p": ["a"]}, "ranking", 3, numpy_generator(0, "t"))


def test_the_queue_is_filled_when_it_runs_low_and_no_sooner(checkpoints, store, progress):
    n_loads = []

    def load(path):
        n_loads.append(path)
        return load_lm(path)

    many = [user_prompt(f"ab {i}") for i in range(20)]
    asking = replace(SMALL, n_tasks=4, batch="live")

    class Stopping(threading.Event):
        """Stops at the first time that nothing is to be done."""

        def wait(self, timeout=None):
            self.set()
            return timeout is not None

    n = keep_filled(
        store, checkpoints[0], many, asking, n_waiting_least=7, progress=progress, stop=Stopping(), load=load
    )
    assert n == n_waiting(store, "live") == 8  # 4 a fill, until at least 7 wait
    assert len(n_loads) == 1


def test_a_prompt_that_cannot_be_asked_does_not_end_the_filling(checkpoints, store, progress):
    prompts = [user_prompt("ab " * 4000), *(user_prompt(f"ab {i}") for i in range(12))]
    asking = replace(SMALL, n_tasks=4, batch="live")
    n = keep_filled(
        store, checkpoints[0], prompts, asking, n_waiting_least=99, progress=progress, stop=threading.Event()
    )
    assert n == n_waiting(store, "live") == 8  # 4 of the seven others of the first fill, 4 of the second
    assert {task.prompt_id for task in store.tasks()} <= {prompt.id for prompt in prompts[1:]}
    assert len(store.prompts()) == 12


def test_a_file_of_prompts_and_a_checkpoint_are_all_it_takes(checkpoints, tmp_path, progress):
    (tmp_path / "prompts.txt").write_text("ab\ncd\nef\n")
    address = str(tmp_path / "new.db")
    done = collect_from(address, checkpoints[:1], tmp_path / "prompts.txt", SMALL, wait=False, progress=progress)
    assert done.n_tasks > 0
    with pytest.raises(InputError, match="against itself"):
        collect_from(address, [checkpoints[0]] * 2, tmp_path / "prompts.txt", SMALL, wait=False, progress=progress)


def test_names_and_limits():
    assert arena_batch([Path("runs/a/ppo")]) == "live:ppo"
    assert arena_batch([Path("runs/a/sft"), Path("runs/a/ppo")]) == "arena:sft-ppo"
    assert asked_question("rating", "Be kind.") == replace(plain_question("rating"), principle="Be kind.")
    with pytest.raises(ConfigError, match="--kind stars: expected one of comparison"):
        asked_question("stars")
    with pytest.raises(ConfigError, match="expected ≥ 2"):
        Asking(n_samples=1)


def test_a_question_can_be_written_in_full(tmp_path):
    path = tmp_path / "question.yaml"
    path.write_text(
        "kind: rating\ngranularity: turn\ninstruction: How useful was the last turn?\nhigh: 5\n"
        "attributes: [{name: tone, label: Tone}, {name: facts}]\n"
    )
    found = asked_question("", "Be kind.", path)
    assert (found.kind, found.granularity, found.low, found.high) == ("rating", "turn", 1, 5)
    assert [(one.name, one.label) for one in found.attributes] == [("tone", "Tone"), ("facts", "")]
    assert found.principle == "Be kind."
    path.write_text("kind: label\nrationale: required\n")  # flags stay those of the plain question
    assert asked_question("", file=path) == replace(plain_question("label"), rationale="required")
    path.write_text("{}")
    assert asked_question("", file=path) == plain_question("comparison")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: stars", "kind stars: expected one of comparison"),
        ("granularty: turn", "unknown configuration key 'granularty'; did you mean 'granularity'"),
        ("kind: rating\nanchors: [bad, fair, good]", "found 3 words for a rating; expected 2 or 7"),
        ("anchors: [b, even, a]", "found 3 words for a comparison; expected 2 or 7"),
        ("kind: label\nanchors: [bad, good]", "found 2 words for a label; expected none"),
        ("kind: rating\nlow: 7\nhigh: 1", "found a scale from 7 to 1; expected low < high"),
        ("n_levels: many", "n_levels: found 'many'; expected a whole number"),
        ("- kind", "found a list at the top"),
    ],
)
def test_a_question_that_does_not_fit_is_refused_with_its_file(text, message, tmp_path):
    path = tmp_path / "question.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"question\.yaml: .*{re.escape(message)}"):
        asked_question("", file=path)


def test_prompts_that_do_not_fit_leave_no_store_behind(checkpoints, tmp_path, progress):
    (tmp_path / "prompts.txt").write_text("ab\n" + "cd " * 400 + "\n")
    with pytest.raises(InputError, match="Shorten the prompt or the response limit"):
        collect_from(
            str(tmp_path / "new.db"), checkpoints[:1], tmp_path / "prompts.txt", SMALL, wait=False, progress=progress
        )
    assert not list(tmp_path.glob("new.db*"))


def test_where_nobody_names_a_length_responses_are_as_long_as_the_context_leaves(
    checkpoints, store, tmp_path, progress
):
    lm = load_lm(checkpoints[0])
    prompts = [user_prompt("ab " * 20), user_prompt("cd")]
    asked = Asking(n_tasks=2, n_samples=2)
    assert ask_about(store, {"first": lm}, prompts, asked, progress=progress).n_tasks == 2
    n_longest = max(len(prompt_tokens(lm.tokenizer, one.turns)) for one in prompts)
    assert longest_response([lm], prompts, None) == lm.context_length - n_longest - 1  # and the end token
    assert longest_response([lm], prompts, 200) == 200
    sampler = sampler_of(lm, max_new_tokens=None)
    assert [len(texts) for texts in sampler(prompts, n_samples=1, seed=0)] == [1, 1]
    (tmp_path / "prompts.txt").write_text("cd " * 37 + "\n")  # leaves less than a quarter
    with pytest.raises(InputError, match="room wanted for 32"):
        collect_from(
            str(tmp_path / "new.db"), checkpoints[:1], tmp_path / "prompts.txt", asked, wait=False, progress=progress
        )
    assert not list(tmp_path.glob("new.db*"))


def test_questions_are_chosen_with_a_reward_model_and_the_gain_is_said(checkpoints, store, progress, monkeypatch):
    def scorer(prompts, texts):
        draws = torch.randn(8, len(texts), 1, generator=torch.Generator().manual_seed(0))
        ids = {p.id: i for i, p in enumerate(dict.fromkeys(prompts))}
        return Belief(draws, torch.zeros(8, len(ids), 1), torch.tensor([ids[p.id] for p in prompts]))

    monkeypatch.setattr(asking_module, "load_scorer", lambda _: scorer)
    asking = replace(SMALL, n_tasks=12, strategy="bald", reward=Path("runs/x/models/reward"), overlap=2, batch="c")
    done = ask_about(store, {"first": load_lm(checkpoints[0])}, PROMPTS, asking, progress=progress)
    tasks = store.tasks()
    assert done.n_tasks == len(tasks) == 12
    assert [sum(t.strategy == how for t in tasks) for how in ("random", "bald")] == [3, 9]
    assert {(t.overlap, t.batch) for t in tasks} == {(2, "c")}
    assert all(0 < t.propensity <= 1 for t in tasks)
    assert done.gain.low < done.gain.value < done.gain.high
    assert "8 span 7 directions and 9 questions were chosen" in done.caution
    with pytest.raises(ConfigError, match="strategy bald for a rating with a reward model"):
        replace(asking, question=asked_question("rating"))
    with pytest.raises(ConfigError, match="--strategy margin: expected one of random, bald, variance"):
        replace(asking, strategy="margin")
