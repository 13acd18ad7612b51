"""The temperature of prompts that were never seen: found where it is planted, crossed where it is measured with."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from karat.lm.load import load_lm
from karat.records import Vote, user_prompt
from karat.reward.calibration import predicted_probs
from karat.reward.cooling import FEWEST_VOTES, NAME, CrossedScorer, cooled_on_new_prompts
from karat.reward.data import vote_data
from karat.reward.fit import FittedReward, cooled, fit_reward, save_fitted
from karat.reward.layer_file import load_last_layer
from karat.reward.model import HeadConfig
from karat.reward.score import load_scorer, score_fn
from karat.reward.settings import EnsembleConfig, LaplaceConfig
from karat.reward.train import RewardConfig
from karat.reward.trunk import DecoderTrunk
from reward_worlds import planted_votes
from tiny_models import tiny_checkpoint

CONFIG = RewardConfig(
    heads=HeadConfig(n_heads=2, length_term=True), learning_rate=3e-3, head_learning_rate=1e-2, n_refits=1,
    ensemble=EnsembleConfig(models=2), laplace=LaplaceConfig(n_draws=16),
)  # fmt: skip
PROMPTS = [user_prompt("q1"), user_prompt("q1"), user_prompt("another question")]
TEXTS = ["abc", "aaaa bb", "b"]


@pytest.fixture(params=["heads", "laplace", "ensemble"])
def fitted(request, tmp_path_factory) -> FittedReward:
    path = tiny_checkpoint("qwen3", tmp_path_factory.mktemp("qwen"))
    votes, prompts, responses = planted_votes(4, n_raters=6)
    config = dataclasses.replace(CONFIG, posterior=request.param)
    return fit_reward(
        lambda: DecoderTrunk(load_lm(path, for_training=True)), votes, prompts, responses, config=config, seed=0
    )


def redrawn(fitted: FittedReward, votes, prompts, responses, *, temperature: float, seed: int = 0) -> list[Vote]:
    """The same questions, answered by raters whose differences are the model's over a temperature."""
    data = vote_data(votes, prompts, responses)
    logits = fitted.scorer.logits(data.prompts, data.texts)
    probs = predicted_probs(logits, data.columns, fitted.vote_model, temperature=temperature).numpy()
    rng = np.random.default_rng(seed)
    levels = (probs.cumsum(1) < rng.random((len(votes), 1))).sum(1)
    return [dataclasses.replace(vote, level=int(level)) for vote, level in zip(votes, levels, strict=True)]


def test_a_cooled_reward_is_the_same_but_for_its_logits(fitted, tmp_path):
    before = fitted.scorer(PROMPTS, TEXTS)
    scores = score_fn(fitted.scorer)(PROMPTS, TEXTS)
    temperature, layer = float(fitted.members[0].model.temperature), fitted.last_layers.get("preference")
    after = cooled(fitted, 1.7)
    belief = after.scorer(PROMPTS, TEXTS)
    torch.testing.assert_close(belief.draws, before.draws / 1.7)
    torch.testing.assert_close(belief.reference, before.reference / 1.7)
    assert score_fn(after.scorer)(PROMPTS, TEXTS) == pytest.approx(scores, abs=1e-5)  # what the optimiser gets
    assert after.metrics["temperature"] == pytest.approx(1.7 * temperature, rel=1e-5)
    path = save_fitted(after, tmp_path / "rm", metadata={})
    torch.testing.assert_close(load_scorer(path)(PROMPTS, TEXTS).draws, belief.draws, atol=1e-4, rtol=1e-4)
    assert load_scorer(path).scale == after.scorer.scale
    if layer is not None:
        kept = load_last_layer(path)
        assert kept.mean == pytest.approx(layer.mean / 1.7)
        assert kept.covariance == pytest.approx(layer.covariance / 1.7**2)


def test_a_planted_temperature_is_found_on_new_prompts(fitted):
    votes, prompts, responses = planted_votes(80, n_raters=6, votes_per_pair=6, seed=1)
    votes = redrawn(fitted, votes, prompts, responses, temperature=0.5)
    before = fitted.scorer.logits(PROMPTS, TEXTS)
    after, factors, finding = cooled_on_new_prompts(fitted, votes, prompts, responses)
    found = finding.estimate
    assert (finding.name, finding.status, found.n) == (NAME, "info", len(votes))
    assert found.low < 0.5 < found.high
    assert found.high / found.low < 1.6
    torch.testing.assert_close(after.scorer.logits(PROMPTS, TEXTS), before / found.value)
    assert set(factors) == {vote.prompt_id for vote in votes}
    assert len(set(factors.values())) == 2  # one a half
    assert all(0.6 < factor < 1.6 for factor in factors.values())


@pytest.mark.parametrize("fitted", ["heads"], indirect=True)
def test_an_end_of_the_search_is_said_to_be_one_and_what_it_means(fitted):
    votes, prompts, responses = planted_votes(80, n_raters=6, votes_per_pair=6, seed=1)
    votes = redrawn(fitted, votes, prompts, responses, temperature=0.2)
    most = max(vote.level for vote in votes)
    against = [dataclasses.replace(vote, level=most - vote.level) for vote in votes]
    _, _, finding = cooled_on_new_prompts(fitted, against, prompts, responses)
    assert (finding.status, round(finding.estimate.value)) == ("warn", 20)
    said = "the search goes from 0.05 to 20 and ends at 20: these votes would have the scores count for less still, which say nothing"
    assert said in finding.detail


@pytest.mark.parametrize("fitted", ["heads"], indirect=True)
def test_a_prompt_is_measured_at_a_temperature_that_its_own_half_had_no_part_in(fitted):
    votes, prompts, responses = planted_votes(40, n_raters=6, votes_per_pair=4, seed=1)
    votes = redrawn(fitted, votes, prompts, responses, temperature=2.0)
    first, factors, finding = cooled_on_new_prompts(fitted, votes, prompts, responses)
    used = {prompt_id: finding.estimate.value / factor for prompt_id, factor in factors.items()}
    one = factors[votes[0].prompt_id]
    mine = {prompt_id for prompt_id, factor in factors.items() if factor == one}
    again = cooled(first, 1 / finding.estimate.value)  # as it was
    turned = [dataclasses.replace(v, level=2 - v.level) if v.prompt_id in mine else v for v in votes]
    second, other_factors, other = cooled_on_new_prompts(again, turned, prompts, responses)
    for prompt_id, factor in other_factors.items():
        same = other.estimate.value / factor == pytest.approx(used[prompt_id], rel=1e-3)
        assert same == (prompt_id in mine)
    crossed = CrossedScorer(second.scorer, other_factors)
    asked = [prompts[votes[0].prompt_id], user_prompt("of neither half")]
    plain = second.scorer.logits(asked, ["abc", "abc"])
    expected = plain * torch.tensor([other_factors[votes[0].prompt_id], 1.0])
    torch.testing.assert_close(crossed.logits(asked, ["abc", "abc"]), expected)
    assert crossed.vote_model == second.vote_model


def test_what_was_scored_once_is_not_scored_again():
    """The gate, and bins and slices of calibration, read the same held-out texts."""
    read = []

    class Counted:
        vote_model = None

        def logits(self, prompts, texts):
            assert len(prompts) == len(texts)
            read.append(list(texts))
            return torch.arange(float(len(texts)))[None]

    crossed = CrossedScorer(Counted(), {PROMPTS[0].id: 2.0})
    first = crossed.logits(PROMPTS, TEXTS)
    assert crossed.logits(list(PROMPTS), list(TEXTS)) is first
    crossed.logits(PROMPTS[::-1], TEXTS)
    crossed.logits(PROMPTS, TEXTS[::-1])
    assert read == [TEXTS, TEXTS, TEXTS[::-1]]
    assert first.tolist() == [[0.0, 2.0, 2.0]]


@pytest.mark.parametrize("fitted", ["heads"], indirect=True)
def test_too_few_votes_leave_the_reward_as_it_was(fitted):
    votes, prompts, responses = planted_votes(40, n_raters=6, seed=1)
    other_scale = [dataclasses.replace(vote, n_levels=5) for vote in votes]
    for given in (votes[: FEWEST_VOTES - 1], other_scale, []):
        found, factors, finding = cooled_on_new_prompts(fitted, given, prompts, responses)
        assert found is fitted
        assert (factors, finding.status) == ({}, "not measured")
        assert f"needs {FEWEST_VOTES}" in finding.detail


def test_comparisons_set_no_temperature_of_an_objective_that_they_do_not_speak_of(fitted):
    votes, prompts, responses = planted_votes(FEWEST_VOTES // 4, n_raters=6, seed=3)
    votes = redrawn(fitted, votes, prompts, responses, temperature=3.0)
    assert cooled_on_new_prompts(fitted, votes, prompts, responses)[0] is not fitted
    for member in fitted.members:
        member.model.objectives = ("harmless",)
    after, factors, finding = cooled_on_new_prompts(fitted, votes, prompts, responses)
    assert (after is fitted, factors, finding.status) == (True, {}, "not measured")
    assert "temperature of harmless stays" in finding.detail
