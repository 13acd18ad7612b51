"""Beside the server: two checkpoints answer raters and fill the queue; what fails ends alone and says so."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from karat import cli
from karat.errors import ConfigError
from karat.feedback.people.accounts import make_account
from karat.feedback.store import open_store
from karat.feedback.work.arena import LIVE, arena
from karat.feedback.work.duels import ASKED, ask_duel, asked_by
from karat.lm.load import load_lm
from karat.pipeline.asking import Asking
from karat.pipeline.serving import beside, policy_names, serve_arena
from karat.progress import open_progress
from karat.records import user_prompt
from tiny_models import tiny_checkpoint

SMALL = Asking(n_tasks=4, n_samples=2, max_new_tokens=8)


class UntilIdle(threading.Event):
    """Stops at the first moment in which nothing is to be done."""

    def wait(self, timeout=None):
        self.set()
        return timeout is not None


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return tiny_checkpoint("qwen3", root / "first"), tiny_checkpoint("llama", root / "second")


@pytest.fixture
def store(tmp_path):
    with open_store(tmp_path / "k.db") as opened:
        yield opened


def test_two_checkpoints_answer_raters_and_fill_the_queue(checkpoints, store):
    ann = make_account(store, "annotator", now=0.0)
    ask_duel(store, user_prompt("what is karat?"), ann.annotator)
    models = dict(zip(policy_names(checkpoints), map(load_lm, checkpoints), strict=True))
    prompts = [user_prompt(f"ab {i}") for i in range(12)]
    with open_progress(quiet=True) as progress:
        n = serve_arena(store, models, prompts, SMALL, n_waiting_least=6, progress=progress, stop=UntilIdle())
    assert n == 1
    assert asked_by(store, ann.annotator) is None
    set_up = arena(store, "live")
    assert set_up.policies == ("first", "second")
    by_strategy = {task.id: task for task in store.tasks(batch=set_up.batch)}
    duels = [task for task in by_strategy.values() if task.strategy == LIVE]
    assert [(task.reserved_for, task.overlap) for task in duels] == [(ann.annotator, 1)]
    sampled = [task for task in by_strategy.values() if task.strategy == "random"]
    assert len(sampled) == 8  # 4 a fill, until 6 wait
    assert all(task.reserved_for is None for task in sampled)
    sources = {response_id: one.source for response_id, one in store.responses().items()}
    for task in by_strategy.values():
        assert [sources[one] for one in set_up.written_by[task.id]] == ["first", "second"]


def test_a_question_that_no_model_can_read_comes_to_nothing_and_the_thread_goes_on(checkpoints, store):
    ann, bob = (make_account(store, "annotator", now=0.0) for _ in range(2))
    ask_duel(store, user_prompt("x" * 100_000), ann.annotator)
    ask_duel(store, user_prompt("short"), bob.annotator)
    models = dict(zip(("a", "b"), map(load_lm, checkpoints), strict=True))
    with open_progress(quiet=True) as progress:
        n = serve_arena(store, models, [], SMALL, n_waiting_least=6, progress=progress, stop=UntilIdle())
    assert n == 2
    assert asked_by(store, ann.annotator).nothing == "a policy did not answer"
    assert asked_by(store, bob.annotator) is None
    assert sum(task.batch != ASKED for task in store.tasks()) == 1


def test_policies_are_called_after_their_directories(tmp_path):
    first, second, same = tmp_path / "a" / "ppo", tmp_path / "a" / "sft", tmp_path / "b" / "ppo"
    assert policy_names([first, second]) == ("ppo", "sft")
    assert policy_names([first, same]) == (str(first), str(same))
    with pytest.raises(ConfigError, match="against itself; expected two checkpoints"):
        policy_names([first, tmp_path / "b" / ".." / "a" / "ppo"])


def test_a_job_that_fails_says_so_in_one_line_and_ends_alone(tmp_path):
    said, others = [], threading.Event()

    def fails(*_):
        raise RuntimeError("out of\nmemory")

    def works(_, __, stop):
        others.set()
        stop.wait()

    with beside(str(tmp_path / "k.db"), {"the arena": fails, "the filling": works}, said.append):
        assert others.wait(30)
        while not said:
            others.wait(0.01)
    assert said == ["karat serve: the arena has stopped (RuntimeError: out of memory); judging goes on without it"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "p"], "found --policy without --prompts"),
        (["--prompts", "f"], "or --prompts alone"),
        (["--arena", "p", "p"], "against itself"),
        (["--arena", "nothing", "nowhere"], "nothing"),
    ],
)
def test_what_cannot_be_served_is_one_line_before_anybody_is_let_in(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["serve", "k.db", *arguments]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert said in line


def test_the_command_prints_win_rates_with_their_intervals(checkpoints, store, tmp_path, capsys):
    models = dict(zip(("x", "y"), map(load_lm, checkpoints), strict=True))
    with open_progress(quiet=True) as progress:
        asking = replace(SMALL, n_tasks=3)
        prompts = [user_prompt(f"ab {i}") for i in range(3)]
        serve_arena(store, models, prompts, asking, n_waiting_least=1, progress=progress, stop=UntilIdle())
    assert cli.main(["arena", str(tmp_path / "k.db"), "live", "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["arenas"]
    assert (found["policies"], found["n_questions"], found["n_wins"]) == (["x", "y"], 3, 0)
    assert (found["by_rater"]["value"], found["by_rater"]["method"]) == (None, "not estimable: no votes yet")
    assert cli.main(["arena", str(tmp_path / "k.db")]) == 0
    assert "live: x against y; 0 won, 0 ties, 0 lost" in capsys.readouterr().out
    assert cli.main(["arena", str(tmp_path / "k.db"), "other"]) == 2
    assert "found none by the name 'other'" in capsys.readouterr().err
