"""Silent checks: which answers are the same, gold, qualification and hidden repeats."""

import dataclasses
from collections import Counter

import pytest

from feedback_cases import small_store, vote
from karat.errors import InputError, StoreError
from karat.feedback.documents import Document, ProjectSettings, document, put_settings
from karat.feedback.people import standing
from karat.feedback.people.accounts import make_account
from karat.feedback.snapshot import read_snapshot, write_snapshot
from karat.feedback.work import adjudication, assignment, checks
from karat.feedback.work.check_answers import repeat_pairs
from karat.feedback.work.matching import agreed, gist, is_right, same_answer
from karat.feedback.work.turns import turn_of
from karat.feedback.work.vote_outcomes import outcomes_of
from karat.records import Annotator, Response, Task, user_prompt

A = {"level": 2, "n_levels": 3}


@pytest.fixture
def store(new_address):
    return small_store(new_address("k"), n_prompts=20, n_tasks=100, overlap=4, n_raters=3)


def only(store, **rates):
    put_settings(store, ProjectSettings(**({"gold_rate": 0.0, "repeat_rate": 0.0, "repeat_gap": 0} | rates)), now=0.0)


def work(store, who, n, level=2, now=1.0):
    """Answer n offers with one level; the tasks in their order."""
    seen = []
    for _ in range(n):
        offer = assignment.next_work(store, who, now=now)
        if offer.lease is None:
            break
        seen.append(offer.lease.task)
        store.submit(vote(offer.lease.task, who, level=level, shown_order=offer.shown_order), now=now)
    return seen


# Which answers say the same


@pytest.mark.parametrize(
    ("kind", "first", "second", "same"),
    [
        ("comparison", {"level": 6, "n_levels": 7}, {"level": 4, "n_levels": 7}, True),
        ("comparison", {"level": 6, "n_levels": 7}, {"level": 1, "n_levels": 2}, True),
        ("comparison", {"level": 2, "n_levels": 7}, {"level": 4, "n_levels": 7}, False),
        ("comparison", {"level": 3, "n_levels": 7}, {"level": 3, "n_levels": 7, "both": "bad"}, False),
        ("ranking", {"ranks": [1, 2, 2]}, {"ranks": [1, 3, 3]}, True),
        ("ranking", {"ranks": [1, 2, 2]}, {"ranks": [1, 2, 3]}, False),
        ("best_of", {"best": 0}, {"best": 0}, True),
        ("label", {"good": True, "flags": ["a", "b"]}, {"good": True, "flags": ["b", "a"]}, True),
        ("label", {"good": True}, {"good": False}, False),
        ("rating", {"score": 3, "low": 1, "high": 7}, {"score": 3.0, "low": 1, "high": 7}, True),
        ("critique", {"text": "x"}, {"text": "x"}, False),
        ("comparison", {"missing": "cannot judge"}, {"missing": "cannot judge"}, False),
        (
            "step_marks",
            {"steps": [{"start": 0, "end": 3, "mark": 1}]},
            {"steps": [{"start": 0, "end": 3, "mark": 0}]},
            False,
        ),
    ],
)
def test_answers_that_say_the_same(kind, first, second, same):
    assert same_answer(kind, first, second) is same is same_answer(kind, second, first)


def test_a_best_answer_with_index_zero_is_an_answer():
    assert gist("best_of", {"best": 0}) == 0
    assert agreed("best_of", [{"best": 0}, {"best": 0}], 2)


@pytest.mark.parametrize(
    ("kind", "expected", "given", "right"),
    [
        ("comparison", {"level": 1, "n_levels": 2}, {"level": 4, "n_levels": 7}, True),
        ("comparison", {"level": 1, "n_levels": 2}, {"level": 3, "n_levels": 7}, False),
        ("comparison", {"level": 1, "n_levels": 3}, {"level": 3, "n_levels": 7, "both": "good"}, True),
        ("comparison", {"level": 1, "n_levels": 3, "both": "bad"}, {"level": 3, "n_levels": 7, "both": "good"}, False),
        ("comparison", {"level": 1, "n_levels": 2}, {"missing": "cannot judge"}, False),
        ("comparison", {"missing": "none fits"}, {"missing": "none fits"}, True),
        ("comparison", {"missing": "none fits"}, {"level": 1, "n_levels": 2}, False),
        ("rating", {"score": 5, "low": 1, "high": 7}, {"score": 6, "low": 1, "high": 7}, True),
        ("rating", {"score": 5, "low": 1, "high": 7, "within": 0.5}, {"score": 6, "low": 1, "high": 7}, False),
        ("rating", {"scores": {"a": 2}, "low": 1, "high": 7}, {"scores": {"a": 2, "b": 7}, "low": 1, "high": 7}, True),
        ("rating", {"scores": {"a": 2}, "low": 1, "high": 7}, {"score": 2, "low": 1, "high": 7}, False),
        ("label", {"good": False, "flags": ["spam"]}, {"good": False, "flags": ["spam", "unsafe"]}, True),
        ("label", {"good": False, "flags": ["spam"]}, {"good": False, "flags": []}, False),
        ("label", {"flags": ["spam"]}, {"good": True, "flags": ["spam"]}, True),
        ("ranking", {"ranks": [1, 2]}, {"ranks": [2, 1]}, False),
    ],
)
def test_right_answers(kind, expected, given, right):
    assert is_right(kind, expected, given) is right


# Gold


def test_gold_comes_at_its_rate_once_each_and_only_beside_work(store):
    gold = checks.add_gold(store, [(task, A) for task in store.tasks()[40:52]], version="1")
    only(store, gold_rate=0.5)
    spare = [task.id for task in store.tasks() if task.batch == "main"][40:]
    assignment.pull(store, spare, by="a", reason="a short test", now=0.0)
    names = {task.id for task in gold}
    seen = [task.id for task in work(store, "r0", 500)]
    assert len(seen) == len(set(seen)) == 52
    assert {task_id for task_id in seen if task_id in names} == names
    assert seen[-1] not in names  # real work ran out last: nothing at the end can only be gold
    orders = [
        [task_id for task_id in [each.id for each in work(store, who, 25)] if task_id in names] for who in ("r1", "r2")
    ]
    assert orders[0] != orders[1]  # everybody has an order of her own
    assert set(checks.check_tasks(store).values()) == {"gold"}


def test_what_a_rater_has_met_as_work_never_comes_as_gold(store):
    """Judged, skipped, or with the responses the other way round: she would know it for a check."""
    judged, skipped, turned, fresh = store.tasks()[:4]
    assert len({(task.prompt_id, frozenset(task.response_ids)) for task in (judged, skipped, turned, fresh)}) == 4
    other_way = dataclasses.replace(turned, response_ids=turned.response_ids[::-1])
    gold = checks.add_gold(store, [(task, A) for task in (judged, skipped, other_way, fresh)], version="1")
    only(store)
    done = work(store, "r0", 1)
    offer = assignment.next_work(store, "r0", now=1.0)
    assignment.skip(store, offer.lease.id, "r0", reason="too long", now=1.0)
    done += [offer.lease.task, *work(store, "r0", 1)]
    assert [task.id for task in done] == [judged.id, skipped.id, turned.id]
    assignment.pull(store, [fresh.id], by="a", reason="not now", now=1.0)
    only(store, gold_rate=0.999999)
    hidden = checks.check_tasks(store)
    assert [task.id for task in work(store, "r0", 10) if task.id in hidden] == [gold[3].id]
    assert {task.id for task in work(store, "r1", 10) if task.id in hidden} == {task.id for task in gold}


def test_what_a_rater_has_had_as_gold_never_comes_as_work(store):
    """Judged or skipped as gold, in use or retired since, with the responses the other way round: a third is no other."""
    first, turned, third, *others = [task for task in store.tasks() if task.batch == "main"]
    other_way = dataclasses.replace(turned, response_ids=turned.response_ids[::-1])
    gold = checks.add_gold(store, [(first, A), (other_way, A)], version="1")
    only(store, gold_rate=0.999999)
    offer = assignment.next_work(store, "r0", now=1.0)
    assert offer.lease.task.id in {task.id for task in gold}
    assignment.skip(store, offer.lease.id, "r0", reason="hard", now=1.0)
    assert [task.id in {one.id for one in gold} for task in work(store, "r0", 1)] == [True]
    checks.retire(store, [gold[0].id], now=2.0)
    only(store)
    assert [task.id for task in work(store, "r0", 1)] == [third.id]
    assert [task.id for task in work(store, "r1", 3)] == [first.id, turned.id, third.id]
    assignment.pull(store, [task.id for task in others], by="a", reason="a short test", now=2.0)
    assert assignment.next_work(store, "r0", now=3.0).reason == "nothing left"
    only(store, gold_rate=0.999999)
    assert assignment.next_work(store, "r0", now=3.0).reason == "nothing left"


def test_without_work_there_is_no_gold(store):
    checks.add_gold(store, [(task, A) for task in store.tasks()[:12]], version="1")
    only(store, gold_rate=0.999999)
    assignment.pull(store, [task.id for task in store.tasks() if task.batch == "main"], by="a", reason="over", now=0.0)
    assert assignment.next_work(store, "r0", now=1.0).reason == "nothing left"


def test_when_gold_comes_is_decided_by_the_turn_and_the_key(store):
    checks.add_gold(store, [(task, A) for task in store.tasks()[:40]], version="1")
    only(store, gold_rate=0.3)
    first = assignment.next_task(store, "r0", now=1.0)
    assert (
        assignment.next_task(store, "r0", now=9_000_000.0).task == first.task
    )  # neither waiting nor asking changes it
    hidden = checks.check_tasks(store)
    turns = {who: [task.id in hidden for task in work(store, who, 40)] for who in ("r0", "r1")}
    assert turns["r0"] != turns["r1"]
    # 40 draws at 0.3: mean 12, standard deviation 2.9
    assert 3 <= sum(turns["r0"]) <= 24


def test_the_rate_of_gold_is_kept(store):
    gold = {task.id for task in checks.add_gold(store, [(task, A) for task in store.tasks()[:5]], version="1")}
    rates = ProjectSettings(gold_rate=0.3, repeat_rate=0.0)
    with store.connection(write=True) as connection:
        found = [turn_of(connection, f"rater {i}", rates, b"key", now=0.0).check for i in range(400)]
    n = Counter(row.id for row in found if row is not None)
    # 120 expected, standard deviation 9.2; each item a fifth of them
    assert 90 < n.total() < 150
    assert set(n) == gold
    assert min(n.values()) > 8


def test_a_lease_says_nothing_about_what_it_is_for(store):
    checks.add_gold(store, [(task, A) for task in store.tasks()[:40]], version="1")
    only(store, gold_rate=0.5)
    hidden = checks.check_tasks(store)
    seen = {}
    for _ in range(30):
        offer = assignment.next_work(store, "r0", now=1.0)
        held = assignment.lease_of(store, offer.lease.id, "r0", now=1.0)
        assert (held.state, held.leased_at, held.shown_order) == ("live", 1.0, offer.shown_order)
        seen.setdefault(offer.lease.task.id in hidden, []).append(
            (offer.lease.id, offer.lease.expires_at, offer.reason)
        )
        store.submit(vote(offer.lease.task, "r0", shown_order=offer.shown_order), now=1.0)
    for leases in seen.values():
        assert {(len(each[0]), each[0][:6], each[1], each[2]) for each in leases} == {(38, "lease:", 601.0, "work")}
    assert len(seen) == 2


def test_gold_is_counted_apart_and_can_be_retired(store):
    gold = checks.add_gold(store, [(task, A) for task in store.tasks()[50:54]], version="1")
    only(store, gold_rate=0.9)
    assert checks.retire(store, [gold[3].id, gold[2].id], now=0.5) == 2
    for who, level in (("r0", 2), ("r1", 0)):
        assert {task.id for task in work(store, who, 8, level=level)} & {task.id for task in gold} == {
            gold[0].id,
            gold[1].id,
        }
    results = checks.check_results(store)
    assert [(results[who].n_gold, results[who].n_right) for who in ("r0", "r1")] == [(2, 2), (2, 0)]
    assert results["r0"].gold.value == 1.0
    assert 0 < results["r0"].gold.low < 0.5
    assert list(checks.check_results(store, "r1")) == ["r1"]
    used = {item.task.id: (item.n_answers, item.n_right, item.retired_at) for item in checks.gold_items(store)}
    assert used == {
        gold[0].id: (2, 1, None),
        gold[1].id: (2, 1, None),
        gold[2].id: (0, 0, 0.5),
        gold[3].id: (0, 0, 0.5),
    }


def test_cannot_judge_is_not_right_and_a_correction_counts(store):
    checks.add_gold(store, [(store.tasks()[0], A)], version="1")
    only(store, gold_rate=0.999999)
    offer = assignment.next_work(store, "r0", now=1.0)
    assert offer.lease.task.id in checks.check_tasks(store)
    first = store.submit(vote(offer.lease.task, "r0", level=0), now=1.0)
    assert checks.check_results(store)["r0"].n_right == 0
    store.submit(vote(offer.lease.task, "r0", key="undo", supersedes=first.id), now=2.0)
    assert (checks.check_results(store)["r0"].n_gold, checks.check_results(store)["r0"].n_right) == (1, 1)


@pytest.mark.parametrize(
    ("changes", "expected", "message"),
    [
        (
            {"kind": "critique", "response_ids": 1},
            {"text": "fine"},
            "found a critique, whose answers only people can compare",
        ),
        ({}, {"level": 9, "n_levels": 3}, r"expected 2 responses and level in 0"),
    ],
)
def test_gold_that_cannot_be_compared_is_refused(tmp_path, changes, expected, message):
    store = small_store(tmp_path / "k.db")
    task = store.tasks()[0]
    task = Task(
        task.prompt_id, task.response_ids[: changes.get("response_ids", 2)], kind=changes.get("kind", "comparison")
    )
    with pytest.raises(InputError, match=message):
        checks.add_gold(store, [(task, expected)], version="1")
    with pytest.raises(InputError, match="expected 1 to 40 characters"):
        checks.add_gold(store, [(store.tasks()[0], A)], version="")


def test_answers_to_checks_are_no_votes_to_plan_from(store):
    [gold] = checks.add_gold(store, [(store.tasks()[0], A)], version="1")
    store.submit(vote(gold, "r0"), now=1.0)
    with pytest.raises(InputError, match="found no comparisons"):
        outcomes_of(store)
    store.submit(vote(store.tasks()[1], "r0"), now=2.0)
    assert len(outcomes_of(store).outcome) == 1


# Qualification


def qualify(store, **rest):
    return checks.add_qualification(
        store, [(task, A) for task in store.tasks()[:4]], **({"version": "1", "pass_mark": 0.75, "now": 0.0} | rest)
    )


def test_a_qualification_comes_before_work_and_passing_it_opens_the_queue(store):
    qualify(store)
    only(store)
    assert standing.standing_of(store, "r0").state == "unqualified"
    items = work(store, "r0", 4)
    assert {task.batch for task in items} == {"qualification:1:1"}
    assert assignment.next_task(store, "r0", now=1.0).task.batch == "main"
    found = standing.standing_of(store, "r0")
    assert (found.state, found.events[0].by) == ("working", "qualification:1")
    assert found.events[0].reason == "4 of 4 right in attempt 1 at version 1; the pass mark is 75%, 3 of 4"
    assert checks.check_results(store)["r0"].n_qualification_right == 4


def test_two_attempts_and_no_more(store):
    qualify(store)
    only(store)
    offers = work(store, "r0", 50, level=0)
    assert [task.batch for task in offers] == ["qualification:1:1"] * 4 + ["qualification:1:2"] * 4
    assert assignment.next_work(store, "r0", now=2.0).reason == "not qualified"
    assert assignment.next_work(store, "r0", now=3.0).reason == "not qualified"
    found = standing.standing_of(store, "r0")
    assert (found.state, found.attempts_failed) == ("unqualified", 2)
    assert [event.action for event in found.events] == ["failed", "failed"]


def test_the_pass_mark_is_a_share_that_may_just_be_met(store):
    qualify(store, attempts=1)
    only(store)
    for level in (2, 2, 2, 0):  # 3 of 4 at a mark of 0.75
        work(store, "r0", 1, level=level)
    assert assignment.next_work(store, "r0", now=1.0).reason == "work"
    for level in (2, 2, 0, 0):
        work(store, "r1", 1, level=level)
    assert assignment.next_work(store, "r1", now=1.0).reason == "not qualified"


@pytest.mark.parametrize(
    ("mark", "n", "enough"),
    [(0.56, 25, 14), (0.58, 50, 29), (2 / 3, 3, 2), (0.6667, 3, 3), (0.01, 3, 1), (1.0, 7, 7)],
)
def test_a_mark_is_met_by_so_many_right_answers(mark, n, enough):
    body = {"pass_mark": mark, "items": [[f"task:{i}" for i in range(n)]]}
    assert checks.enough_right(Document("qualification", "1", body, "", 0.0)) == enough


def test_a_skipped_item_is_not_right(store):
    qualify(store, attempts=1, pass_mark=1.0)
    only(store)
    assignment.skip(store, assignment.next_task(store, "r0", now=1.0).id, "r0", reason="too long", now=1.0)
    work(store, "r0", 3)
    assert assignment.next_work(store, "r0", now=1.0).reason == "not qualified"


def test_a_new_version_asks_those_who_passed_only_if_it_says_so(store):
    qualify(store)
    only(store)
    work(store, "r0", 5)
    qualify(store, version="2")
    assert standing.standing_of(store, "r0").state == "working"
    qualify(store, version="3", requalify=True)
    assert standing.standing_of(store, "r0").state == "unqualified"
    assert document(store, "qualification").body["pass_mark"] == 0.75
    with pytest.raises(StoreError, match="stored with another text"):
        qualify(store, version="3", pass_mark=0.5)
    with pytest.raises(InputError, match="mark in"):
        qualify(store, version="4", pass_mark=1.5)


def test_experts_are_asked_neither_gold_nor_qualification(store):
    qualify(store)
    checks.add_gold(store, [(task, A) for task in store.tasks()[:12]], version="1")
    only(store, gold_rate=0.999999)
    expert = make_account(store, "expert", now=0.0)
    assert assignment.next_work(store, expert.annotator, now=1.0).reason == "nothing left"
    disputed = store.tasks()[0]
    for who, level in (("r1", 0), ("r2", 2)):
        store.submit(vote(disputed, who, level=level), now=1.0)
    [task] = adjudication.make_adjudication_tasks(store)
    assert assignment.next_task(store, expert.annotator, now=2.0).task == task


# Repeats


def test_a_repeat_asks_an_own_judgement_again_with_sides_swapped(store):
    only(store, repeat_rate=0.5, repeat_gap=3)
    work(store, "r0", 40)
    with store.connection() as connection:
        pairs = repeat_pairs(connection)
    repeats = [task for task in store.tasks() if task.batch.startswith("repeat:")]
    assert len(pairs) == len(repeats) > 5
    assert {task.reserved_for for task in repeats} == {"r0"}
    assert all(pair.first_order == pair.second_order[::-1] for pair in pairs)
    records = {each.id: each for each in store.records()}
    for task in repeats:
        original = records[task.batch.removeprefix("repeat:")]
        again = next(each for each in records.values() if each.judgement.task_id == task.id)
        assert original.judgement.response_ids == task.response_ids
        assert again.seq - original.seq >= 3
    assert len({task.batch for task in repeats}) == len(repeats)
    result = checks.check_results(store)["r0"]
    assert (result.n_repeats, result.n_same, result.n_same_side) == (len(repeats), len(repeats), 0)
    assert not {task.id for task in work(store, "r1", 30)} & {task.id for task in repeats}


def test_who_always_takes_one_side_is_seen_in_her_repeats(store):
    only(store, repeat_rate=0.5)
    for _ in range(40):
        offer = assignment.next_work(store, "r0", now=1.0)
        level = 2 if offer.shown_order[0] == 0 else 0  # whichever is shown first
        store.submit(vote(offer.lease.task, "r0", level=level, shown_order=offer.shown_order), now=1.0)
    result = checks.check_results(store)["r0"]
    assert result.n_same == 0
    assert result.n_same_side == result.n_repeats > 5


def test_repeats_can_be_planned_and_each_judgement_is_asked_again_once(store):
    only(store, repeat_rate=0.99)
    put_settings(store, ProjectSettings(gold_rate=0.0, repeat_rate=0.0), now=0.1)
    lease = assignment.next_task(store, "r0", now=1.0)
    first = store.submit(vote(lease.task, "r0"), now=1.0)
    [planned] = checks.plan_repeats(store, "r0", [first.id])
    for who, judgement_id in (("r0", first.id), ("r1", first.id), ("r0", "judgement:none")):
        with pytest.raises(StoreError, match="cannot be asked again"):
            checks.plan_repeats(store, who, [judgement_id])
    put_settings(store, ProjectSettings(gold_rate=0.0, repeat_rate=0.999999), now=2.0)
    assert assignment.next_task(store, "r0", now=3.0).task == planned
    second = store.submit(vote(planned, "r0"), now=4.0)
    with pytest.raises(StoreError, match="cannot be asked again"):
        checks.plan_repeats(store, "r0", [second.id])


def test_an_answer_without_one_is_not_asked_again(store):
    only(store, repeat_rate=0.999999)
    task = assignment.next_task(store, "r0", now=1.0).task
    given = vote(task, "r0")
    store.submit(type(given)(**{**vars(given), "value": {"missing": "cannot judge"}}), now=1.0)
    assert assignment.next_task(store, "r0", now=2.0).task.batch == "main"


# Leaks


def test_who_knows_the_gold_is_found_and_nobody_else(tmp_path):
    store = small_store(tmp_path / "k.db", n_prompts=20, n_tasks=60, overlap=9, n_raters=0)
    names = [f"r{i}" for i in range(6)]
    store.add_annotators([Annotator(name) for name in names])
    gold = checks.add_gold(store, [(task, A) for task in store.tasks()[:30]], version="1")
    votes = []
    for who in names:
        rate = 10 if who == "r5" else 3  # the leaker knows the gold by heart, and guesses at work
        for i, task in enumerate(gold):
            votes.append(vote(task, who, level=0 if i % rate == rate - 1 and who != "r5" else 2))
        for i, task in enumerate([task for task in store.tasks() if task.batch == "main"]):
            guess = 2 * (i % 2) if who == "r5" else 0 if (i + names.index(who)) % 5 == 4 else 2
            votes.append(vote(task, who, level=guess))
    store.submit_many(votes)
    [flag] = checks.gold_leaks(store)
    assert (flag.annotators, flag.detector, flag.n_votes) == (("r5",), "gold_leak", 30)
    assert flag.detail.startswith("30 of 30 gold items right, where")
    assert standing.record_flags(store, [flag], now=1.0) == 1


def test_no_leak_without_gold_or_work(store):
    assert checks.gold_leaks(store) == []


# What is left out


def test_a_snapshot_holds_work_and_nothing_of_checks_or_of_a_quarantined_rater(store, tmp_path):
    checks.add_gold(store, [(task, A) for task in store.tasks()[:12]], version="1")
    only(store, gold_rate=0.3, repeat_rate=0.3)
    for who in ("r0", "r1"):
        work(store, who, 25)
    hidden = checks.check_tasks(store)
    records = store.records()
    n_work = {
        who: sum(each.judgement.annotator == who and each.judgement.task_id not in hidden for each in records)
        for who in ("r0", "r1")
    }
    assert sum(n_work.values()) < len(records)
    assert len(write_snapshot(store, tmp_path / "all").votes) == sum(n_work.values())
    standing.quarantine(store, "r1", reason="a ring", by="account:a", now=2.0)
    assert len(write_snapshot(store, tmp_path / "without").votes) == n_work["r0"]
    standing.release(store, "r1", reason="no ring", by="account:a", now=3.0)
    assert write_snapshot(store, tmp_path / "again").root == read_snapshot(tmp_path / "all").root


# Disputes


def test_disputes_and_escalations_go_to_an_expert_once(store):
    split, equal, called, single = store.tasks()[:4]
    for task, levels in ((split, (0, 2)), (equal, (2, 2)), (single, (2,))):
        for i, level in enumerate(levels):
            store.submit(vote(task, f"r{i}", level=level))
    given = vote(called, "r0")
    store.submit(type(given)(**{**vars(given), "value": {"missing": "escalated"}}))
    found = adjudication.disputes(store)
    assert [(each.task.id, each.escalated, each.n_opinions) for each in found] == [
        (split.id, False, 2),
        (called.id, True, 1),
    ]
    made = adjudication.make_adjudication_tasks(store)
    assert [(task.audience, task.batch) for task in made] == [
        ("expert", f"adjudication:{split.id}"), ("expert", f"adjudication:{called.id}"),
    ]  # fmt: skip
    assert adjudication.make_adjudication_tasks(store) == []
    assert adjudication.disputed_task_id(made[0]) == split.id
    assert adjudication.disputed_task_id(split) is None
    standing.quarantine(store, "r1", reason="a ring", by="account:a", now=2.0)
    assert [each.task.id for each in adjudication.disputes(store)] == [called.id]


def test_texts_of_gold_must_be_in_the_store(store):
    prompt = user_prompt("unknown")
    task = Task(prompt.id, tuple(Response(prompt.id, text, "made").id for text in "xy"))
    with pytest.raises(StoreError, match="add_prompts first"):
        checks.add_gold(store, [(task, A)], version="1")
