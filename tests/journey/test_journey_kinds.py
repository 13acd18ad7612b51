"""A run that asks for more than comparisons: what people wrote, rated and ranked trains its rewards, round by round."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from journeys import SANDBOX, inside, karat, manifests, write_config

from karat.config import build
from karat.errors import ConfigError
from karat.feedback import simulated_kinds
from karat.feedback.snapshot import read_snapshot
from karat.feedback.store import open_store
from karat.pipeline import rewarding
from karat.pipeline.data import read_prompts, read_texts
from karat.pipeline.round_questions import with_comparisons
from karat.pipeline.sandbox import open_world
from karat.pipeline.settings import RunConfig
from karat.records import Response
from karat.reward.score import load_scorer

KINDS = {"comparison": 0.3, "demonstration": 0.6, "rating": 0.05, "correction": 0.05}
LEARNS = {
    "base": {"learning_rate": 3e-3, "epochs": 3, "batch_size": 16},
    "reward": {"learning_rate": 2e-3, "head_learning_rate": 2e-2, "n_epochs": 6, "ratings": "ordinal"},
}
FEW = {**SANDBOX["collect"], "n_tasks": 160, "overlap": 1}


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    """(its directory, what each round's reward was told, by the number of the round) of a run with four kinds."""
    told, said_in = [], rewarding.said_in

    def listening(*given, **how):
        told.append(said_in(*given, **how))
        return told[-1]

    with inside(tmp_path_factory.mktemp("kinds")) as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewarding, "said_in", listening)
        config = write_config(SANDBOX, name="kinds", collect={**FEW, "kinds": KINDS}, rounds=2, **LEARNS)
        outcome = karat("run", config)
        assert outcome.code == 0, outcome.err
    return place / "runs" / "kinds", dict(enumerate(told, 1))


def facts(run, stage):
    return json.loads(manifests(run)[stage])


def test_every_kind_gets_its_share_of_the_time_and_is_in_the_snapshot(two_rounds):
    run, _ = two_rounds
    for stage, snapshot in (("collect", "votes"), ("collect-2", None)):
        manifest = facts(run, stage)
        plan = manifest["metrics"]["kinds"]
        assert {kind: row["share"] for kind, row in plan.items()} == KINDS
        spent = {kind: row["n_tasks"] * row["seconds"] for kind, row in plan.items()}
        total = FEW["n_tasks"] * plan["comparison"]["seconds"]
        assert all(abs(spent[kind] / total - KINDS[kind]) < 0.03 for kind in KINDS)  # whole questions
        assert plan["demonstration"]["seconds"] > 3 * plan["comparison"]["seconds"]
        answers = manifest["metrics"]["n_answers"]
        assert set(answers) == set(KINDS) - {"comparison"}
        if snapshot:
            kept = read_snapshot(run / "snapshots" / snapshot)
            asked = Counter(one.kind for one in kept.judgements)
            assert asked == {kind: plan[kind]["n_tasks"] for kind in answers}
            without = Counter(one.kind for one in kept.judgements if "missing" in one.value)  # "nothing to correct"
            assert answers == asked - without
    assert "30% for comparison (" in (run / "card.json").read_text()


def test_all_rounds_demonstrations_meet_the_newest_samples_in_one_likelihood(two_rounds):
    run, told = two_rounds
    replay = read_snapshot(run / "snapshots" / "replay-2")
    n_shown = [facts(run, stage)["metrics"]["n_answers"]["demonstration"] for stage in ("collect", "collect-2")]
    assert sum(one.kind == "demonstration" for one in replay.judgements) == sum(n_shown)
    for number, file in ((1, "sft_samples.jsonl"), (2, "samples-2.jsonl")):
        written = read_texts(run / "data" / file)
        newest = {
            Response(p.id, t, "").id for p, texts in zip(written.prompts, written.texts, strict=True) for t in texts
        }
        shown = [one for one in told[number].statements if one.kind == "demonstration"]
        assert len({one.judgement_id for one in shown}) == sum(n_shown[:number])
        assert {one.response_ids[1] for one in shown} <= newest
    rows = {row["kind"]: row for row in facts(run, "reward-2")["metrics"]["contributions"]}
    assert set(rows) == set(KINDS)
    assert sum(row["information_frac"] for row in rows.values()) == pytest.approx(1)
    assert all(row["information"] > 0 for row in rows.values())
    assert rows["demonstration"]["n_judgements"] > n_shown[0]  # of both rounds
    assert rows["comparison"]["nll"]["value"] > 0  # held out, kind by kind


def gold_within_prompts(run, name, own):
    """Correlation of a reward with gold between responses to one prompt, that it never saw: half of them people's."""
    config = build(RunConfig, json.loads((run / "config.json").read_text())["config"])
    world, rng = open_world(config.sandbox, 0), np.random.default_rng(0)
    pairs = [
        (prompt, text)
        for prompt in read_prompts(run / "data" / "prompts.jsonl")["evaluation"]
        for text in [*(world.demonstration(prompt, rng) for _ in range(3)), *map(str, rng.choice(own, 3))]
    ]
    gold = np.array([world.gold_reward(*pair) for pair in pairs]).reshape(-1, 6)
    score = load_scorer(run / "models" / name).logits(*zip(*pairs, strict=True)).mean(0).numpy().reshape(-1, 6)
    centred = (one - one.mean(1, keepdims=True) for one in (gold, score))
    return np.corrcoef(*(one.ravel() for one in centred))[0, 1]


def test_where_comparisons_are_few_demonstrations_make_the_reward_better(two_rounds, tmp_path):
    """The same time of the same raters, the same first samples."""
    run, _ = two_rounds
    with inside(tmp_path) as place:
        assert karat("reward", write_config(SANDBOX, name="kinds", collect=FEW, **LEARNS)).code == 0
        own = [text for texts in read_texts(run / "data" / "sft_samples.jsonl").texts for text in texts]
        without = gold_within_prompts(place / "runs" / "kinds", "reward", own)
        assert gold_within_prompts(run, "reward", own) > without + 0.2


def judgements_behind(node):
    """Ids of all judgements that a tree of artefacts was made from."""
    return set(node["facts"].get("judgements", ())).union(*map(judgements_behind, node["fed_by"]))


def test_what_people_wrote_can_be_traced_and_erased(two_rounds, here: Path):
    run = here / "runs" / "kinds"
    shutil.copytree(two_rounds[0], run)
    assert karat("verify", run).code == 0
    (tree,) = json.loads(karat("trace", run, "models/ppo-2", "--judgements", "--json").out)["trees"]
    with open_store(run / "karat.db") as store:
        by_id = {one.id: one for one in store.judgements()}
    behind = judgements_behind(tree)
    assert {by_id[one].kind for one in behind} == set(KINDS)
    writer = next(one.annotator for one in by_id.values() if one.kind == "demonstration" and one.id in behind)
    words = [one.value["text"] for one in by_id.values() if one.kind == "demonstration" and one.annotator == writer]
    assert karat("erase", run / "karat.db", writer, "--reason", "asked", "--yes", "--runs", here / "runs").code == 0
    left = karat("verify", run)
    assert left.code == 0
    assert "erased     snapshots/replay-2/words.jsonl" in left.out
    kept = (run / "snapshots" / "replay-2" / "words.jsonl").read_text()
    assert not any(json.dumps(one, ensure_ascii=False) in kept for one in words)


def test_a_collection_that_is_killed_among_the_kinds_ends_with_the_same_judgements(two_rounds, here: Path, monkeypatch):
    run, _ = two_rounds
    config = write_config(SANDBOX, name="kinds", collect={**FEW, "kinds": KINDS}, rounds=2, **LEARNS)
    monkeypatch.setattr(simulated_kinds, "CHUNK", 5)
    real, left = simulated_kinds.carry_out, iter(range(2))

    def until_killed(*given):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(simulated_kinds, "carry_out", until_killed)
        assert karat("collect", config).code == 130
    assert karat("collect", config).code == 0
    roots = [read_snapshot(place / "snapshots" / "votes").root for place in (run, here / "runs" / "kinds")]
    assert roots[0] == roots[1]


def test_kinds_that_cannot_be_asked_are_refused():
    def collect(**settings):
        return build(RunConfig, {"sandbox": {}, "collect": settings}).collect

    assert collect(kinds="auto").time_shares == {"auto": 1.0}
    assert "kinds" not in collect().key
    assert collect(kinds="auto").key["kinds"] == "auto"
    for kinds, says in (
        ({"comparison": 0.5, "step_marks": 0.5}, "found 'step_marks'; expected some of comparison, ranking"),
        ({"comparison": 0.5, "rating": 0.4}, "expected shares ≥ 0 of raters' time that sum to 1"),
        ({"rating": 1.0}, "without comparisons; expected a share for them"),
        ("all", r"collect\.kinds: found 'all'"),
    ):
        with pytest.raises(ConfigError, match=says):
            collect(kinds=kinds)
    with pytest.raises(ConfigError, match="beside simulated raters; expected one sort of rater"):
        collect(kinds="auto", people=1)
    with pytest.raises(ConfigError, match="in a run of `preferences`, where nobody is asked"):
        build(RunConfig, {"preferences": {"path": "v.jsonl", "model": "m"}, "collect": {"kinds": "auto"}})
    floored = with_comparisons({"comparison": 0.05, "rating": 0.9, "label": 0.05}, 0.2)
    assert sum(floored.values()) == pytest.approx(1)
    assert floored["comparison"] == 0.2
