"""The consensus of a store's answers: which model they bear, where it is open, and whose answers it counts."""

from __future__ import annotations

import numpy as np
import pytest

from feedback_cases import small_store, vote
from karat.feedback.people import standing
from karat.feedback.quality.answer_table import vote_table
from karat.feedback.quality.consensus import dawid_skene, majority, one_coin
from karat.feedback.work import checks
from karat.feedback.work.consensus_view import SURE, consensus_rows
from karat.records import vote_of


def judged(store, n_raters: int, *, careless: str | None = None, seed: int = 0) -> list:
    """Every task answered by some raters who agree nine times of ten; one may click at random."""
    rng = np.random.default_rng(seed)
    for task in store.tasks():
        better = 2 if task.response_ids[0] < task.response_ids[1] else 0
        for i in range(n_raters):
            right = rng.random() < (0.5 if f"r{i}" == careless else 0.9)
            store.submit(vote(task, f"r{i}", level=better if right else 2 - better))
    return store.records()


def test_three_answers_an_item_bear_each_raters_own_confusion(tmp_path):
    store = small_store(tmp_path / "k.db", n_prompts=20, n_tasks=40, overlap=5)
    records = judged(store, 5, careless="r3")
    [row], n_left_out = consensus_rows(store, records)
    table = vote_table([found for one in records if (found := vote_of(one.judgement))])
    model, votes = dawid_skene(table), majority(table)
    assert (row.about, row.n_items, row.n_answers, n_left_out) == ("comparison: which is better", 40, 200, 0)
    assert row.n_split == int((votes.winner < 0).sum())
    assert row.n_open == int((model.certainty < SURE).sum()) > 0
    assert row.n_other == int(((votes.winner >= 0) & (votes.winner != model.posterior.argmax(axis=1))).sum())
    assert row.certainty == pytest.approx(float(model.certainty.mean()))
    assert row.method.startswith("Dawid–Skene")
    assert dict(row.prevalence) == {"tie": pytest.approx(float(model.prevalence[1]))}
    assert row.raters[0].annotator == "r3"  # whoever is least sure to be right stands first
    assert row.raters[0].accuracy.high < row.raters[1].accuracy.high
    least = row.open_items[0]
    assert least.certainty == pytest.approx(float(model.certainty.min()))
    worst = frozenset(table.items[int(model.certainty.argmin())])
    assert frozenset(next(one for one in store.tasks() if one.id == least.task_id).response_ids) == worst


def test_two_answers_an_item_bear_one_coin_and_one_answer_nothing(tmp_path):
    store = small_store(tmp_path / "k.db", n_prompts=20, n_tasks=40, overlap=2)
    records = judged(store, 2)
    [row], _ = consensus_rows(store, records)
    table = vote_table([found for one in records if (found := vote_of(one.judgement))])
    assert row.method.startswith("one coin")
    assert row.certainty == pytest.approx(float(one_coin(table).certainty.mean()))
    once = [one for one in records if one.judgement.annotator == "r0"]
    [row], _ = consensus_rows(store, once)
    assert (row.n_open, row.certainty, row.open_items, row.raters) == (None, None, (), ())
    assert row.why == "1.0 answers an item; expected 2 or more: nobody can be told from luck with fewer"


def test_one_value_alone_is_undefined_for_its_reason(tmp_path):
    store = small_store(tmp_path / "k.db", n_prompts=3, n_tasks=3, overlap=3)
    for task in store.tasks():
        for i in range(3):
            store.submit(vote(task, f"r{i}", level=1))
    [row], _ = consensus_rows(store, store.records())
    # a comparison has three values whether or not they occur
    assert dict(row.prevalence)["tie"] > 0.5
    assert consensus_rows(small_store(tmp_path / "e.db"), []) == ([], 0)


def test_checks_and_raters_in_quarantine_are_left_out(tmp_path):
    store = small_store(tmp_path / "k.db", n_prompts=20, n_tasks=20, overlap=4)
    judged(store, 4)
    before, _ = consensus_rows(store, [one for one in store.records() if one.judgement.annotator != "r2"])
    [gold] = checks.add_gold(store, [(store.tasks()[0], {"level": 2, "n_levels": 3})], version="1")
    store.submit(vote(gold, "r0"))
    standing.quarantine(store, "r2", reason="clicks", by="a", now=1.0)
    after, n_left_out = consensus_rows(store, store.records())
    assert n_left_out == 21  # twenty of hers and the check
    assert after == before
