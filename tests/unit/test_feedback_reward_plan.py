"""How many votes a reward needs and what they cost: where a curve can be drawn, and what is said where it cannot."""

from __future__ import annotations

import json

import numpy as np
import pytest

from feedback_cases import small_store, vote
from karat.cli import main
from karat.errors import InputError
from karat.feedback.documents import Pay, ProjectSettings, put_settings
from karat.feedback.people import standing
from karat.feedback.quality.learning_curve import fit_learning_curve
from karat.feedback.quality.word_reader import Measurement
from karat.feedback.store import open_store
from karat.feedback.work import checks, reward_plan
from karat.feedback.work.reward_plan import MEASURED, READER, CurvePoints, curve_votes, reader_points
from karat.records import Annotator, Response, Task, user_prompt
from karat.rowfiles import rows_of_text
from worded_votes import crowd

RISING = CurvePoints(
    MEASURED, tuple(Measurement(n, 0.85 - 0.9 * n**-0.4, 0.004, 0, 0) for n in (100, 400, 1600, 6400)), ""
)


@pytest.fixture(scope="module")
def learnable(tmp_path_factory):
    """240 prompts with a vote each that words explain, ten seconds a vote, and one tie in nine."""
    store = open_store(tmp_path_factory.mktemp("curve") / "k.db")
    texts, winner, _, names = crowd(240, np.random.default_rng(1))
    prompts = [user_prompt(name) for name in names]
    pairs = [[Response(prompt.id, texts[2 * i + k], "made", k) for k in range(2)] for i, prompt in enumerate(prompts)]
    store.add_prompts(prompts)
    store.add_responses([response for pair in pairs for response in pair])
    store.add_annotators([Annotator("r0"), Annotator("r1")])
    tasks = [Task(prompt.id, tuple(one.id for one in pair)) for prompt, pair in zip(prompts, pairs, strict=True)]
    store.add_tasks(tasks)
    for i, task in enumerate(tasks):
        store.submit(vote(task, "r0", level=2 if winner[i] == 2 * i else 0, active_s=10.0))
        if i % 8 == 0:
            store.submit(vote(task, "r1", level=1, active_s=10.0))
    return store


def test_the_curve_of_a_store_counts_comparisons_of_any_outcome(learnable):
    points = reader_points(learnable, np.random.default_rng(0))
    assert (points.of_what, points.why) == (READER, "")
    # 192 of 240 decided votes are trained on at the end; 270 comparisons were needed for 240 decided ones
    assert points.points[-1].n_votes == pytest.approx(192 * 270 / 240)
    plan = reward_plan.reward_plan(learnable, 0.6, points, np.random.default_rng(0))
    assert plan.n_votes == 270
    assert plan.votes.value is not None
    assert plan.votes.low <= plan.votes.value
    assert plan.now.low < points.points[-1].accuracy < plan.now.high


def test_votes_become_hours_and_money(learnable):
    curve = fit_learning_curve(
        *zip(*((one.n_votes, one.accuracy, one.standard_error) for one in RISING.points), strict=True),
        np.random.default_rng(3),
    )
    plan = reward_plan.reward_plan(learnable, 0.8, RISING, np.random.default_rng(3), pay=36.0)
    assert plan.votes == curve.votes_for(0.8)
    assert plan.more.value == pytest.approx(plan.votes.value - 270)
    assert plan.hours.value == pytest.approx(plan.more.value * 10 / 3600)
    assert plan.cost.value == pytest.approx(plan.hours.value * 36)
    assert plan.cost.high == pytest.approx((plan.votes.high - 270) * 10 / 3600 * 36)
    easy = reward_plan.reward_plan(learnable, 0.55, RISING, np.random.default_rng(3), pay=36.0)
    assert (easy.more.value, easy.cost.value) == (0.0, 0.0)  # there are enough
    unpaid = reward_plan.reward_plan(learnable, 0.8, RISING, np.random.default_rng(3))
    assert unpaid.cost.method == "not estimable: no pay is set"
    assert unpaid.hours == plan.hours


def test_beyond_the_ceiling_nothing_is_promised(learnable):
    plan = reward_plan.reward_plan(learnable, 0.99, RISING, np.random.default_rng(0), pay=36.0)
    assert plan.ceiling == pytest.approx(0.85, abs=1e-3)
    for figure in (plan.votes, plan.more, plan.hours, plan.cost):
        assert figure.value is None
        assert "the fitted ceiling is 0.85" in figure.method


def test_without_a_curve_the_reason_stands_in_its_place(tmp_path):
    store = small_store(tmp_path / "k.db", n_prompts=4, n_tasks=10)
    for task in store.tasks():
        store.submit(vote(task, "r0"))
    points = reader_points(store, np.random.default_rng(0))
    assert points.points == ()
    assert points.why == "10 decided comparisons of random questions on 4 prompts; a curve needs 200 on 40"
    plan = reward_plan.reward_plan(store, 0.7, points, np.random.default_rng(0))
    assert (plan.ceiling, plan.votes.value) == (None, None)
    assert plan.cost.method == f"not estimable: {points.why}"
    level = CurvePoints(MEASURED, tuple(Measurement(n, 0.6, 0.01, 0, 0) for n in (10, 20, 40)), "")
    plan = reward_plan.reward_plan(store, 0.7, level, np.random.default_rng(0))
    assert "held-out accuracy does not rise with votes yet (0.600 from 10 votes, 0.600 from 40)" in plan.votes.method
    with pytest.raises(InputError, match=r"accuracy: found 0.5; expected a share above 1/2"):
        reward_plan.reward_plan(store, 0.5, level, np.random.default_rng(0))


def test_only_random_questions_of_raters_in_good_standing_count(tmp_path):
    store = small_store(tmp_path / "k.db", n_prompts=4, n_tasks=6)
    plain, gold_of = store.tasks()[:2]
    chosen = Task(plain.prompt_id, plain.response_ids[::-1], strategy="bald", propensity=0.5)
    store.add_tasks([chosen])
    [gold] = checks.add_gold(store, [(gold_of, {"level": 2, "n_levels": 3})], version="1")
    for task in (plain, chosen, gold):
        store.submit(vote(task, "r0"))
    store.submit(vote(plain, "r1"))
    standing.quarantine(store, "r1", reason="clicks", by="a", now=1.0)
    assert [(one.task_id, one.annotator) for one in curve_votes(store)] == [(plain.id, "r0")]


def test_the_command_takes_accuracies_that_somebody_measured(learnable, tmp_path, capsys):
    put_settings(learnable, ProjectSettings(pay=Pay(0.5, "EUR", "judgement")), now=1.0)
    file = tmp_path / "curve.jsonl"
    rows = [vars(one) for one in RISING.points]
    keys = ("n_votes", "accuracy", "standard_error")
    file.write_text("\n".join(json.dumps({key: row[key] for key in keys}) for row in rows))
    arguments = ["quality", learnable.address, "--accuracy", "0.8", "--curve", str(file)]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = found["reward_plan"]
    assert plan["measured"]["of_what"] == MEASURED
    assert plan["cost"]["value"] == pytest.approx(0.5 * plan["more"]["value"])
    assert found["consensus"]["rows"][0]["n_answers"] == 270
    assert found["population"] is None
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "votes      for a held-out accuracy of 0.8: " in told
    assert "no target population is set" in told
    file.write_text('{"n_votes": 10, "accuracy": 2, "standard_error": 0.1}')
    assert main(arguments) == 2
    assert "found 10 votes, accuracy 2 ± 0.1; expected" in capsys.readouterr().err


def test_measured_accuracies_are_checked_line_by_line():
    with pytest.raises(InputError, match="unknown"):
        reward_plan.given_points(rows_of_text('{"n_votes": 3, "accuracy": 0.5, "standard_error": 0.1, "x": 1}', "f"))
