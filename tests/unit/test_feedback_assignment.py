"""Assignment: who gets what next, never too often and never to nobody, under many hands on both databases."""

import dataclasses
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from bench.lease_study import study

import postgresql_server
from feedback_cases import small_store, vote
from karat.errors import InputError, LeaseError, StoreError
from karat.feedback import waiting
from karat.feedback.documents import Budget, Pay, ProjectSettings, put_settings
from karat.feedback.people.accounts import make_account
from karat.feedback.people.roles import COMMAND_LINE, lock
from karat.feedback.schema import assignments, tasks
from karat.feedback.store import open_store
from karat.feedback.tasks import answer, plan_overlap
from karat.feedback.work import assignment, requeue
from karat.records import Annotator, Response, Task, user_prompt


@pytest.fixture
def store(new_address):
    return small_store(new_address("k"), n_tasks=6, overlap=2, n_raters=6)


def settings(store, **rest):
    put_settings(store, ProjectSettings(**({"gold_rate": 0.0, "repeat_rate": 0.0} | rest)), now=0.0)


def give(store, who, now=1.0, level=2):
    lease = assignment.next_task(store, who, now=now)
    store.submit(vote(lease.task, who, level=level), now=now)
    return lease.task


def states(store):
    with store.connection() as connection:
        return [row.state for row in connection.execute(sa.select(tasks.c.state).order_by(tasks.c.seq))]


# What is offered


def test_tasks_come_in_their_order_and_one_at_a_time(store):
    first = assignment.next_work(store, "r0", now=0.0)
    again = assignment.next_work(store, "r0", now=100.0)
    assert (again.lease.id, again.lease.expires_at, again.shown_order) == (first.lease.id, 700.0, first.shown_order)
    seen = [give(store, "r0").id for _ in range(6)]
    assert seen == [task.id for task in store.tasks()]
    assert assignment.next_work(store, "r0", now=2.0) == assignment.Offer(None, "nothing left")
    with pytest.raises(StoreError, match="the rater 'nobody', which is not in the store; add_annotators first"):
        assignment.next_task(store, "nobody", now=0.0)


def test_the_minutes_of_a_lease_are_the_settings_and_a_heartbeat_gives_them_again(store):
    settings(store, lease_minutes=2.0)
    lease = assignment.next_task(store, "r0", now=0.0)
    assert lease.expires_at == 120.0
    assert assignment.heartbeat(store, lease.id, "r0", now=100.0) == 220.0
    with pytest.raises(LeaseError, match="no live lease of 'r1' by that name"):
        assignment.heartbeat(store, lease.id, "r1", now=100.0)
    with pytest.raises(LeaseError):
        assignment.heartbeat(store, lease.id, "r0", now=220.0)


def test_an_expired_lease_is_offered_again_before_new_tasks(store):
    assignment.pull(store, [task.id for task in store.tasks()[3:]], by="a", reason="short", now=0.0)
    old = [assignment.next_task(store, who, now=0.0).task.id for who in ("r0", "r1")]
    assert old[0] == old[1] == store.tasks()[0].id
    assert assignment.next_task(store, "r2", now=599.0).task.id == store.tasks()[1].id
    assert states(store)[:3] == ["held", "open", "open"]
    assert assignment.next_task(store, "r3", now=600.0).task.id == old[0]
    assert assignment.next_task(store, "r4", now=600.0).task.id == old[0]
    assert assignment.next_task(store, "r5", now=600.0).task.id == store.tasks()[1].id


def test_a_place_that_was_given_away_is_not_taken_back_by_a_slow_heartbeat(store):
    held = [assignment.next_task(store, who, now=0.0) for who in ("r0", "r1")]
    for who in ("r2", "r3"):
        assert assignment.next_task(store, who, now=600.0).task == held[0].task
    with pytest.raises(LeaseError):  # sent at 599 and arrived after the others were served
        assignment.heartbeat(store, held[0].id, "r0", now=599.0)
    assert store.submit(vote(held[0].task, "r0"), now=601.0).late


def test_a_task_whose_leases_were_extended_is_passed_over(store):
    held = [assignment.next_task(store, who, now=0.0) for who in ("r0", "r1")]
    for lease, who in zip(held, ("r0", "r1"), strict=True):
        assignment.heartbeat(store, lease.id, who, now=500.0)
    assert assignment.next_task(store, "r2", now=700.0).task != held[0].task
    assert assignment.next_task(store, "r3", now=1100.0).task == held[0].task


def test_a_lease_is_known_by_its_id_to_its_rater_only(store):
    lease = assignment.next_task(store, "r0", now=0.0)
    assert assignment.lease_of(store, lease.id, "r0", now=1.0).lease == lease
    assert assignment.lease_of(store, lease.id, "r0", now=600.0).state == "expired"
    for who, name in (("r1", lease.id), ("r0", "lease:none")):
        with pytest.raises(LeaseError, match="found none of yours by that name"):
            assignment.lease_of(store, name, who, now=1.0)
    store.submit(vote(lease.task, "r0"), now=2.0)
    assert assignment.lease_of(store, lease.id, "r0", now=3.0).state == "submitted"
    other = assignment.next_task(store, "r0", now=3.0)
    assignment.skip(store, other.id, "r0", reason="I know the author", now=4.0)
    assert assignment.lease_of(store, other.id, "r0", now=5.0).state == "skipped"


def test_a_skipped_task_goes_to_others_and_the_reason_is_kept(store):
    lease = assignment.next_task(store, "r0", now=0.0)
    assignment.next_task(store, "r1", now=0.0)
    assert states(store)[0] == "held"
    assignment.skip(store, lease.id, "r0", reason="I know the author", now=1.0)
    assert assignment.next_task(store, "r2", now=2.0).task == lease.task
    assert assignment.next_task(store, "r0", now=2.0).task != lease.task
    assert store.skips() == [(lease.task.id, "r0", "I know the author")]
    [entry] = requeue.queue_entries(store)
    assert (entry.task_id, entry.by, entry.action, entry.reason, entry.at) == (
        lease.task.id,
        "r0",
        "skipped",
        "I know the author",
        1.0,
    )
    with pytest.raises(LeaseError, match="nothing was skipped"):
        assignment.skip(store, lease.id, "r0", reason="again", now=3.0)


def test_reserved_tasks_and_those_for_experts_go_to_nobody_else(store):
    base = store.tasks()[0]
    mine = dataclasses.replace(base, batch="mine", reserved_for="r1")
    hard = dataclasses.replace(base, batch="hard", audience="expert")
    store.add_tasks([mine, hard])
    expert = make_account(store, "expert", now=0.0)
    assert {give(store, "r0").id for _ in range(6)} == {task.id for task in store.tasks()[:6]}
    assert assignment.next_work(store, "r0", now=1.0).reason == "nothing left"
    assert [give(store, "r1") for _ in range(7)][-1] == mine
    assert give(store, expert.annotator) == hard
    assert assignment.next_work(store, expert.annotator, now=1.0).reason == "nothing left"


def test_a_locked_account_gets_nothing(store):
    ann = make_account(store, "annotator", now=0.0)
    assert assignment.next_task(store, ann.annotator, now=0.0) is not None
    lock(store, ann.id, by=COMMAND_LINE, now=1.0)
    assert assignment.next_work(store, ann.annotator, now=2.0).reason == "locked"


# How many answers


def test_equal_answers_close_a_task_early_and_a_correction_opens_it_again(store):
    task = dataclasses.replace(store.tasks()[0], batch="early", overlap=4, stop_after=2)
    unsure = dataclasses.replace(task, batch="unsure")
    store.add_tasks([task, unsure])
    first = store.submit(vote(task, "r0", level=2), now=1.0)
    assert states(store)[-2] == "open"
    store.submit(vote(task, "r1", level=2), now=2.0)
    assert states(store)[-2] == "closed"
    assert store.lease_many([(task.id, "r2")], now=3.0) == [None]
    store.submit(vote(task, "r0", level=0, key="undo", supersedes=first.id), now=4.0)
    assert states(store)[-2] == "held"  # with a place that is free
    assert assignment.next_task(store, "r3", now=4.0).task == task
    store.submit(vote(task, "r2", level=2), now=5.0)
    assert states(store)[-2] == "held"  # 2 against 1: all must agree
    for who, value in (("r0", {"missing": "cannot judge"}), ("r1", {"missing": "cannot judge"})):
        store.submit(dataclasses.replace(vote(unsure, who), value=value), now=6.0)
    assert states(store)[-1] == "open"


def test_answers_in_words_never_stop_a_task_early(store):
    base = store.tasks()[0]
    task = Task(base.prompt_id, base.response_ids[:1], kind="critique", overlap=3, stop_after=2)
    store.add_tasks([task])
    for who in ("r0", "r1"):
        given = answer(
            task, {"text": "fine"}, annotator=who, shown_order=(0,), created_at="2026-01-01T00:00:00Z", submission=who
        )
        store.submit(given, now=1.0)
    assert states(store)[-1] == "open"


def test_overlap_is_planned_by_stratum(store):
    topics = {prompt.id: prompt.topic for prompt in store.prompts().values()}
    tasks_ = store.tasks()
    strata = {task.id: topics[task.prompt_id] for task in tasks_}
    planned = plan_overlap(tasks_, strata, {"topic 0": 5, "*": 3}, stop_after=3)
    assert [task.id for task in planned] == [task.id for task in tasks_]
    assert {(topics[task.prompt_id], task.overlap, task.stop_after) for task in planned} == {
        ("topic 0", 5, 3),
        ("topic 1", 3, 0),
    }
    own = tasks_[0].overlap
    assert {task.overlap for task in plan_overlap(tasks_, strata, {"nothing": 5})} == {own}
    assert {task.overlap for task in plan_overlap(tasks_, {}, {"": own + 2})} == {own + 2}
    more = [dataclasses.replace(tasks_[0], overlap=9, stop_after=4)]
    assert plan_overlap(more, {}, {"*": 5}, stop_after=2) == more  # a task may ask for more than its stratum
    apart = [
        dataclasses.replace(tasks_[0], audience="expert", overlap=1),
        dataclasses.replace(tasks_[0], reserved_for="r0", overlap=1),
    ]
    assert plan_overlap(apart, {}, {"*": 5}, stop_after=2) == apart


def test_the_budget_counts_what_is_being_given_and_stops_before_it_is_passed(store):
    settings(store, budget=Budget(judgements=3))
    held = [assignment.next_task(store, f"r{i}", now=0.0) for i in range(3)]
    assert None not in held
    assert assignment.next_work(store, "r3", now=1.0).reason == "budget"
    assert assignment.next_task(store, "r0", now=1.0) == dataclasses.replace(held[0], expires_at=601.0)  # may finish
    assert assignment.next_task(store, "r3", now=700.0) is not None  # nobody came back: their place is free
    for i in range(3):
        store.submit(vote(held[i].task, f"r{i}"), now=701.0)
    assert assignment.next_work(store, "r4", now=9000.0).reason == "budget"


def test_money_is_a_budget_too(store):
    settings(store, pay=Pay(0.5, "EUR"), budget=Budget(money=1.0))
    for who in ("r0", "r1"):
        give(store, who)
    assert assignment.next_work(store, "r2", now=1.0).reason == "budget"
    # two answers without a time count as long as those with one: 3 · 299 s of 900 s
    settings(store, pay=Pay(12.0, "EUR", "hour"), budget=Budget(money=3.0))
    lease = assignment.next_task(store, "r2", now=2.0)
    store.submit(dataclasses.replace(vote(lease.task, "r2"), active_s=299.0), now=3.0)
    assert assignment.next_work(store, "r3", now=3.0).reason == "work"
    store.submit(dataclasses.replace(vote(store.tasks()[5], "r3"), active_s=599.0), now=4.0)
    assert assignment.next_work(store, "r4", now=4.0).reason == "budget"


def test_a_correction_uses_up_no_budget_and_no_cent_is_lost_to_rounding(store):
    settings(store, budget=Budget(judgements=2))
    task = store.tasks()[0]
    first = store.submit(vote(task, "r0"), now=1.0)
    store.submit(vote(task, "r0", level=0, key="undo", supersedes=first.id), now=2.0)
    assert assignment.next_work(store, "r1", now=3.0).reason == "work"
    assert assignment.next_work(store, "r2", now=3.0).reason == "budget"
    settings(store, pay=Pay(0.1, "EUR"), budget=Budget(money=0.3))  # 0.3 / 0.1 is a little less than 3
    assert assignment.next_work(store, "r2", now=3.0).reason == "work"
    assert assignment.next_work(store, "r3", now=3.0).reason == "budget"


def test_simulated_judgements_use_up_no_budget(store):
    settings(store, budget=Budget(judgements=1))
    store.submit(dataclasses.replace(vote(store.tasks()[0], "r0"), origin="simulated"), now=1.0)
    assert assignment.next_work(store, "r1", now=1.0).reason == "work"


# Pull and re-issue


def test_a_pulled_task_is_offered_to_nobody_and_its_late_answers_are_kept(store):
    held = assignment.next_task(store, "r0", now=0.0)
    assert assignment.pull(store, [held.task.id], by="account:a", reason="a broken text", now=1.0) == [held.task.id]
    assert assignment.pull(store, [held.task.id], by="account:a", reason="again", now=1.0) == []
    assert assignment.next_task(store, "r1", now=2.0).task != held.task
    assert store.lease_many([(held.task.id, "r2")], now=2.0) == [None]
    with pytest.raises(LeaseError):
        assignment.heartbeat(store, held.id, "r0", now=2.0)
    assert store.submit(vote(held.task, "r0"), now=3.0).late
    assert states(store)[0] == "pulled"
    assert assignment.reissue(store, [held.task.id], by="account:a", reason="mended", now=4.0) == [held.task.id]
    assert assignment.next_task(store, "r2", now=5.0).task.id == held.task.id
    entries = requeue.queue_entries(store)
    assert [(each.action, each.reason) for each in entries] == [("reissued", "mended"), ("pulled", "a broken text")]


def test_a_full_task_is_asked_again_of_others(store):
    task = store.tasks()[0]
    for who in ("r0", "r1"):
        store.submit(vote(task, who), now=1.0)
    assert states(store)[0] == "closed"
    assignment.reissue(store, [task.id], by="account:a", reason="r0 was quarantined", now=2.0, extra=1)
    assert store.tasks()[0] == dataclasses.replace(task, overlap=3)
    assert assignment.next_task(store, "r2", now=3.0).task.id == task.id
    assert assignment.next_task(store, "r0", now=3.0).task.id != task.id
    assert assignment.next_task(store, "r3", now=3.0).task.id != task.id


def test_a_new_guideline_asks_everybody_anew_and_keeps_the_old_answers(store):
    task = store.tasks()[0]
    store.submit(vote(task, "r0"), now=1.0)
    [new] = assignment.reissue(store, [task.id], by="account:a", reason="guideline 2", now=2.0, guideline="v2")
    assert new == dataclasses.replace(task, guideline="v2").id
    assert states(store)[0] == "pulled"
    assert store.n_judgements() == 1
    assert {give(store, "r0", now=3.0).id for _ in range(6)} == {new, *(each.id for each in store.tasks()[1:6])}


def test_the_queue_is_changed_only_with_a_reason_and_never_a_check(store):
    task = store.tasks()[0]
    for act in (assignment.pull, assignment.reissue):
        with pytest.raises(InputError, match="found no reason"):
            act(store, [task.id], by="a", reason=" ", now=0.0)
        with pytest.raises(StoreError, match="the unknown task task:none"):
            act(store, ["task:none"], by="a", reason="x", now=0.0)
    with pytest.raises(InputError, match="found 0 extra answers"):
        assignment.reissue(store, [task.id], by="a", reason="x", now=0.0, extra=0)
    with store.connection(write=True) as connection:
        connection.execute(tasks.update().values(state="check"))
    with pytest.raises(StoreError, match="is a silent check"):
        assignment.pull(store, [task.id], by="a", reason="x", now=0.0)


# Many hands


def test_the_same_submission_ten_times_at_once_is_one_row(store):
    lease = assignment.next_task(store, "r0", now=0.0)
    given = vote(lease.task, "r0", key="from a nervous finger")
    with ThreadPoolExecutor(10) as pool:
        stored = list(pool.map(lambda _: store.submit(given, now=1.0), range(10)))
    assert len({each.id for each in stored}) == 1
    assert store.n_judgements() == 1
    with store.connection() as connection:
        assert connection.execute(sa.select(tasks.c.n_answers).order_by(tasks.c.seq)).scalars().first() == 1


def test_two_tabs_get_one_task(store):
    gate = threading.Barrier(6)

    def ask(_):
        gate.wait()
        return assignment.next_task(store, "r0", now=0.0).id

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(ask, range(6)))) == 1


def held_at_once(store, task_id, now):
    """Answers and live leases of a task in one moment."""
    with store.connection() as connection:
        answers = connection.execute(sa.select(tasks.c.n_answers).where(tasks.c.id == task_id)).scalar_one()
        live = (assignments.c.task_id == task_id) & (assignments.c.state == "leased") & (assignments.c.expires_at > now)
        return answers + connection.execute(sa.select(sa.func.count()).where(live)).scalar_one()


def test_many_hands_never_over_assign_and_leave_nothing_over(new_address):
    """Sixteen raters, some of whom walk away from a lease, until nothing is left."""
    store = small_store(new_address("k"), n_prompts=8, n_tasks=24, overlap=3, n_raters=16)
    settings(store, lease_minutes=1.0)
    clock, busy, moved = [0.0], [0], threading.Condition()
    over, late = [], []

    def answer_one(i, rng):
        """Take what is offered and answer it, or walk away from it; False = nothing was offered."""
        with moved:
            busy[0] += 1
            clock[0] += 0.01
            now = clock[0]
        try:
            lease = assignment.next_task(store, f"r{i}", now=now)
            if lease is None:
                return False
            if held_at_once(store, lease.task.id, now) > 3:
                over.append(lease.task.id)
            if (
                rng.random() >= 0.2
            ):  # else the connection is lost: she asks again and gets the same, or never comes back
                late.append(store.submit(vote(lease.task, f"r{i}"), now=now).late)
            return True
        finally:
            with moved:
                busy[0] -= 1
                moved.notify_all()

    def work(i):
        rng, empty = random.Random(i), 0
        while empty < 3:
            if answer_one(i, rng):
                empty = 0
                continue
            empty += 1
            with moved:  # half a lease passes for nobody who is between a question and its answer
                moved.wait_for(lambda: busy[0] == 0)
                clock[0] += 30.0

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    answers = Counter(each.task_id for each in store.judgements())
    assert len(answers) == 24
    assert min(answers.values()) >= 3
    assert sum(answers.values()) - sum(late) <= 3 * 24
    assert set(states(store)) == {"closed"}
    assert not over


def test_a_task_that_somebody_is_just_taking_is_not_nothing_left(new_address):
    """On PostgreSQL a locked row is skipped first; where it is the only one, it is waited for."""
    store = small_store(new_address("k"), n_tasks=1, overlap=8, n_raters=8)
    with ThreadPoolExecutor(8) as pool:
        offers = list(pool.map(lambda i: assignment.next_task(store, f"r{i}", now=0.0), range(8)))
    assert None not in offers


def test_on_postgresql_a_task_that_somebody_is_just_taking_is_passed_without_waiting(postgresql):
    store = small_store(postgresql_server.new_database(postgresql), n_tasks=3, overlap=1, n_raters=2)
    first, second, _ = [task.id for task in store.tasks()]
    with ThreadPoolExecutor(1) as pool, store.connection(write=True) as connection:
        assert waiting.peek_open(connection, "r0", now=0.0).id == first
        offered = pool.submit(assignment.next_task, store, "r1", now=0.0)
        try:
            assert offered.result(timeout=60).task.id == second
        finally:
            connection.rollback()  # whoever waits is let go


def test_the_queue_is_found_by_its_index(tmp_path):
    """A queue of closed and held tasks costs nothing: SQLite starts at the first open one."""
    store = open_store(tmp_path / "k.db")
    with store.connection() as connection:
        for state, index in (("open", "tasks_open (state=? AND audience=?"), ("held", "tasks_held (audience=?")):
            question = waiting.first_waiting(state).params(who="r", audience="annotator", now=1.0, done_to=1)
            plain = question.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {plain}")]
            assert f"USING INDEX {index} AND " in plan[0]  # from her mark, from what ran out
            assert not [step for step in plan if "SCAN" in step or "TEMP B-TREE" in step]


def test_postgresql_walks_the_open_tasks_and_not_every_task_ever_answered(postgresql):
    """Ordered by number alone it starts at the first task there ever was, whatever the statistics say; and where it
    expects few open tasks it may read and sort them all, through any index that has them."""
    store = small_store(postgresql_server.new_database(postgresql), n_tasks=1)
    rows = "SELECT 'old' || i, prompt_id, response_ids, kind, 1, strategy, 1, guideline, batch, (i <= 3000)::int, question, audience, 0, "
    rows += "CASE WHEN i > 3000 THEN 'open' ELSE 'closed' END, 0 FROM tasks, generate_series(1, 6000) i"
    columns = (
        "id, prompt_id, response_ids, kind, overlap, strategy, propensity, guideline, batch, n_answers, question, "
    )
    columns += "audience, stop_after, state, free_at"
    for analysed in (False, True):
        with store.connection(write=True) as connection:
            if analysed:
                connection.exec_driver_sql("ANALYZE tasks")  # as it looks by itself at what was filled
            else:
                connection.exec_driver_sql(f"INSERT INTO tasks ({columns}) {rows}")
            question = waiting.first_waiting("open", (), "skip").params(who="r0", audience="annotator", done_to=0)
            plain = question.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {plain}"))
            line = {"who": "r0", "audience": "annotator", "now": 1.0, "most": 200, "done_to": 0}
            counting = waiting._line_question((), True, True).params(line)
            plain = counting.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
            counted = "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {plain}"))
        assert "Index Scan using tasks_open" in plan, plan
        assert "Sort" not in plan, plan
        assert "Index Scan using tasks_open" in counted, counted
        assert "tasks_held" in counted, counted
        for step in ("Seq Scan", "Sort", "Bitmap", "Join"):
            assert step not in counted, counted


def test_a_store_of_the_first_version_offers_its_open_tasks(tmp_path):
    store = open_store(tmp_path / "k.db")
    prompt = user_prompt("q")
    store.add_prompts([prompt])
    responses = [Response(prompt.id, text, "made") for text in "xyz"]
    store.add_responses(responses)
    store.add_annotators([Annotator("r0"), Annotator("r1")])
    ids = [each.id for each in responses]
    store.add_tasks([Task(prompt.id, (ids[0], ids[1])), Task(prompt.id, (ids[0], ids[2]))])
    store.submit(vote(store.tasks()[0], "r1"), now=0.0)
    with store.connection(write=True) as connection:  # as the first version left it: no task says that it is full
        connection.execute(tasks.update().values(state="open"))
    assert assignment.next_task(store, "r0", now=0.0).task == store.tasks()[1]


@pytest.mark.long
def test_sixty_four_raters_in_three_processes_with_bad_connections(new_address):
    """1,000 items, overlap 3: `bench/lease_study.py` as a test, on both databases."""
    row = study(new_address("k"), n_clients=64, n_items=1000, overlap=3, n_workers=3)
    assert (row["over_assigned"], row["tasks_with_too_few"], row["double_answers"], row["problems"]) == (0, 0, 0, [])
    assert row["most_held"] == 3
    assert row["fewest_answers_of_a_rater"] > row["most_answers_of_a_rater"] / 10
    assert row["lost_connections"] > 100
