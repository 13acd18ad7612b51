"""Raters weighted to a target population by what they said about themselves: the figures, and that nobody is given away."""

from __future__ import annotations

import json

import numpy as np
import pytest

from feedback_cases import small_store, vote
from karat.cli import main
from karat.errors import InputError
from karat.feedback.documents import CONSENT, put_document
from karat.feedback.people import accounts, care, standing
from karat.feedback.people.who_judged import slice_tables
from karat.feedback.quality.population import rake, weighted_win_rate
from karat.feedback.work.arena import make_arena
from karat.feedback.work.who_speaks import put_target, read_target, spoken, target_of
from karat.records import user_prompt

TARGET = {"gender": {"woman": 0.5, "man": 0.5}}
MERGED = {"age": {"18–24 | 25–34": 0.3, "35–44": 0.7}}


def people(store, groups: dict[tuple[str, str], int]) -> list[str]:
    """Raters of some genders and ages, who judged once each; "" = did not say."""
    names = [f"r{i}" for i in range(sum(groups.values()))]
    said = [one for one, n in groups.items() for _ in range(n)]
    tasks = store.tasks()
    for i, (name, (gender, age)) in enumerate(zip(names, said, strict=True)):
        store.submit(vote(tasks[i % len(tasks)], name))
        fields = {key: value for key, value in (("gender", gender), ("age", age)) if value}
        if fields:
            care.save_demographics(store, name, fields, consent="about you", now=1.0)
    return names


@pytest.fixture
def store(tmp_path):
    return small_store(tmp_path / "k.db", n_prompts=4, n_tasks=4, overlap=60, n_raters=60)


def draw():
    return np.random.default_rng(0)


def test_the_weights_are_those_of_raking_what_raters_said(store):
    people(store, {("woman", "18–24"): 10, ("woman", "35–44"): 10, ("man", "35–44"): 40})
    found = spoken(store, TARGET, draw())
    oracle = rake({"gender": ["woman"] * 20 + ["man"] * 40}, TARGET)
    assert (found.why, found.n_raters, found.empty) == ("", 60, ())
    assert found.design_effect == round(oracle.design_effect, 1) == 1.1
    assert oracle.effective_n == pytest.approx(60 / (1 + 1 / 8))
    assert found.effective_n == 50  # 53.3, rounded down to tens
    assert found.max_weight == 1.5
    assert [(one.group, one.n_raters) for one in found.groups] == [("woman", 20), ("man", 40)]
    assert [one.before for one in found.groups] == pytest.approx([1 / 3, 2 / 3])
    assert [one.after for one in found.groups] == pytest.approx([0.5, 0.5])


def test_nothing_is_shown_where_a_group_is_small_or_could_be_worked_out(store):
    people(store, {("woman", "18–24"): 9, ("woman", "25–34"): 11, ("man", "35–44"): 40})
    small = spoken(store, {"age": {"18–24": 0.2, "25–34": 0.1, "35–44": 0.7}}, draw())
    assert "has fewer than 10 raters" in small.why
    assert (small.design_effect, small.effective_n, small.max_weight) == (None, None, None)
    assert (small.groups, small.empty, small.rates) == ((), (), ())
    # leaving the small group out of the target makes it "not said", which is as small
    assert spoken(store, {"age": {"25–34": 0.3, "35–44": 0.7}}, draw()).why
    assert not spoken(store, MERGED, draw()).why
    assert spoken(store, TARGET, draw()).groups[0].n_raters == 20


def test_what_auditors_see_counts_as_shown(store):
    """25–34 is hidden there lest 18–24 be worked out; a target that tells it from another group would give it away."""
    people(store, {("", "18–24"): 5, ("", "25–34"): 11, ("", "35–44"): 14, ("", "45–54"): 30})
    [table] = slice_tables(store)
    assert {cell.group for cell in table.cells if cell.suppressed} == {"18–24", "25–34"}
    telling = {"age": {"25–34 | 35–44": 0.5, "45–54 | 18–24": 0.5}}
    assert "worked out from what is shown elsewhere" in spoken(store, telling, draw()).why
    assert not spoken(store, {"age": {"18–24 | 25–34": 0.5, "35–44 | 45–54": 0.5}}, draw()).why


def test_those_who_did_not_say_keep_their_weight_and_are_no_small_group_either(store):
    people(store, {("woman", ""): 20, ("man", ""): 30, ("", ""): 10})
    found = spoken(store, TARGET, draw())
    oracle = rake({"gender": ["woman"] * 20 + ["man"] * 30 + [None] * 10}, TARGET)
    assert found.max_weight == round(oracle.max_weight, 1)
    assert sum(one.n_raters for one in found.groups) == 50
    standing.quarantine(store, "r59", reason="clicks", by="a", now=1.0)  # nine are left of those who did not say
    assert "fewer than 10 raters" in spoken(store, TARGET, draw()).why
    # auditors see the men, so that women and the silent must stay together
    assert spoken(store, {"gender": {"woman": 0.5, "man | not said": 0.5}}, draw()).why
    assert not spoken(store, {"gender": {"woman | not said": 0.5, "man": 0.5}}, draw()).why


def test_a_consent_that_was_taken_back_takes_what_was_said_with_it(store):
    names = people(store, {("woman", ""): 20, ("man", ""): 30, ("", ""): 10})
    assert care.consented_demographics(store) == care.all_demographics(store)
    put_document(store, CONSENT, "1", {"text": "I agree."}, now=1.0)
    account = accounts.make_account(store, "annotator", now=1.0)
    with store.connection(write=True) as connection:  # a rater who came by a link and said who she is
        connection.exec_driver_sql(f"UPDATE accounts SET annotator = '{names[0]}' WHERE id = '{account.id}'")
    care.give_consent(store, account.id, "1", now=2.0)
    care.save_demographics(store, names[0], {"gender": "woman"}, consent="1", now=2.0)
    assert spoken(store, TARGET, draw()).groups[0].n_raters == 20
    care.withdraw_consent(store, account.id, now=3.0)
    assert names[0] not in care.consented_demographics(store)
    assert names[0] in care.all_demographics(store)  # hers to read and delete
    assert [one.n_raters for one in spoken(store, TARGET, draw()).groups] == [19, 30]
    [table] = [one for one in slice_tables(store) if one.field == "gender"]
    assert {cell.group: cell.n_raters for cell in table.cells}["woman"] == 19
    care.give_consent(store, account.id, "1", now=4.0)
    assert spoken(store, TARGET, draw()).groups[0].n_raters == 20


def test_a_group_without_raters_is_named_and_nobody_speaks_for_it(store):
    people(store, {("woman", ""): 20, ("man", ""): 40})
    found = spoken(store, {"gender": {"woman": 0.4, "man": 0.4, "non-binary": 0.2}}, draw())
    assert found.empty == ("gender: non-binary",)
    assert [one.group for one in found.groups] == ["woman", "man"]
    assert spoken(store, {"income": {"low": 1.0}}, draw()).why == "no rater has said anything about 'income'"


def test_an_arena_is_weighted_too_if_enough_of_each_group_judged_in_it(store):
    names = people(store, {("woman", ""): 20, ("man", ""): 40})
    samples = {"x": [(user_prompt("which?"), "this")], "y": [(user_prompt("which?"), "that")]}
    made = make_arena(store, "live", samples, now=1.0, overlap=60)
    [(task_id, (first, _))] = made.written_by.items()
    task = next(one for one in store.tasks() if one.id == task_id)
    for i, name in enumerate(names[:15] + names[20:]):
        likes_first = i < 15  # women like x
        store.submit(vote(task, name, level=2 if likes_first == (task.response_ids[0] == first) else 0))
    [row] = spoken(store, TARGET, draw()).rates
    assert row.what == "the win rate of x against y"
    genders = ["woman"] * 15 + ["man"] * 40
    oracle = weighted_win_rate([1.0] * 15 + [0.0] * 40, np.arange(55), {"gender": genders}, TARGET, draw())
    assert row.rate.unweighted.value == oracle.unweighted.value == pytest.approx(15 / 55)
    assert row.rate.weighted.value == pytest.approx(0.5)
    for name in names[4:15]:
        standing.quarantine(store, name, reason="clicks", by="a", now=2.0)
    [row] = spoken(store, {"gender": {"woman | not said": 0.5, "man": 0.5}}, draw()).rates or [None]
    assert row is None or row.why == "fewer than 10 raters of some group judged in this arena"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "f: found no JSON object; expected"),
        ("[1]", "f: found no JSON object; expected"),
        ('{"age": {"x": -1}}', "age: found {'x': -1}; expected category → share"),
    ],
)
def test_what_is_no_target_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        read_target(text, "f")


def test_an_answer_belongs_to_one_group(store):
    people(store, {("woman", ""): 20, ("man", ""): 40})
    with pytest.raises(InputError, match="found 'man' in two groups of gender"):
        spoken(store, {"gender": {"woman | man": 0.5, "man": 0.5}}, draw())


def test_the_command_weights_to_a_file_and_keeps_it_if_asked(store, tmp_path, capsys):
    people(store, {("woman", ""): 20, ("man", ""): 40})
    file = tmp_path / "adults.json"
    file.write_text(json.dumps(TARGET))
    assert main(["quality", store.address, "--population", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["population"]
    assert (found["design_effect"], found["effective_n"]) == (1.1, 50)
    assert target_of(store) is None
    assert main(["quality", store.address, "--population", str(file), "--keep"]) == 0
    assert "population 60 raters, design effect 1.1, effectively about 50" in capsys.readouterr().out
    assert target_of(store) == TARGET
    put_target(store, None, now=9e9)
    assert target_of(store) is None
    assert main(["quality", store.address, "--keep"]) == 2
    assert "found --keep without --population" in capsys.readouterr().err
