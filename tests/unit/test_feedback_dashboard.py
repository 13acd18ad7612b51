"""What the people in charge are shown: every number again by another way, from the records alone."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback_cases import small_store, vote
from karat.errors import InputError
from karat.feedback.detect.evidence import MIN_VOTES, Flag, VoteRecord, vote_record
from karat.feedback.documents import Budget, Pay, ProjectSettings, project_settings, put_document, put_settings
from karat.feedback.people import standing
from karat.feedback.people.accounts import log, make_account
from karat.feedback.people.care import keep_arms, save_demographics
from karat.feedback.people.who_judged import LEAST, slice_tables
from karat.feedback.quality.rater_drift import ARL0, cusum_alarms, drift_alarms
from karat.feedback.quality.rater_health import comparisons_of, rater_health
from karat.feedback.quality.reliability import fit_reliability
from karat.feedback.record.auditing import FILTERS, Pseudonyms, audited, browse
from karat.feedback.store import Store, open_store
from karat.feedback.web.admin_raters import run_detectors
from karat.feedback.work import dashboard
from karat.feedback.work.arena import LIVE, add_duel, arena, arena_result, arenas, make_arena
from karat.feedback.work.checks import add_gold
from karat.feedback.work.gates import over_budget
from karat.feedback.work.outlay import amounts, ask_again, outlay
from karat.feedback.work.rates import Paid, own_pay, paid_seconds
from karat.feedback.work.requeue import pull, reissue
from karat.feedback.work.reviews import review_of, reviews, take
from karat.feedback.work.task_browser import task_detail, task_page
from karat.records import Annotator, Response, Task, user_prompt

NOW = 1_767_268_800.0
"""2026-01-01T12:00:00Z."""


@pytest.fixture
def store(tmp_path) -> Store:
    return small_store(tmp_path / "s.db", n_tasks=8, overlap=3, n_raters=6)


def at(seconds: float) -> str:
    minutes = int(seconds // 60)
    return f"2026-01-01T{minutes // 60:02d}:{minutes % 60:02d}:{int(seconds % 60):02d}Z"


def flag(who: str, n_votes: int = 20) -> list[Flag]:
    return [Flag((who,), "side-clicker", 9.0, 1e-6, n_votes, "all on one side")]


# Progress and the queue


def test_the_pulse_counts_what_the_records_say(store):
    tasks = store.tasks()
    for i, task in enumerate(tasks[:4]):
        for rater in ("r0", "r1", "r2")[: i + 1]:
            store.submit(vote(task, rater, created_at=at(3600 * (8 + i) + 1)), now=NOW)
    store.lease_next("r3", NOW, 600.0)
    store.lease_next("r4", NOW - 1000.0, 600.0)
    found = dashboard.pulse(store, now=NOW)
    judged = store.judgements()
    assert found.n_judgements == len(judged) == 9
    assert found.last_hour == sum(one.created_at > at(3600 * 11) for one in judged) == 3
    answers = Counter(one.task_id for one in judged)
    assert found.n_needed == sum(max(0, task.overlap - answers[task.id]) for task in tasks)
    assert found.n_open == sum(answers[task.id] < task.overlap for task in tasks)
    assert (found.n_held, found.n_at_work) == (1, 1)  # the other lease has run out


def test_hours_are_hours_of_the_clock_and_empty_ones_are_zero(store):
    tasks = store.tasks()
    for i, moment in enumerate((0.0, 3599.0, 3600.0, 7300.0)):
        store.submit(vote(tasks[i], "r0", created_at=at(moment)))
    hours = dashboard.judgements_per_hour(store, now=NOW - 9 * 3600 + 10, hours=5)
    assert [(one.hour, one.n) for one in hours] == [
        ("2025-12-31T23", 0),
        ("2026-01-01T00", 2),
        ("2026-01-01T01", 1),
        ("2026-01-01T02", 1),
        ("2026-01-01T03", 0),
    ]


def test_the_queue_adds_up_and_leaves_silent_checks_out(store):
    tasks = store.tasks()
    gold = Task(tasks[0].prompt_id, tasks[0].response_ids, guideline="v1", batch="unused")
    add_gold(store, [(gold, {"level": 0, "n_levels": 3})], version="1")
    for task in tasks[:3]:
        for rater in ("r0", "r1", "r2"):
            store.submit(vote(task, rater))
    pull(store, [tasks[7].id], by="admin", reason="broken", now=NOW)
    lease = store.lease_next("r5", NOW)
    store.skip(lease.id, "r5", "unclear")
    [row] = dashboard.queue(store, now=NOW)
    assert (row.batch, row.kind, row.stratum, row.n_tasks) == ("main", "comparison", "random", 8)
    assert (row.n_open, row.n_pulled, row.n_answers, row.n_needed, row.n_skipped) == (4, 1, 9, 12, 1)
    assert row.share_done == 9 / 21


def test_agreement_is_of_random_questions_with_fixed_overlap_only(store):
    tasks = store.tasks()
    chosen = Task(
        tasks[0].prompt_id, tasks[0].response_ids, strategy="active", propensity=0.5, batch="chosen", overlap=3
    )
    early = Task(tasks[1].prompt_id, tasks[1].response_ids, batch="early", overlap=3, stop_after=2)
    store.add_tasks([chosen, early])
    for task in (*tasks[:4], chosen, early):
        for rater, level in (("r0", 2), ("r1", 2), ("r2", 0)):
            store.submit(vote(task, rater, level=level))
    rows, n_left_out = dashboard.agreement_rows(store, store.records(), np.random.default_rng(0), n_draws=50)
    by_name = {(row.about, row.coefficient): row for row in rows}
    raw = by_name["comparison: which is better", "agreement"]
    assert raw.by_item.value == pytest.approx(1 / 3)  # one equal pair of three on every item
    assert (raw.n_answers, raw.n_raters, raw.by_item.n, n_left_out) == (12, 3, 4, 6)


def test_unanimous_answers_are_undefined_not_perfect(store):
    for task in store.tasks()[:3]:
        for rater in ("r0", "r1"):
            level = 2 if task.response_ids[0] < task.response_ids[1] else 0
            store.submit(vote(task, rater, level=level))
    rows, _ = dashboard.agreement_rows(store, store.records(), np.random.default_rng(0), n_draws=50)
    alpha = next(row for row in rows if row.coefficient == "nominal alpha")
    assert alpha.by_item.value is None
    assert "no variation" in alpha.by_item.method


def test_flags_wait_until_somebody_decides_and_come_back_with_new_ones(store):
    def waiting() -> set[str]:
        with store.connection() as connection:
            return dashboard.undecided_flags(connection)

    standing.record_flags(store, [*flag("r0"), *flag("r1")], now=NOW)
    assert waiting() == {"r0", "r1"}
    standing.quarantine(store, "r0", reason="look", by="admin", now=NOW + 1)
    log(store, "admin", dashboard.DISMISSAL, "r1", "checked", now=NOW + 1)
    assert waiting() == set()
    standing.record_flags(store, flag("r1", n_votes=40), now=NOW + 2)
    assert waiting() == {"r1"}


def test_every_change_moves_the_mark(store):
    marks = [dashboard.change_mark(store)]
    store.submit(vote(store.tasks()[0], "r0"))
    marks.append(dashboard.change_mark(store))
    standing.record_flags(store, flag("r0"), now=NOW)
    marks.append(dashboard.change_mark(store))
    standing.quarantine(store, "r0", reason="x", by="a", now=NOW)
    marks.append(dashboard.change_mark(store))
    pull(store, [store.tasks()[1].id], by="a", reason="x", now=NOW)
    marks.append(dashboard.change_mark(store))
    put_document(store, "guideline", "v2", {"text": "x"}, now=NOW)
    marks.append(dashboard.change_mark(store))
    assert len(set(marks)) == len(marks)


# Raters


def clicked(tmp_path, n_tasks: int = 24) -> Store:
    """A crowd of six that agrees, with one who clicks what is shown first."""
    store = small_store(tmp_path / "c.db", n_prompts=8, n_tasks=n_tasks, overlap=6, n_raters=6)
    rng = np.random.default_rng(3)
    for task in store.tasks():
        better = task.response_ids[0] < task.response_ids[1]
        for rater in range(6):
            order = (0, 1) if rng.random() < 0.5 else (1, 0)
            likes_a = (order[0] == 0) if rater == 0 else (better if rng.random() < 0.9 else not better)
            store.submit(vote(task, f"r{rater}", level=2 if likes_a else 0, shown_order=order))
    return store


def test_a_side_clicker_is_seen_with_the_figures_that_the_votes_have(tmp_path):
    store = clicked(tmp_path)
    standing.record_flags(store, run_detectors(store), now=NOW)
    rows = {row.annotator: row for row in rater_health(store, store.records())}
    first = rows["r0"]
    assert (first.side.value, first.side.n, first.n_votes) == (1.0, 24, 24)
    assert "side-clicker" in {one.detector for one in first.flags}
    assert first.to_review
    assert not any(rows[f"r{i}"].to_review for i in range(1, 6))
    assert next(iter(rater_health(store, store.records()))).annotator == "r0"  # who is to be looked at comes first
    own = {one.task_id: one.value["level"] for one in store.judgements() if one.annotator == "r1"}
    others = [one for one in store.judgements() if one.annotator != "r1"]
    same = sum(one.value["level"] == own[one.task_id] for one in others) / len(others)
    assert rows["r1"].peers.value == pytest.approx(same)
    assert rows["r0"].competence.value < min(rows[f"r{i}"].competence.value for i in range(1, 6))
    assert rows["r0"].side_bias.low > 0
    assert all(rows[f"r{i}"].side_bias.low < 0 < rows[f"r{i}"].side_bias.high for i in range(1, 6))
    assert rows["r0"].agrees < rows["r0"].honest.low  # with the others, where a typical rater would agree more
    assert all(rows[f"r{i}"].agrees > rows[f"r{i}"].honest.low for i in range(1, 6))
    # these are the model's own numbers, with its own errors
    record = vote_record(store.judgements(), store.responses())
    fit = fit_reliability(comparisons_of(record))
    place = record.annotators.index("r0")
    half = 1.96 * fit.side_bias_sd[place]
    assert (rows["r0"].side_bias.value, rows["r0"].side_bias.high) == pytest.approx(
        (fit.side_bias[place], fit.side_bias[place] + half), abs=1e-6
    )


def test_below_the_least_votes_nobody_is_held_up(tmp_path):
    store = clicked(tmp_path, n_tasks=MIN_VOTES - 1)
    standing.record_flags(store, flag("r0", n_votes=MIN_VOTES - 1), now=NOW)  # whoever recorded it
    row = next(row for row in rater_health(store, store.records()) if row.annotator == "r0")
    assert row.flags == ()
    assert not row.to_review
    assert f"fewer than {MIN_VOTES} votes" in row.why_not


def test_gold_and_skipped_answers_are_counted_apart(store):
    task = store.tasks()[0]
    gold = Task(task.prompt_id, task.response_ids, batch="unused", guideline="v1")
    made = add_gold(store, [(gold, {"level": 0, "n_levels": 3})], version="1")
    store.submit(vote(made[0], "r0", level=2))
    store.submit(vote(made[0], "r1", level=0))
    store.submit(vote(task, "r1", level=0, key="k"))
    rows = {row.annotator: row for row in rater_health(store, store.records())}
    assert (rows["r0"].gold.value, rows["r1"].gold.value, rows["r2"].gold.value) == (0.0, 1.0, None)


def test_the_chart_sums_what_is_worse_and_starts_again_after_an_alarm():
    z = [-1.5] * 4 + [0.5] * 3 + [-2.5] * 2
    level, expected = 0.0, []
    for place, one in enumerate(z):
        level = max(0.0, level - one - 0.5)
        if level >= 4.0:
            expected.append(place)
            level = 0.0
    assert cusum_alarms(z, 4.0) == expected == [3, 8]


@pytest.mark.parametrize("turns", [True, False])
def test_a_rater_who_turns_random_gives_an_alarm_and_one_who_does_not_gives_none(tmp_path, turns):
    store = small_store(tmp_path / "d.db", n_prompts=20, n_tasks=100, overlap=4, n_raters=4)
    rng = np.random.default_rng(5)
    for i, task in enumerate(store.tasks()):
        better = task.response_ids[0] < task.response_ids[1]
        votes = []
        for rater in range(4):
            noise = 0.9 if turns and rater == 0 and i >= 70 else 0.08
            likes_a = better if rng.random() > noise else not better
            votes.append(vote(task, f"r{rater}", level=2 if likes_a else 0, shown_order=(0, 1)))
        store.submit_many(votes)
    alarms = drift_alarms(vote_record(store.judgements(), store.responses()))
    assert ("r0" in alarms) == turns
    if turns:
        assert "of 100; 0.2 false alarms are to be expected" in alarms["r0"][0]


def honest_votes(rng: np.random.Generator, *, n_raters: int = 60, n_items: int = 1200, overlap: int = 5) -> VoteRecord:
    """Votes of raters who differ in competence and side bias, and never change."""
    who = np.concatenate([rng.choice(n_raters, overlap, replace=False) for _ in range(n_items)])
    item, side = np.repeat(np.arange(n_items), overlap), rng.choice([-1, 1], n_items * overlap)
    gap = rng.normal(0, 2.1, n_items)[item] * rng.lognormal(0, 0.4, n_raters)[who]
    likes_a = rng.random(len(item)) < 1 / (1 + np.exp(-gap - side * rng.normal(0, 0.3, n_raters)[who]))
    names = tuple(f"r{w}" for w in range(n_raters))
    texts = tuple(f"text {i}" for i in range(2 * n_items))
    return VoteRecord(item, 2 * item, 2 * item + 1, 2 * likes_a, np.full(len(item), 3), side, who, names, texts)


def test_raters_who_never_change_give_no_more_alarms_than_stated():
    n_alarms, n_votes = 0, 0
    for seed in range(2):
        record = honest_votes(np.random.default_rng(seed))
        for said in drift_alarms(record).values():
            times = re.search(r"(\d+) times|once", said[0])
            assert times is not None
            n_alarms += int(times.group(1) or 1)
        n_votes += len(record)
    stated = n_votes / ARL0
    # a chart starts at 0 and 100 votes are few, so that fewer are to be expected; three standard deviations above
    assert stated / 4 < n_alarms < stated + 3 * stated**0.5


# Cost, and what to ask again


def gave(
    n: int, n_timed: int, active_s: float, *, rate: float = 18.0, corrections_s: float = 0.0, per: str = "hour"
) -> Paid:
    return Paid("r", rate, n, n_timed, active_s, corrections_s, 0, per)


@pytest.mark.parametrize(
    ("pay", "spent", "to_come"),
    [
        (None, None, None),
        (Pay(18.0, "EUR"), 72.0, 108.0),
        (Pay(18.0, "EUR", "hour"), 18.0 * 4 * 30 / 3600, 18.0 * 6 * 30 / 3600),
    ],
)
def test_money_follows_from_pay_and_measured_seconds(pay, spent, to_come):
    found = amounts(pay, [gave(4, 3, 90.0, per=pay.per if pay else "judgement")], 6)
    assert found[:2] == pytest.approx((spent, to_come)) if pay else found[:2] == (None, None)


def test_an_hour_that_nobody_measured_has_no_price():
    spent, to_come, why = amounts(Pay(18.0, "EUR", "hour"), [gave(4, 0, 0.0)], 6)
    assert (spent, to_come) == (None, None)
    assert "no time was measured" in why


def test_an_hour_is_her_own_measured_time_with_corrections_and_her_own_mean_for_the_rest():
    """2 timed answers of 20 s, one untimed, 60 s of corrections: 120 s; of another, untimed, 2 at everybody's 20 s."""
    by_rater = [gave(3, 2, 40.0, corrections_s=60.0), gave(2, 0, 0.0, rate=36.0)]
    assert paid_seconds(by_rater[0], None) == 120.0
    assert paid_seconds(by_rater[1], None) is None
    spent, to_come, _ = amounts(Pay(18.0, "EUR", "hour"), by_rater, 10)
    assert spent == pytest.approx(18 * 120 / 3600 + 36 * 40 / 3600, abs=1e-12)
    assert to_come == pytest.approx(spent / 5 * 10, abs=1e-12)


def test_corrections_are_not_paid_twice(store):
    put_settings(store, ProjectSettings(pay=Pay(1.0, "EUR")), now=NOW)
    first = store.submit(vote(store.tasks()[0], "r0", active_s=10.0))
    store.submit(vote(store.tasks()[0], "r0", level=0, key="again", supersedes=first.id, active_s=99.0))
    found = outlay(store)
    assert (found.n_judgements, found.active_s, found.spent, found.paid_s) == (1, 10.0, 1.0, 109.0)
    assert found.to_come == float(sum(task.overlap for task in store.tasks()) - 1)


def test_what_was_judged_under_an_old_guideline_is_asked_again_once(store):
    tasks = store.tasks()
    for task in tasks[:3]:
        store.submit(vote(task, "r0"))
    assert ask_again(store) == []  # no guideline to compare with
    put_document(store, "guideline", "v2", {"text": "new"}, now=NOW)
    [old] = ask_again(store)
    assert (old.version, old.n_judgements, old.already) == ("v1", 3, 0)
    assert old.task_ids == tuple(task.id for task in tasks[:3])
    reissue(store, old.task_ids, by="admin", reason="new guideline", now=NOW, guideline="v2")
    assert ask_again(store)[0].already == 3


# Slices


def many_raters(tmp_path, groups: dict[str, int]) -> Store:
    store = small_store(tmp_path / "g.db", n_tasks=1, overlap=sum(groups.values()), n_raters=sum(groups.values()))
    [task] = store.tasks()
    names = iter(range(sum(groups.values())))
    for group, n in groups.items():
        for _ in range(n):
            who = f"r{next(names)}"
            store.submit(vote(task, who, active_s=5.0))
            if group:
                save_demographics(store, who, {"age": group}, consent="1", now=NOW)
    return store


def test_small_groups_and_what_would_give_them_away_are_left_out(tmp_path):
    [table] = slice_tables(many_raters(tmp_path, {"young": 30, "middle": 15, "old": 4}))
    shown = {cell.group: cell.n_raters for cell in table.cells if not cell.suppressed}
    assert shown == {"young": 30}  # 15 goes with 4, or 49 − 30 − 15 would name the four
    assert all(cell.n_judgements is None and cell.median_s is None for cell in table.cells if cell.suppressed)


def test_groups_that_are_large_enough_are_all_shown(tmp_path):
    [table] = slice_tables(many_raters(tmp_path, {"young": 12, "old": 11, "": 10}))
    assert {cell.group: cell.n_raters for cell in table.cells} == {"young": 12, "old": 11, "not said": 10}


def test_nothing_is_shown_where_nothing_can_be(tmp_path):
    assert slice_tables(many_raters(tmp_path, {"young": LEAST, "old": 1})) == []


# The auditor's view


def test_pseudonyms_hold_within_a_sitting_and_differ_between_sittings(store):
    one, two = Pseudonyms(b"k" * 32, "first"), Pseudonyms(b"k" * 32, "second")
    names = [one.of(f"r{i}") for i in range(6)]
    assert len(set(names)) == 6
    assert one.of("r0") == Pseudonyms(b"k" * 32, "first").of("r0")
    assert not set(names) & {two.of(f"r{i}") for i in range(6)}
    assert one.resolve(store, names[3]) == "r3"
    assert one.resolve(store, two.of("r3")) is None


def test_every_filter_gives_what_the_records_say(store):
    tasks = store.tasks()
    first = store.submit(vote(tasks[0], "r0", created_at="2026-01-01T00:00:00Z"))
    store.submit(vote(tasks[0], "r0", level=0, key="again", supersedes=first.id, created_at="2026-01-02T00:00:00Z"))
    spoken = store.submit(vote(tasks[1], "r1", reason="because", created_at="2026-01-03T00:00:00Z"))
    store.erase_words([spoken.id])
    store.lease_next("r2", 0.0, 1.0)
    store.submit(vote(store.tasks()[0], "r2", created_at="2026-01-04T00:00:00Z"), now=NOW)
    names = Pseudonyms(b"k", "s")

    def n(**filters: str) -> int:
        page = browse(store, names, filters)
        assert page.n_matching == len(page.rows)
        return page.n_matching

    assert n() == 4
    assert n(kind="comparison") == 4
    assert n(kind="ranking") == n(batch="other") == n(guideline="v9") == n(strategy="active") == n(origin="ai") == 0
    assert (n(corrects="yes"), n(corrects="no")) == (1, 3)
    assert (n(erased="yes"), n(erased="no")) == (1, 3)
    assert (n(late="yes"), n(late="no")) == (1, 3)
    assert (n(since="2026-01-02"), n(until="2026-01-02"), n(since="2026-01-02", until="2026-01-02")) == (3, 2, 1)
    assert (n(task=tasks[0].id), n(rater=names.of("r1")), n(rater="r1"), n(audience="expert")) == (3, 1, 0, 0)
    assert n(batch="main' OR '1'='1") == n(rater="%") == 0


def test_a_field_that_is_not_on_the_list_cannot_be_asked_about(store):
    with pytest.raises(InputError, match="expected one of kind"):
        browse(store, Pseudonyms(b"k", "s"), {"annotator": "r0"})
    with pytest.raises(InputError, match="found 201 characters"):
        browse(store, Pseudonyms(b"k", "s"), {"kind": "x" * 201})
    with pytest.raises(InputError, match="check the id"):
        audited(store, Pseudonyms(b"k", "s"), "judgement:0")
    assert "annotator" not in FILTERS
    assert "submission" not in FILTERS


def test_pages_of_the_record_join_without_gap_or_overlap(store):
    for task in store.tasks():
        store.submit(vote(task, "r0"))
    seen, before = [], None
    while True:
        page = browse(store, Pseudonyms(b"k", "s"), {}, before=before, n=3)
        seen += [row.seq for row in page.rows]
        before = page.older
        if before is None:
            break
    assert seen == sorted((record.seq for record in store.records()), reverse=True)


# Tasks one by one


def test_a_tasks_page_has_everything_and_lists_join(store):
    tasks = store.tasks()
    store.submit(vote(tasks[0], "r0", reason="why"))
    pull(store, [tasks[0].id], by="admin", reason="broken text", now=NOW)
    found = task_detail(store, tasks[0].id, now=NOW)
    assert (found.state, found.prompt.id, [one.judgement.reason for one in found.answers]) == (
        "pulled", tasks[0].prompt_id, ["why"],
    )  # fmt: skip
    assert [entry.reason for entry in found.entries] == ["broken text"]
    assert task_detail(store, "task:0", now=NOW) is None
    first, older = task_page(store, now=NOW, n=5)
    rest, none = task_page(store, now=NOW, n=5, before=older)
    assert [row.task_id for row in first + rest] == [task.id for task in reversed(tasks)]
    assert none is None
    assert [row.task_id for row in task_page(store, now=NOW, state="pulled")[0]] == [tasks[0].id]


def test_a_task_reads_as_open_where_it_has_a_free_place_and_in_hand_only_while_it_is(store):
    def listed(state: str) -> list[str]:
        return [row.task_id for row in task_page(store, now=NOW, state=state)[0]]

    def holders() -> list[tuple[str, str]]:
        return [(who, how) for who, how, _ in task_detail(store, first.id, now=NOW).holders]

    first = store.tasks()[0]
    for who in ("r0", "r1", "r2"):
        store.submit(vote(first, who))
    assert listed("closed") == [first.id]
    reissue(store, [first.id], by="admin", reason="unclear", now=NOW)
    assert task_detail(store, first.id, now=NOW).state == "open"
    assert first.id in listed("open")
    assert store.lease_many([(first.id, "r3")], now=NOW)[0] is not None
    assert (task_detail(store, first.id, now=NOW).state, listed("held"), holders()) == ("held", [first.id], [("r3", "leased")])  # fmt: skip
    assert first.id not in listed("open")
    pull(store, [first.id], by="admin", reason="broken text", now=NOW)
    assert (task_detail(store, first.id, now=NOW).state, holders()) == ("pulled", [("r3", "let go")])


# Disputes


def test_experts_take_a_dispute_of_their_choice_and_one_at_a_time(store):
    tasks = store.tasks()
    for task in tasks[:2]:
        for rater, level in (("r0", 2), ("r1", 0)):
            store.submit(vote(task, rater, level=level))
    store.submit(vote(tasks[2], "r0"))
    expert = make_account(store, "expert", now=NOW)
    assert {row.dispute.task.id for row in reviews(store)} == {tasks[0].id, tasks[1].id}
    chosen, other = review_of(store, tasks[1].id), review_of(store, tasks[0].id)
    assert review_of(store, tasks[2].id) is None
    assert take(store, chosen, expert.annotator, now=NOW)
    with pytest.raises(Exception, match="another task in hand"):
        take(store, other, expert.annotator, now=NOW)
    second = make_account(store, "expert", now=NOW)
    assert not take(store, chosen, second.annotator, now=NOW)


# The arena


def duel(store: Store, n: int = 6, **rest) -> None:
    prompts = [user_prompt(f"ask {i}") for i in range(n)]
    long = "long answer " * 20
    samples = {
        "ours": [(one, f"{long}{one.text}") for one in prompts],
        "theirs": [(one, f"short {one.text}") for one in prompts],
    }
    samples["ours"].append((user_prompt("same"), "equal"))
    samples["theirs"].append((user_prompt("same"), "equal"))
    make_arena(store, "a", samples, now=NOW, **rest)


def test_the_win_rate_is_that_of_the_first_policy_whatever_the_order(tmp_path):
    store = open_store(tmp_path / "a.db")
    store.add_annotators([Annotator(f"r{i}") for i in range(3)])
    duel(store, 12, overlap=3)
    set_up = arena(store, "a")
    assert (set_up.policies, set_up.n_identical, len(set_up.written_by)) == (("ours", "theirs"), 1, 12)
    firsts = {task.response_ids[0] == set_up.written_by[task.id][0] for task in store.tasks(batch="arena:a")}
    assert firsts == {True, False}  # or the order would not be tried
    outcomes = []
    rng = np.random.default_rng(0)
    for task in store.tasks(batch="arena:a"):
        ours = set_up.written_by[task.id][0]
        for rater in range(3):
            win = float(rng.choice([0.0, 0.5, 1.0], p=[0.2, 0.2, 0.6]))
            a_level = {1.0: 2, 0.5: 1, 0.0: 0}[win]
            level = a_level if task.response_ids[0] == ours else 2 - a_level
            order = (0, 1) if rng.random() < 0.5 else (1, 0)
            store.submit(vote(task, f"r{rater}", level=level, shown_order=order))
            outcomes.append((win, task.response_ids[order[0]] == ours))
    found = arena_result(store, "a", np.random.default_rng(1))
    wins = [win for win, _ in outcomes]
    assert found.by_prompt.value == found.by_rater.value == pytest.approx(np.mean(wins))
    assert (found.n_wins, found.n_ties, found.n_losses) == (wins.count(1.0), wins.count(0.5), wins.count(0.0))
    decided = [(win, first) for win, first in outcomes if win != 0.5]
    assert found.decided.value == pytest.approx(np.mean([win for win, _ in decided]))
    assert found.shown_first.value == pytest.approx(np.mean([win == first for win, first in decided]))
    assert (found.by_prompt.n, found.by_rater.n) == (12, 3)
    rates = {(what, label): rate.value for what, label, rate in found.slices}
    assert rates["length", "first longer"] == found.by_prompt.value
    assert rates["length", "second longer"] is None
    assert rates["prompt", LIVE] is None


def test_raters_in_quarantine_do_not_decide_an_arena(tmp_path):
    store = open_store(tmp_path / "a.db")
    store.add_annotators([Annotator("r0"), Annotator("r1")])
    duel(store, overlap=2)
    for task in store.tasks(batch="arena:a"):
        ours = arena(store, "a").written_by[task.id][0]
        for rater, wins in (("r0", True), ("r1", False)):
            store.submit(vote(task, rater, level=2 if (task.response_ids[0] == ours) == wins else 0))
    assert arena_result(store, "a", np.random.default_rng(0)).by_prompt.value == 0.5
    standing.quarantine(store, "r1", reason="x", by="admin", now=NOW)
    found = arena_result(store, "a", np.random.default_rng(0))
    assert (found.by_prompt.value, found.n_excluded) == (1.0, 6)
    standing.release(store, "r1", reason="x", by="admin", now=NOW)
    assert arena_result(store, "a", np.random.default_rng(0)).by_prompt.value == 0.5


def test_an_arena_made_again_adds_nothing_and_keeps_its_policies(tmp_path):
    store = open_store(tmp_path / "a.db")
    duel(store)
    tasks = store.tasks()
    duel(store)
    assert store.tasks() == tasks
    assert arenas(store) == ["a"]
    with pytest.raises(InputError, match="found other policies"):
        make_arena(store, "a", {"x": [(user_prompt("q"), "1")], "y": [(user_prompt("q"), "2")]}, now=NOW)
    with pytest.raises(InputError, match="no prompt in common"):
        make_arena(store, "b", {"x": [(user_prompt("q"), "1")], "y": [(user_prompt("z"), "2")]}, now=NOW)
    with pytest.raises(InputError, match="found 1 policies"):
        make_arena(store, "b", {"x": []}, now=NOW)
    with pytest.raises(InputError, match="letters, digits"):
        make_arena(store, "../b", {"x": [(user_prompt("q"), "1")], "y": [(user_prompt("q"), "2")]}, now=NOW)


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_the_order_of_a_duel_does_not_follow_the_policy(first: str, second: str):
    prompt = user_prompt("q")
    one, two = Response(prompt.id, first, "x").id, Response(prompt.id, second, "y").id
    swapped = sorted([Response(prompt.id, second, "x").id, Response(prompt.id, first, "y").id])
    assert sorted([one, two]) == swapped


def test_a_live_duel_is_for_its_rater_alone(tmp_path):
    store = open_store(tmp_path / "a.db")
    store.add_annotators([Annotator("r0"), Annotator("r1")])
    pair = (user_prompt("mine"), "one answer", "another")
    task = add_duel(store, "live", ("x", "y"), pair, annotator="r0", guideline="v1", now=NOW)
    assert (task.reserved_for, task.strategy) == ("r0", LIVE)
    assert store.lease_next("r1", NOW) is None
    same = (user_prompt("mine"), "equal", "equal")
    assert add_duel(store, "live", ("x", "y"), same, annotator="r0", guideline="v1", now=NOW) is None
    assert arena(store, "live").n_identical == 1


def test_what_was_earned_is_not_changed_by_what_is_paid_later(store):
    """A base pay of 1, an experiment that pays r0 3, the end of it with a base of 2, and hours from then on."""
    waiting = iter(store.tasks() * 4)

    def answers(who: str, seconds: float, n: int = 1) -> None:
        for _ in range(n):
            store.submit(
                vote(next(waiting), who, created_at=at(12 * 3600 + seconds), active_s=36.0, key=f"{who} {seconds} {_}")
            )

    def money() -> tuple[float | None, float | None]:
        return own_pay(store, "r0")[0], own_pay(store, "r1")[0]

    answers("r0", 1)  # before any pay was set
    base = ProjectSettings(pay=Pay(1.0, "EUR"))
    put_settings(store, base, now=NOW + 10)
    answers("r0", 11, n=2)
    answers("r1", 11)
    assert money() == (3.0, 1.0)
    trial = replace(
        base, experiments={"pay": {"high": 1.0, "as ever": 1.0}}, arm_changes={"pay": {"high": {"pay": 3.0}}}
    )
    put_settings(store, trial, now=NOW + 20)
    for who, arm in (("r0", "high"), ("r1", "as ever")):
        store.write(lambda connection, who=who, arm=arm: keep_arms(connection, who, {"pay": arm}, now=NOW + 20))
    answers("r0", 20)  # in the second of the change: she had read the page before
    answers("r0", 25)
    answers("r1", 25)
    assert money() == (3.0 + 1.0 + 3.0, 2.0)
    put_settings(store, replace(base, pay=Pay(2.0, "EUR"), title="Other"), now=NOW + 30)
    put_settings(store, replace(base, pay=Pay(2.0, "EUR")), now=NOW + 32)
    assert money() == (7.0, 2.0)
    answers("r0", 35)
    answers("r1", 35, n=2)
    assert money() == (9.0, 6.0)
    put_settings(store, ProjectSettings(pay=Pay(100.0, "EUR", "hour")), now=NOW + 40)
    answers("r1", 45)
    assert money() == pytest.approx((9.0, 7.0), abs=1e-12)  # 36 s of an hour
    assert outlay(store).spent == pytest.approx(16.0, abs=1e-12)
    put_settings(store, ProjectSettings(pay=Pay(1.0, "EUR"), budget=Budget(money=16.5)), now=NOW + 50)
    with store.connection() as connection:
        assert over_budget(connection, project_settings(store), now=NOW + 60)  # one more would pass it
