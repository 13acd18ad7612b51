"""A round's questions: kinds by share of time, parted anew by what earlier rounds said, the same when begun again."""

import io

import numpy as np
import pytest
import torch

from karat.belief import Belief
from karat.config import build
from karat.feedback.documents import question_of
from karat.feedback.store import open_store
from karat.pipeline.data import Texts
from karat.pipeline.round_questions import Advice, ask_round
from karat.pipeline.runs import source_of
from karat.pipeline.sandbox import open_world
from karat.pipeline.settings import RunConfig
from karat.pipeline.stages import Clock, Workplace
from karat.progress import LineDisplay

ACCURATE = {
    "n_raters": 12,
    "attention": 1.0,
    "lapse": 0.0,
    "competence_sd": 0.0,
    "group_divergence": 0.0,
    "taste_sd": 0.0,
}


def config_of(noise=0.5, **collect):
    raters = ACCURATE | {"scales": {"noise": noise, "offset_sd": 0.1, "gain_sd": 0.0, "threshold_sd": 0.1}}
    given = {"n_tasks": 60, "overlap": 1, "kinds": "auto", **collect}
    return build(RunConfig, {"sandbox": {"raters": raters}, "collect": given})


def samples(world, n=50, seed=1):
    rng = np.random.default_rng(seed)
    prompts = world.prompts(n, rng)
    texts = tuple(tuple(world.demonstration(prompt, rng) for _ in range(4)) for prompt in prompts)
    return Texts(tuple(prompts), texts, ((1,) * 4,) * n, ((True,) * 4,) * n)


def knowing(world):
    """A reward that is the gold one, without any doubt."""

    def scorer(prompts, texts):
        ids = {p.id: i for i, p in enumerate(dict.fromkeys(prompts))}
        scores = torch.tensor([2 * world.gold_reward(p, t) for p, t in zip(prompts, texts, strict=True)])
        place = torch.tensor([ids[p.id] for p in prompts])
        return Belief(scores.view(1, -1, 1).expand(4, -1, 1), torch.zeros(4, len(ids), 1), place)

    return scorer


def answered(store, path, config, batch):
    place = Workplace(path, path / "c", path / "m.jsonl", LineDisplay(io.StringIO()), Clock(path), identity="stage:1")
    source_of(config, 0).votes(store, place, batch)


def ask(store, texts, config, batch, advice):
    return ask_round(store, texts, config, seed=0, batch=batch, writer="sft", advice=advice)


def test_time_is_parted_evenly_until_something_is_known_and_then_by_what_was_found(tmp_path):
    shares = {}
    for noise in (0.3, 6.0):
        config = config_of(noise)
        world = open_world(config.sandbox, 0)
        texts, scorer = samples(world), knowing(world)
        path = tmp_path / str(noise)
        path.mkdir()
        with open_store(path / "karat.db") as store:
            _, first = ask(store, texts, config, "b1", Advice(scorer))
            assert {kind: row["share"] for kind, row in first.items()} == dict.fromkeys(first, pytest.approx(1 / 3))
            assert set(first) == {"comparison", "rating", "label"}
            answered(store, path, config, "b1")
            assert ask(store, texts, config, "b1", Advice(scorer))[1] == first  # begun again, with its answers in
            known = {one.id for one in store.judgements()}
            findings, second = ask(store, texts, config, "b2", Advice(scorer, known))
            shares[noise] = {kind: row["share"] for kind, row in second.items()}
            assert "for a minute: " in findings[-1].detail
            before = {task.id for task in store.tasks(batch="b2")}
            answered(store, path, config, "b2")
            assert ask(store, texts, config, "b2", Advice(scorer, known))[1] == second
            assert {task.id for task in store.tasks(batch="b2")} == before
    # precise ratings take what comparisons and labels leave; comparisons keep random_frac in any case
    assert shares[0.3]["rating"] > 0.7
    assert shares[0.3]["comparison"] == pytest.approx(0.2)
    assert shares[6.0]["rating"] < 0.06


def test_a_share_beside_auto_is_kept_as_it_is(tmp_path):
    config = config_of(kinds={"auto": 0.5, "demonstration": 0.5})
    world = open_world(config.sandbox, 0)
    with open_store(tmp_path / "karat.db") as store:
        _, plan = ask(store, samples(world), config, "b", Advice())
        assert plan["demonstration"]["share"] == 0.5
        assert sum(row["share"] for row in plan.values()) == pytest.approx(1)
        counts = {kind: sum(task.kind == kind for task in store.tasks()) for kind in plan}
        assert counts == {kind: row["n_tasks"] for kind, row in plan.items()}
        assert {task.response_ids for task in store.tasks() if task.kind == "demonstration"} == {()}


def test_people_are_asked_for_one_verdict_of_each_kind(tmp_path):
    content = {"people": {"prompts": "p", "model": "m"}, "collect": {"n_tasks": 40, "principle": "Be kind."}}
    kinds = {"comparison": 0.4, "rating": 0.2, "label": 0.2, "ranking": 0.2}
    config = build(RunConfig, content | {"collect": content["collect"] | {"kinds": kinds, "stop_after": 1}})
    world = open_world(build(RunConfig, {"sandbox": {}}).sandbox, 0)
    with open_store(tmp_path / "karat.db") as store:
        ask(store, samples(world), config, "b", Advice())
        asked = {task.kind: question_of(store, task) for task in store.tasks()}
        assert set(asked) == set(kinds)
        assert {question.principle for question in asked.values()} == {"Be kind."}
        assert asked["label"].flags == asked["rating"].attributes == ()
        assert asked["comparison"].n_levels == 3
        assert {task.overlap for task in store.tasks() if task.kind != "comparison"} == {1}
        assert {task.stop_after for task in store.tasks() if task.kind != "comparison"} == {0}
        assert {(task.overlap, task.stop_after) for task in store.tasks() if task.kind == "comparison"} == {(2, 1)}
