"""Plain features beside the trunk: what they count, their basis, their priors, and a reward that reads them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
import torch
from scipy import linalg

from karat import plain_features
from karat.config import build
from karat.errors import CheckpointError, ConfigError
from karat.lm.checksums import SUMS
from karat.lm.load import load_lm
from karat.ngrams import column_weights, ngram_counts, weighted_counts
from karat.pipeline.beside_settings import check_beside_read
from karat.pipeline.settings import RunConfig
from karat.plain_features import (
    response_overlap,
    response_place,
    token_contexts,
    token_overlap,
    token_place,
)
from karat.records import Vote, user_prompt
from karat.reward import last_layer
from karat.reward.block_layer import block_scales, spread
from karat.reward.fit import fit_reward, save_fitted
from karat.reward.model import HeadConfig
from karat.reward.score import load_scorer
from karat.reward.settings import LaplaceConfig
from karat.reward.side import ngram_basis, side_features, side_reward
from karat.reward.train import RewardConfig
from karat.reward.trunk import DecoderTrunk
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dogs", "ran", "far", "from", "old", "green", "boats"]


def some_texts(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=int(rng.integers(3, 9)))) + "." for _ in range(n)]


def test_what_a_response_repeats_is_counted_by_hand():
    (row,) = response_overlap(["Tom has 3 apples and 12 pears."], ["Tom has 3 figs. So 15. It is 15"])
    words = ["tom", "has", "3", "figs", "so", "15", "it", "is", "15"]
    assert row[0] == pytest.approx(3 / len(words))  # tom, has, 3
    assert row[1] == pytest.approx(3 / 7)
    assert row[2] == pytest.approx(1 / len(words))  # 15 twice
    assert row[3:5].tolist() == pytest.approx([1 / 3, 1 / 2])
    assert row[5:].tolist() == pytest.approx([np.log(4), 0.0, 1.0])
    (place,) = response_place(["Ab 1.\nCd."])
    assert place.tolist() == pytest.approx([np.log(10) ** 2, np.log(4), np.log(3), np.log(2), 9 / 4, 1 / 10])
    assert np.isfinite(response_place([""])).all()
    assert np.isfinite(response_overlap([""], [""])).all()
    assert response_place([]).shape == (0, 6)
    assert response_overlap([], []).shape == (0, 8)


def test_tokens_know_their_sentence_and_what_was_said_before():
    text = "Cats sleep. Dogs eat cats."
    spans = np.array([[0, 4], [5, 11], [12, 16], [17, 20], [21, 26], [0, 0]])
    place = token_place(text, spans)
    assert place[:, 3].tolist() == [1, 1, 0, 0, 0, 0]  # first sentence; what has no characters stands at the end
    assert place[2, -1] == 0  # begins its sentence
    overlap = token_overlap("What do dogs eat?\nDogs eat cats often.", text, spans)
    assert overlap[0, :3].tolist() == pytest.approx([0.0, 0.5, 0.0])
    assert overlap[2, :4].tolist() == pytest.approx([2 / 3, 1.0, 1 / 3, 1.0])
    assert overlap[4, -2:].tolist() == [1, 1]  # "cats" is in the prompt and was said before
    near, sentence = token_contexts(text, spans)
    assert near[2] == "Cats sleep. Dogs eat cats."
    assert sentence[0] == "Cats sleep. "
    assert all(len(column) == len(spans) for column in (place, overlap, near, sentence))


def test_places_of_words_are_those_of_the_text_where_it_is_longer_without_case():
    """ß is ss without case."""
    text = "ßßßßßß cat dog. Cat"
    overlap = token_overlap("a dog", text, np.array([[0, 6], [7, 10], [11, 14], [16, 19]]))
    assert overlap[:, -2:].tolist() == [[0, 0], [0, 0], [1, 0], [0, 1]]


def test_what_was_said_before_is_read_once_and_not_for_every_sentence(monkeypatch):
    read = []
    plainly = plain_features.words_of
    monkeypatch.setattr(plain_features, "words_of", lambda text: read.append(len(text)) or plainly(text))
    token_overlap("a", "a. " * 1000, np.array([[0, 1]]))
    assert sum(read) < 3 * 3000


def test_ridge_on_the_basis_is_ridge_on_the_ngrams_themselves():
    texts = some_texts(40)
    basis = ngram_basis(texts, width=1000)
    counts = ngram_counts(texts)
    whole = weighted_counts(counts, column_weights(counts))
    z, y = basis.of(texts), np.random.default_rng(1).normal(size=40)
    by_basis = linalg.solve(z.T @ z + 0.7 * np.eye(z.shape[1]), z.T @ y)
    gram = (whole @ whole.T).toarray()
    by_ngrams = gram @ linalg.solve(gram + 0.7 * np.eye(40), y)
    assert z @ by_basis == pytest.approx(by_ngrams, abs=1e-3)


def test_a_block_that_says_nothing_is_turned_down_and_one_that_says_much_is_not():
    rng = np.random.default_rng(0)
    n = 400
    blocks = [rng.normal(size=(n, 20)), 0.1 * rng.normal(size=(n, 5)), rng.normal(size=(n, 60))]
    eta = blocks[1] @ (15 * rng.normal(size=5))
    level, none = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(int), np.zeros(n)
    observed = last_layer.Observations(
        np.arange(n), np.full(n, -1), np.ones(n), none,
        lambda e, rows: last_layer.ordinal_derivatives(e, level[rows], none[rows], np.zeros(1)),
    )  # fmt: skip
    whole, widths = np.concatenate(blocks, axis=1), [20, 5, 60]
    scales, layer = block_scales(whole, widths, [observed])
    assert scales[0] == 1
    in_logits = scales * [
        np.sqrt((block**2).sum(1).mean()) for block in blocks
    ]  # what a block moves η by, at equal weights
    assert in_logits[1] > 5 * in_logits[2]
    assert in_logits[1] > 5 * in_logits[0]
    alike = last_layer.fit_last_layer(whole, [observed])
    assert layer.log_evidence > alike.log_evidence + 5
    scaled = whole * spread(scales, widths)
    assert abs(layer.log_evidence - last_layer.fit_last_layer(scaled, [observed]).log_evidence) < 0.1


def test_weights_of_single_ngrams_give_the_same_scores_as_those_of_the_basis():
    texts = some_texts(30)
    prompts = [user_prompt(f"about {word}") for word in (WORDS * 3)[:30]]
    side = side_features(("ngrams", "place", "overlap", "numbers"), prompts, texts).scaled(
        np.array([0.5, 2.0, 1.5, 1.2])
    )
    new_prompts, new = prompts[:5], some_texts(5, seed=9)
    z = side.of(new_prompts, new)
    drawn = np.random.default_rng(3).normal(size=(4, z.shape[1]))
    found = side_reward(side, drawn).scores(new_prompts, new)[..., 0]
    assert found.numpy() == pytest.approx(drawn @ z.T, abs=1e-3)


def test_a_column_that_never_changed_in_training_stays_zero_where_it_does():
    """Otherwise a first equation would stand a million deviations away, and draws of a weight nobody learned would score it."""
    prompts = [user_prompt("about cats")] * 6
    side = side_features(("place", "numbers"), prompts, some_texts(6))
    new = ["3 + 4 = 8, which has digits.", "12 * 12 = 144"]
    z = side.of(prompts[:2], new)
    assert np.isfinite(z).all()
    assert np.abs(z).max() < 100
    drawn = np.random.default_rng(0).normal(size=(3, z.shape[1]))
    assert side_reward(side, drawn).scores(prompts[:2], new)[..., 0].numpy() == pytest.approx(drawn @ z.T, abs=1e-3)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    path = tiny_checkpoint("qwen3", tmp_path_factory.mktemp("qwen"))
    votes, prompts, responses = planted_votes(6, n_raters=6)
    config = RewardConfig(
        heads=HeadConfig(n_heads=2, length_term=True), learning_rate=1e-5, head_learning_rate=1e-4, n_refits=1,
        posterior="laplace", laplace=LaplaceConfig(n_draws=16, tastes=False), beside=("ngrams", "place"),
    )  # fmt: skip

    def work(config):
        trunk = lambda: DecoderTrunk(load_lm(path, for_training=True))  # noqa: E731
        return fit_reward(trunk, votes, prompts, responses, config=config, seed=0)

    return work(config), work(dataclasses.replace(config, beside=())), responses, prompts


def test_a_reward_that_reads_ngrams_finds_a_letter_that_an_untrained_trunk_does_not(fitted, tmp_path):
    beside, alone, responses, prompts = fitted
    own = [prompts[one.prompt_id] for one in responses.values()]
    texts = [one.text for one in responses.values()]
    gold = np.array([text.count("a") for text in texts])
    with_it, without = (np.corrcoef(one.scorer(own, texts).draws.mean(0)[:, 0], gold)[0, 1] for one in (beside, alone))
    assert with_it > without
    assert beside.last_layers["preference"].log_evidence > alone.last_layers["preference"].log_evidence
    bare = dataclasses.replace(beside.scorer, side=None)
    added = beside.scorer.logits(own, texts) - bare.logits(own, texts)
    expected = beside.scorer.side.scores(own, texts)[..., 0] / beside.scorer.model.temperature
    assert torch.allclose(added, expected, atol=1e-4)
    assert float(expected.mean(0).std()) > 0.1
    # saved, loaded, and without its file another reward
    path = save_fitted(beside, tmp_path / "rm", metadata={"run_id": "r1"})
    before, after = beside.scorer(own, texts).draws, load_scorer(path)(own, texts).draws
    assert torch.allclose(before, after, atol=1e-4)
    card = json.loads((path / "reward_card.json").read_text())
    assert any("ngrams, place" in one for one in card["not_expressed"])
    assert any(finding["question"] == "What does the reward read beside the trunk?" for finding in card["findings"])
    shutil.copytree(path, tmp_path / "bare")
    (tmp_path / "bare" / "beside.safetensors").unlink()
    (tmp_path / "bare" / SUMS).write_text(";\n")  # looked at no more than that of an older karat
    with pytest.raises(CheckpointError, match="reads ngrams, place"):
        load_scorer(tmp_path / "bare")


def test_effects_of_texts_keep_features_from_explaining_single_texts(tmp_path_factory, monkeypatch):
    """Utilities that no feature says, voted on by many: without effects of their own the features take them, with them not."""
    path = tiny_checkpoint("qwen3", tmp_path_factory.mktemp("qwen"))
    _, prompts, responses = planted_votes(6, n_raters=6)
    rng = np.random.default_rng(5)
    utility = {one: rng.normal(0, 2) for one in responses}
    votes = []
    for a, b in itertools.combinations(responses.values(), 2):
        if a.prompt_id == b.prompt_id:
            for rater in range(6):
                won = rng.random() < 1 / (1 + np.exp(utility[b.id] - utility[a.id]))
                votes.append(Vote(f"v{len(votes)}", a.prompt_id, a.id, b.id, int(won), 2, 1, f"rater{rater}"))
    config = RewardConfig(
        heads=HeadConfig(n_heads=2, length_term=True), learning_rate=1e-5, head_learning_rate=1e-4, n_refits=1,
        posterior="laplace", laplace=LaplaceConfig(n_draws=16, tastes=False),
    )  # fmt: skip

    def spread_of(text_effects):
        own = dataclasses.replace(config, laplace=dataclasses.replace(config.laplace, text_effects=text_effects))
        trunk = lambda: DecoderTrunk(load_lm(path, for_training=True))  # noqa: E731
        found = fit_reward(trunk, votes, prompts, responses, config=own, seed=0)
        new = ["hgf", "bbbb", "cdcdcdcd", "aeb", "fffgh", "dd"]
        raw = found.scorer.logits([prompts[next(iter(prompts))]] * 6, new).mean(0) * found.scorer.model.temperature
        return float(raw.std()), found

    (without, _), (with_effects, found) = spread_of(False), spread_of(True)
    assert with_effects < without / 2
    assert found.last_layers["preference"].mean.shape == (found.scorer.model.trunk.width + 1,)
    assert (found.metrics["taste_sd"], "rhat" in found.metrics) == (0.0, False)
    config = dataclasses.replace(config, laplace=LaplaceConfig(n_draws=16))
    _, both = spread_of(True)  # raters who differ, and effects of texts
    assert both.metrics["taste_sd"] > 0
    assert "rhat" in both.metrics
    assert both.last_layers["preference"].mean.shape == found.last_layers["preference"].mean.shape
    monkeypatch.setattr("karat.reward.objective_layer.MOST_EFFECTS", 5)
    with pytest.raises(ConfigError, match="text_effects"):
        spread_of(True)


def test_blocks_are_read_from_a_configuration_and_refused_where_nothing_reads_them():
    found = build(RewardConfig, {"posterior": "laplace", "beside": ["ngrams", "overlap"]})
    assert found.beside == ("ngrams", "overlap")
    with pytest.raises(ConfigError, match=r"reward\.beside: found place, place; expected each block once"):
        build(RewardConfig, {"beside": ["place", "place"]})
    heads = build(RewardConfig, {"beside": ["ngrams"]})
    check_beside_read(heads, marks=True)
    check_beside_read(found, marks=False)
    with pytest.raises(
        ConfigError, match=r"found ngrams with posterior heads and no heads of marks .* posterior: laplace"
    ):
        check_beside_read(heads, marks=False)
    with pytest.raises(ConfigError, match=r"reward\.beside: found ngrams with posterior heads"):
        build(RunConfig, {"name": "r", "sandbox": {}, "reward": {"beside": ["ngrams"]}})
    with pytest.raises(ConfigError, match="beside"):
        build(RewardConfig, {"posterior": "laplace", "beside": ["words"]})
