"""Simulated raters: clients of the queue, reproducible whatever interrupts them, true to the likelihood."""

import datetime
import os
import signal
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from feedback_cases import small_store
from karat.errors import ConfigError
from karat.feedback.simulated import RaterTraits, assignment_plan, collect_simulated
from karat.feedback.snapshot import write_snapshot
from karat.feedback.store import open_store
from karat.records import Annotator

RATERS = [Annotator(f"sim{i}", "simulated") for i in range(6)]
CUTPOINTS = (-0.5, 0.5)


def longer_is_better(_annotator, _prompt, texts, rng):
    return [0.3 * len(text.split()) + 0.5 * rng.standard_normal() for text in texts]


def indifferent(*_):
    return [0.0, 0.0]


def ordinal(delta, side, traits, cutpoints):
    """P(y ≤ k) = σ(c_k − a·Δ − b·side), mixed with a uniform lapse; written without torch, from the paper."""
    eta = np.array([each.competence for each in traits]) * delta + np.array([t.side_bias for t in traits]) * side
    upto = 1 / (1 + np.exp(eta[:, None] - cutpoints[None, :]))
    steps = np.diff(np.concatenate([np.zeros((len(eta), 1)), upto, np.ones((len(eta), 1))], axis=1))
    lapse = np.array([each.lapse for each in traits])[:, None]
    return (1 - lapse) * steps + lapse / steps.shape[1]


def collect(store, *, traits=lambda _: RaterTraits(1.0, 0.2, 0.05), utilities=longer_is_better, **rest):
    return collect_simulated(
        store, RATERS, utilities, traits, cutpoints=CUTPOINTS, level_probs=ordinal, **{"seed": 3, **rest}
    )


def test_every_task_gets_its_overlap_from_different_raters(tmp_path):
    store = small_store(tmp_path / "k.db", overlap=3)
    assert collect(store) == 30
    pairs = [(each.task_id, each.annotator) for each in store.judgements()]
    assert len(set(pairs)) == len(pairs) == 30
    assert set(Counter(task for task, _ in pairs).values()) == {3}
    assert store.lease_next("r0", now=0.0) is None
    assert {each.origin for each in store.judgements()} == {"simulated"}
    assert all(1 < each.active_s < 60 for each in store.judgements())
    assert {record.late for record in store.records()} == {False}


def test_sides_are_shown_at_random_and_recorded(tmp_path):
    store = small_store(tmp_path / "k.db", n_prompts=20, n_tasks=100, overlap=2)
    collect(store)
    n_first = sum(each.shown_order == (0, 1) for each in store.judgements())
    assert 70 < n_first < 130  # 200 coins: standard deviation 7


@pytest.mark.parametrize("stops", [(1,), (5, 17, 29)])
def test_stopping_and_going_on_changes_no_byte(tmp_path, stops):
    whole = small_store(tmp_path / "whole.db", overlap=3)
    collect(whole)
    expected = write_snapshot(whole, tmp_path / "whole")
    parts = small_store(tmp_path / "parts.db", overlap=3)
    for stop in stops:
        assert collect(parts, until=stop) == stop
        assert parts.n_judgements() == stop
    collect(parts)
    assert write_snapshot(parts, tmp_path / "parts") == expected


def test_leases_left_by_a_kill_are_taken_up_again(tmp_path):
    whole = small_store(tmp_path / "whole.db", overlap=3)
    collect(whole)
    store = small_store(tmp_path / "k.db", overlap=3)
    store.add_annotators(RATERS)
    plan = assignment_plan(store.tasks(), RATERS, seed=3)
    store.lease_many([(task.id, who.id) for task, who in plan[:7]], now=0.0)
    assert collect(store) == 30
    assert {each.id for each in store.records()} == {each.id for each in whole.records()}


RUN_UNTIL_KILLED = """
import sys
from karat.feedback import simulated
from karat.feedback.store import open_store
sys.path.insert(0, sys.argv[2])
import test_feedback_simulated as case
simulated.CHUNK = 4
case.collect(open_store(sys.argv[1]), progress=lambda done, planned: print(done, flush=True))
"""


def test_a_killed_collection_ends_with_the_same_votes(tmp_path):
    whole = small_store(tmp_path / "whole.db", n_prompts=20, n_tasks=100, overlap=3)
    collect(whole)
    small_store(tmp_path / "k.db", n_prompts=20, n_tasks=100, overlap=3).close()
    process = subprocess.Popen(
        [sys.executable, "-c", RUN_UNTIL_KILLED, str(tmp_path / "k.db"), os.path.dirname(__file__)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    acknowledged = [int(process.stdout.readline()) for _ in range(9)][-1]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    store = open_store(tmp_path / "k.db")
    assert acknowledged <= store.n_judgements() < 300
    assert collect(store) == 300
    assert write_snapshot(store, tmp_path / "a").root == write_snapshot(whole, tmp_path / "b").root


def test_another_seed_draws_other_votes(tmp_path):
    first, second = (small_store(tmp_path / name) for name in ("a.db", "b.db"))
    collect(first)
    collect(second, seed=4)
    assert [each.value for each in first.judgements()] != [each.value for each in second.judgements()]


def test_votes_follow_the_likelihood(tmp_path):
    store = small_store(tmp_path / "k.db", n_prompts=70, n_tasks=400, overlap=3)
    collect(store, traits=dict.fromkeys((who.id for who in RATERS), RaterTraits(1.5, 0.6, 0.1)), utilities=indifferent)
    votes = store.judgements()
    side = np.array([1.0 if each.shown_order[0] == 0 else -1.0 for each in votes])
    level = np.array([each.value["level"] for each in votes])
    expected = ordinal(np.zeros(2), np.array([1.0, -1.0]), [RaterTraits(1.5, 0.6, 0.1)] * 2, np.array(CUTPOINTS))
    for row, one in zip(expected, (1.0, -1.0), strict=True):
        found = np.bincount(level[side == one], minlength=3) / (side == one).sum()
        assert np.abs(found - row).max() < 4 * np.sqrt(0.25 / (side == one).sum())


def test_the_likelihood_of_choice_is_the_default(tmp_path):
    first, second = (small_store(tmp_path / name) for name in ("a.db", "b.db"))
    collect(first)
    collect_simulated(
        second, RATERS, longer_is_better, {who.id: RaterTraits(1.0, 0.2, 0.05) for who in RATERS},
        cutpoints=CUTPOINTS, seed=3,
    )  # fmt: skip
    assert first.judgements() == second.judgements()


def test_the_moment_of_an_answer_is_when_its_rater_perceives(tmp_path):
    store, seen = small_store(tmp_path / "k.db", n_prompts=4, n_tasks=12, overlap=2), []

    def later_is_longer(_annotator, _prompt, texts, _rng, *, time):
        seen.append(time)
        return [40 * (time - 0.5) * len(text.split()) for text in texts]

    assert collect(store, utilities=later_is_longer, over_time=True) == 24
    year = [datetime.datetime.fromisoformat(one.created_at) for one in store.judgements()]
    days = [(when - datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)).total_seconds() for when in year]
    assert sorted(day / 31_536_000 for day in days) == pytest.approx(sorted(seen), abs=1e-12)
    assert min(seen) < 0.2 < 0.8 < max(seen)


def test_progress_counts_up_to_the_plan(tmp_path):
    seen = []
    collect(small_store(tmp_path / "k.db", overlap=3), progress=lambda *counts: seen.append(counts), until=12)
    assert seen[-1] == (12, 12)


def test_wrong_plans_are_refused(tmp_path):
    store = small_store(tmp_path / "k.db", overlap=9, n_raters=9)
    with pytest.raises(ConfigError, match="needs 9 different raters, found 6"):
        collect(store)
    with pytest.raises(ConfigError, match="expected K − 1 ascending numbers"):
        collect_simulated(store, RATERS, longer_is_better, {}, cutpoints=[1.0, -1.0], seed=0)
