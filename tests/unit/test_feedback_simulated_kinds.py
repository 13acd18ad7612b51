"""Simulated raters answer every kind by the likelihood, take time for it, and write the same whatever interrupts them."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from karat.feedback import simulated_kinds
from karat.feedback.simulated import RaterTraits
from karat.feedback.simulated_kinds import KINDS_SIMULATED, NO_CHANGE, Minds, collect_simulated_kinds, n_written
from karat.feedback.snapshot import write_snapshot
from karat.feedback.store import open_store
from karat.feedback.tasks import random_tasks
from karat.reading import statements_of
from karat.records import Annotator, Response, user_prompt

RATERS = [Annotator(f"sim{i}", "simulated") for i in range(5)]
PROMPTS = [user_prompt(f"about {i} ?") for i in range(60)]
RESPONSES = [Response(p.id, " ".join(["word"] * (n + 1)) + f" of {i}", "policy", n)
             for i, p in enumerate(PROMPTS) for n in range(4)]  # fmt: skip


def longer_is_better(_annotator, _prompt, texts, _rng, *, time):
    assert 0 <= time < 1
    return [1.2 * len(text.split()) for text in texts]


def anchors(who, noise=0.3):
    return SimpleNamespace(
        middle=5.4, spread=1.5, gain=1.0, offset=0.5 if who.id == "sim0" else 0.0, noise=noise, threshold=0.2
    )


def lengthened(_annotator, _prompt, text, _rng, *, time):
    assert 0 <= time < 1
    return None if text.startswith("word word word word") else f"more {text}"


def answered(_annotator, prompt, _rng, *, time):
    assert 0 <= time < 1
    return f"my answer to {prompt.text}"


def minds(lapse=0.0, competence=1.0, **changes):
    traits = RaterTraits(competence, 0.0, lapse)
    given = {"utilities": longer_is_better, "traits": lambda _: traits, "anchors": anchors}
    return Minds(**(given | {"corrected": lengthened, "demonstrated": answered} | changes))


def asked(path, kinds=KINDS_SIMULATED, n=40):
    store, by_prompt = open_store(path), {}
    for one in RESPONSES:
        by_prompt.setdefault(one.prompt_id, []).append(one.id)
    store.add_prompts(PROMPTS)
    store.add_responses(RESPONSES)
    for kind in kinds:
        store.add_tasks(random_tasks(by_prompt, kind, n, np.random.default_rng(0), overlap=2, batch="b"))
    return store


def n_words(response_id):
    return len(next(one for one in RESPONSES if one.id == response_id).text.split())


def test_every_kind_is_answered_and_says_something(tmp_path):
    with asked(tmp_path / "k.db") as store:
        said = collect_simulated_kinds(store, RATERS, minds(), seed=1, batch="b")
        assert said == dict.fromkeys(KINDS_SIMULATED, 80)
        assert collect_simulated_kinds(store, RATERS, minds(), seed=1, batch="b") == said
        snapshot = write_snapshot(store, tmp_path / "s")
    assert Counter(one.kind for one in snapshot.judgements) == said
    assert snapshot.misfits == {}
    assert {one.origin for one in snapshot.judgements} == {"simulated"}
    samples = {prompt.id: [one for one in RESPONSES if one.prompt_id == prompt.id] for prompt in PROMPTS}
    read = statements_of(snapshot.votes, snapshot.judgements, snapshot.responses, samples=samples)
    silent = {f"missing: {NO_CHANGE}", "words only"}
    assert set(read.silent) == silent
    assert {one.kind for one in read.statements} == set(KINDS_SIMULATED)


def test_what_is_better_is_said_to_be_better(tmp_path):
    with asked(tmp_path / "k.db") as store:
        collect_simulated_kinds(store, RATERS, minds(), seed=1)
        found = {kind: [one for one in store.judgements() if one.kind == kind] for kind in KINDS_SIMULATED}
    lengths = [[n_words(one) for one in each.response_ids] for each in found["ranking"]]
    ranks = [each.value["ranks"] for each in found["ranking"]]
    assert np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(lengths, ranks, strict=True)]) < -0.5
    assert any(len(set(one)) < 4 for one in ranks)  # ties, and the likelihood's two at a time
    best = [n_words(one.response_ids[one.value["best"]]) for one in found["best_of"]]
    assert np.mean(best) > 5.5  # of 3, 4, 5 and 6 words
    rated = [(n_words(one.response_ids[0]), one.value["score"], one.annotator) for one in found["rating"]]
    assert np.corrcoef([a for a, _, _ in rated], [b for _, b, _ in rated])[0, 1] > 0.8
    good = [n_words(one.response_ids[0]) for one in found["label"] if one.value["good"]]
    bad = [n_words(one.response_ids[0]) for one in found["label"] if not one.value["good"]]
    assert np.mean(good) > np.mean(bad) + 0.5


def test_a_kind_rater_rates_higher_and_a_lapse_knows_nothing(tmp_path):
    with asked(tmp_path / "k.db", ("rating",), n=240) as store:
        collect_simulated_kinds(store, RATERS, minds(anchors=lambda who: SimpleNamespace(
            middle=5.4, spread=1.5, gain=1.0, offset=2.0 if who.id == "sim0" else 0.0, noise=0.3, threshold=0.0)), seed=1)  # fmt: skip
        kind = [j.value["score"] for j in store.judgements() if j.annotator == "sim0"]
        others = [j.value["score"] for j in store.judgements() if j.annotator != "sim0"]
    assert np.mean(kind) > np.mean(others) + 1
    with asked(tmp_path / "lapsed.db", ("rating", "label"), n=240) as store:
        collect_simulated_kinds(store, RATERS, minds(lapse=1.0), seed=1)
        for kind, value in (("rating", "score"), ("label", "good")):
            own = [j for j in store.judgements() if j.kind == kind]
            x = np.corrcoef([n_words(j.response_ids[0]) for j in own], [float(j.value[value]) for j in own])[0, 1]
            assert abs(x) < 0.15  # 480 answers: standard deviation .046


def test_answers_take_the_time_of_reading_and_writing(tmp_path):
    with asked(tmp_path / "k.db") as store:
        collect_simulated_kinds(store, RATERS, minds(), seed=1)
        seconds = {
            kind: np.mean([j.active_s for j in store.judgements() if j.kind == kind]) for kind in KINDS_SIMULATED
        }
    assert seconds["demonstration"] > seconds["ranking"] > seconds["rating"]
    assert seconds["demonstration"] > 6 * simulated_kinds.SECONDS_PER_WRITTEN * 0.7  # six words each
    assert n_written("critique", {"text": "not so .", "revision": "a b c"}, "a c") == 4
    assert n_written("rating", {"score": 3}, "a") == 0


@pytest.mark.parametrize("stops", [(1,), (3, 4)])
def test_an_interrupted_collection_ends_with_the_same_bytes(tmp_path, stops, monkeypatch):
    monkeypatch.setattr(simulated_kinds, "CHUNK", 7)
    with asked(tmp_path / "whole.db") as whole:
        collect_simulated_kinds(whole, RATERS, minds(), seed=1)
        expected = write_snapshot(whole, tmp_path / "whole")
    real = simulated_kinds.carry_out
    with asked(tmp_path / "parts.db") as parts:
        for stop in stops:
            left = iter(range(stop))

            def until_killed(*args, left=left):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return real(*args)

            monkeypatch.setattr(simulated_kinds, "carry_out", until_killed)
            with pytest.raises(KeyboardInterrupt):
                collect_simulated_kinds(parts, RATERS, minds(), seed=1)
        monkeypatch.setattr(simulated_kinds, "carry_out", real)
        assert 0 < parts.n_judgements() < 2 * 40 * 7
        collect_simulated_kinds(parts, RATERS, minds(), seed=1)
        assert write_snapshot(parts, tmp_path / "parts") == expected


def test_two_responses_are_ranked_as_a_comparison_is_answered():
    drawn = Counter(
        tuple(simulated_kinds._ordered("ranking", np.array([1.0, 0.0]), RaterTraits(), 0.4, seed)["ranks"])
        for seed in range(600)
    )
    a, tie = 1 / (1 + np.exp(-0.6)), 1 / (1 + np.exp(-1.4)) - 1 / (1 + np.exp(-0.6))
    for ranks, p in (((1, 2), a), ((1, 1), tie), ((2, 1), 1 - a - tie)):
        assert abs(drawn[ranks] / 600 - p) < 4 * np.sqrt(p * (1 - p) / 600)
