"""The three posteriors: trained, scored as one, saved and loaded; draws that are the posterior's."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import torch

from karat.belief import lower_bound, mean_score, to_reference
from karat.errors import CheckpointError, ConfigError, InputError
from karat.lm.load import load_lm
from karat.progress import open_progress
from karat.records import user_prompt
from karat.reward.bayes import bayesian_fit
from karat.reward.fit import cooled, fit_reward, n_steps_done, n_steps_planned, optimised_scorer, save_fitted
from karat.reward.layer_file import load_last_layer
from karat.reward.model import HeadConfig, RewardModel, log_lengths
from karat.reward.objectives import ObjectivesConfig
from karat.reward.score import load_scorer
from karat.reward.settings import EnsembleConfig, LaplaceConfig
from karat.reward.train import RewardConfig
from karat.reward.trunk import DecoderTrunk
from reward_worlds import gold, planted_feedback, planted_votes
from tiny_models import tiny_checkpoint

CONFIG = RewardConfig(
    heads=HeadConfig(n_heads=2, length_term=True), learning_rate=3e-3, head_learning_rate=1e-2, n_refits=1,
    ensemble=EnsembleConfig(models=2), laplace=LaplaceConfig(n_draws=64),
)  # fmt: skip
PROMPTS = [user_prompt("q1"), user_prompt("q1"), user_prompt("another question")]
TEXTS = ["abc", "aaaa bb", "b"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    path = tiny_checkpoint("qwen3", tmp_path_factory.mktemp("qwen"))
    votes, prompts, responses = planted_votes(4, n_raters=6)

    def work(kind):
        config = dataclasses.replace(CONFIG, posterior=kind)
        with open_progress(stream=lines.setdefault(kind, io.StringIO())) as progress:
            return fit_reward(
                lambda: DecoderTrunk(load_lm(path, for_training=True)), votes, prompts, responses, config=config, seed=0,
                progress=progress,
            )  # fmt: skip

    lines: dict[str, io.StringIO] = {}
    done = {kind: work(kind) for kind in ("heads", "laplace", "ensemble")}
    return done | {"lines": {kind: one.getvalue().splitlines() for kind, one in lines.items()}}


def test_raters_drawn_along_with_a_last_layer_are_counted_where_somebody_watches(fitted):
    said = {kind: one for kind, one in fitted["lines"].items() if one}
    assert set(said) == {"laplace"}
    assert said["laplace"][0].startswith("last layer: started, ")
    assert said["laplace"][-1].startswith("last layer: done in ")


@pytest.mark.parametrize(("kind", "n_draws"), [("heads", 2), ("laplace", 64), ("ensemble", 4)])
def test_each_posterior_is_saved_and_loaded_as_one_scorer_of_joint_draws(fitted, tmp_path, kind, n_draws):
    one = fitted[kind]
    path = save_fitted(one, tmp_path / "rm", metadata={"run_id": "r1"})
    before, after = one.scorer(PROMPTS, TEXTS), load_scorer(path)(PROMPTS, TEXTS)
    assert before.draws.shape[:2] == (n_draws, 3)
    assert torch.allclose(before.draws, after.draws, atol=1e-4)
    assert torch.allclose(before.reference, after.reference, atol=1e-5)
    assert load_scorer(path).vote_model == one.vote_model
    assert load_scorer(path).scale == one.scorer.scale
    card = json.loads((path / "reward_card.json").read_text())
    assert card["posterior"]["kind"] == kind
    assert card["metadata"] == {"run_id": "r1"}
    with_references = one.scorer.with_references(PROMPTS[:2], TEXTS[:2])(PROMPTS, TEXTS)
    own = with_references.draws[:, :2, 0].mean(1)
    assert torch.allclose(with_references.reference[:, with_references.prompt_index[0], 0], own, atol=1e-4)


def test_draws_of_the_last_layer_have_its_mean_and_spread(fitted, tmp_path):
    one = fitted["laplace"]
    path = save_fitted(one, tmp_path / "rm", metadata={})
    posterior = load_last_layer(path)
    assert posterior.mean == pytest.approx(one.last_layers["preference"].mean)
    assert 0 < posterior.n_effective < len(posterior.mean)
    items = one.scorer.model.trunk.encode(PROMPTS, TEXTS)
    with torch.no_grad():
        phi = one.scorer.model.features(items, token_budget=4096).double().numpy()
    phi = np.concatenate([phi, np.log1p([[len(t)] for t in TEXTS])], axis=1)
    belief = one.scorer(PROMPTS, TEXTS)
    assert mean_score(belief).numpy() == pytest.approx(phi @ posterior.mean, abs=1e-4)
    delta = (belief.draws[:, 0, 0] - belief.draws[:, 1, 0]).double().numpy()
    # 32 independent draws: the standard deviation of their spread is 1/√64 of it; 4 of them either way
    ratio = delta.std() / np.sqrt(posterior.variance(phi[:1] - phi[1:2])[0])
    assert 0.5 < ratio < 1.5
    with pytest.raises(CheckpointError, match="posterior: laplace"):
        load_last_layer(tmp_path)


def last_layer_of(said, prompts, responses, path, **settings):
    config = dataclasses.replace(
        CONFIG, posterior="laplace", heads=HeadConfig(n_heads=2), learning_rate=1e-4,
        laplace=LaplaceConfig(n_draws=16, tastes=False), **settings,
    )  # fmt: skip
    trunk = lambda: DecoderTrunk(load_lm(path, for_training=True))  # noqa: E731
    return fit_reward(trunk, said, prompts, responses, config=config, seed=0)


def test_a_last_layer_takes_a_mixture_of_all_kinds_and_says_what_each_contributed(tmp_path):
    path = tiny_checkpoint("qwen3", tmp_path / "qwen")
    said, prompts, responses = planted_feedback()
    said = [one for one in said if one.objective == "preference"]
    found = last_layer_of(said, prompts, responses, path, beside=("ngrams",))
    kinds = {"comparison", "ranking", "best_of", "rating", "label", "correction", "demonstration"}
    (fit,) = found.members
    assert {one.kind for one in fit.contributions} == kinds
    assert sum(one.information_frac for one in fit.contributions) == pytest.approx(1)
    assert sum(one.n_judgements for one in fit.contributions) == len({one.judgement_id for one in fit.said})
    assert float(fit.params.competence[: len(fit.annotators)].mean()) == pytest.approx(1, abs=1e-5)
    texts = [one.text for one in responses.values()]
    own = [prompts[one.prompt_id] for one in responses.values()]
    scores = found.scorer.logits(own, texts).mean(0).numpy()
    assert np.corrcoef(scores, [gold(text) for text in texts])[0, 1] > 0.5
    # thresholds and offsets are for scores from which each head's own zero is taken off
    raw = found.scorer.logits(own, texts) * found.scorer.model.temperature - fit.zero[:, :1]
    read = {one for said in fit.said for one in said.response_ids}
    places = [i for i, one in enumerate(responses) if one in read]
    assert raw[:, places].mean(1).abs().max() < 1e-3


def test_a_last_layer_from_labels_alone_reads_what_stands_beside_the_trunk(tmp_path):
    path = tiny_checkpoint("qwen3", tmp_path / "qwen")
    said, prompts, responses = planted_feedback(30)
    labels = [one for one in said if one.kind == "label"]
    found = last_layer_of(labels, prompts, responses, path, beside=("ngrams", "place"))
    texts = ["aaaa", "bcd", "aa", "hgfe", "abab", "cccc"]
    scores = found.scorer.logits([prompts[next(iter(prompts))]] * 6, texts).mean(0).numpy()
    assert np.corrcoef(scores, [gold(text) for text in texts])[0, 1] > 0.5
    assert found.scorer.side is not None
    assert {one.kind for one in found.members[0].contributions} == {"label"}


@pytest.fixture(scope="module")
def objectives(tmp_path_factory):
    path = tiny_checkpoint("qwen3", tmp_path_factory.mktemp("qwen"))
    said, prompts, responses = planted_feedback()
    return said, prompts, responses, last_layer_of(said, prompts, responses, path, beside=("ngrams", "place"))


def test_a_last_layer_of_several_objectives_is_one_belief_of_joint_draws(objectives, tmp_path):
    _, prompts, responses, found = objectives
    assert found.scorer.model.objectives == ("preference", "bold")
    texts = [one.text for one in responses.values()]
    own = [prompts[one.prompt_id] for one in responses.values()]
    belief = found.scorer(own, texts)
    assert belief.draws.shape == (16, len(texts), 2)
    mean = belief.draws.mean(0).numpy()
    assert np.corrcoef(mean[:, 0], [gold(text) for text in texts])[0, 1] > 0.5
    assert np.corrcoef(mean[:, 1], [text.count("b") for text in texts])[0, 1] > 0.5
    objectives = ObjectivesConfig(weights={"preference": 1.0, "bold": 0.5}, floors={"bold": -1.0})
    path = save_fitted(found, tmp_path / "rm", metadata={}, objectives=objectives)
    loaded = load_scorer(path)
    plain = loaded.with_objectives(ObjectivesConfig())
    assert torch.allclose(plain(own, texts).draws, belief.draws, atol=1e-4)
    assert torch.allclose(plain(own, texts).reference, belief.reference, atol=1e-4)
    relative = to_reference(belief)
    by_hand = relative[..., 0] + 0.5 * relative[..., 1] - 10 * (-1 - relative[..., 1]).clamp_min(0)
    assert torch.allclose(lower_bound(loaded(own, texts)), torch.quantile(by_hand, 0.1, dim=0), atol=1e-3)
    # each objective has its own posterior beside the model, and says how much it was told
    assert load_last_layer(path, "bold").mean == pytest.approx(found.last_layers["bold"].mean)
    with pytest.raises(CheckpointError, match="found no last layer of 'kind'; expected one of preference, bold"):
        load_last_layer(path, "kind")
    names = {one.name for one in found.findings}
    assert {"reward.last_layer.preference", "reward.last_layer.bold", "reward.last_layer_objectives"} <= names
    card = json.loads((path / "reward_card.json").read_text())
    assert set(card["posterior"]["objectives"]) == {"preference", "bold"}
    assert {(one.kind, one.objective) for one in found.members[0].contributions} >= {
        ("rating", "bold"),
        ("label", "preference"),
    }


def test_each_objective_has_the_draws_that_its_own_judgements_alone_would_give(objectives):
    """The same features under the judgements of one objective: nothing of the others is in its last layer."""
    _, prompts, responses, found = objectives
    (fit,) = found.members
    about = [one for one in fit.said if one.objective == "bold"]
    alone = dataclasses.replace(
        fit, said=tuple(about), held_out=(), model=one_output(fit.model), metrics={}, findings=[]
    )
    config = dataclasses.replace(CONFIG, posterior="laplace", laplace=LaplaceConfig(n_draws=16, tastes=False))
    layer = bayesian_fit(alone, prompts, responses, config=config, seed=0)[1]["bold"]
    both = bayesian_fit(
        dataclasses.replace(fit, said=tuple(fit.said), held_out=()), prompts, responses, config=config, seed=0
    )[1]["bold"]
    assert both.mean == pytest.approx(layer.mean, abs=1e-6)
    assert both.covariance == pytest.approx(layer.covariance, abs=1e-6)


def one_output(model):
    """The same trunk under the head of the second objective, without a length term."""
    config = dataclasses.replace(model.config, length_term=False, prior_scale=0.0)
    only = RewardModel(model.trunk, config, seed=0, objectives=("bold",))
    only.weight.data.copy_(model.further_weight[0])
    return only


def test_the_temperature_of_new_prompts_is_the_first_objectives_alone(objectives):
    found = objectives[-1]
    reference = found.scorer.reference.clone()
    warmer = cooled(found, 2.0)
    try:
        assert torch.allclose(warmer.scorer.reference[:, 0], reference[:, 0] / 2)
        assert torch.equal(warmer.scorer.reference[:, 1], reference[:, 1])
        assert warmer.last_layers["preference"].mean == pytest.approx(found.last_layers["preference"].mean / 2)
        assert warmer.last_layers["bold"].mean == pytest.approx(found.last_layers["bold"].mean)
    finally:
        cooled(warmer, 0.5)


def test_an_objective_of_one_response_is_named_before_training(tmp_path):
    said, prompts, responses = planted_feedback()
    once = [one for one in said if one.objective == "bold"][:1]
    with pytest.raises(InputError, match="objective 'bold': found one response that anything is said about"):
        last_layer_of([one for one in said if one.objective != "bold"] + once, prompts, responses, tmp_path)


def test_what_held_out_raters_said_of_chosen_questions_is_in_neither_part(tmp_path):
    path = tiny_checkpoint("qwen3", tmp_path / "qwen")
    votes, prompts, responses = planted_votes(4, n_raters=6)
    votes = [dataclasses.replace(vote, strategy=("random", "bald")[i % 2]) for i, vote in enumerate(votes)]
    (fit,) = last_layer_of(votes, prompts, responses, path).members
    held = {vote.annotator for vote in fit.held_out}
    assert held
    assert not held & {vote.annotator for vote in fit.said}
    assert len(fit.said) + len(fit.held_out) < len(votes)


def test_members_of_an_ensemble_differ_and_are_scored_side_by_side(fitted):
    one = fitted["ensemble"]
    first, second = (member(PROMPTS, TEXTS).draws for member in one.scorer.members)
    assert not torch.allclose(first, second, atol=1e-3)
    assert torch.equal(one.scorer(PROMPTS, TEXTS).draws, torch.cat([first, second]))
    assert one.metrics["n_models"] == 2
    assert any(finding.name == "reward.ensemble" for finding in one.findings)


class Kept:
    """Keeps what it hears; may be made to fail, as a kill would end a run."""

    def __init__(self, fails_at=None):
        self.rows, self.fails_at = [], fails_at

    def log(self, step, metrics):
        self.rows.append((step, metrics["loss"]))
        if step == self.fails_at:
            raise KeyboardInterrupt


@pytest.mark.long
def test_an_ensemble_that_was_killed_in_its_second_model_ends_in_the_same_bits(tmp_path):
    path = tiny_checkpoint("qwen3", tmp_path / "qwen")
    votes, prompts, responses = planted_votes(4, n_raters=6)
    config = dataclasses.replace(CONFIG, posterior="ensemble", checkpoint_every=1, n_epochs=3, patience=3)

    def work(reporter, directory):
        return fit_reward(
            lambda: DecoderTrunk(load_lm(path, for_training=True)), votes, prompts, responses, config=config, seed=0,
            directory=tmp_path / directory, reporters=[reporter],
        )  # fmt: skip

    whole, broken, after = Kept(), Kept(fails_at=5), Kept()
    straight = work(whole, "a")
    planned = n_steps_planned(votes, prompts, responses, config=config, seed=0)
    first = int(straight.members[0].metrics["n_steps"])
    # the steps of the second model count on from the first one's
    assert [step for step, _ in whole.rows] == list(range(1, len(whole.rows) + 1))
    assert first < 5 < len(whole.rows) <= planned
    with pytest.raises(KeyboardInterrupt):
        work(broken, "b")
    done = n_steps_done(config, tmp_path / "b")
    assert done == 4  # the fifth step was told, but its checkpoint was not written
    resumed = work(after, "b")
    assert broken.rows[:done] + after.rows == whole.rows
    for one, other in zip(straight.members, resumed.members, strict=True):
        assert torch.equal(one.model.weight, other.model.weight)
    assert torch.equal(straight.scorer(PROMPTS, TEXTS).draws, resumed.scorer(PROMPTS, TEXTS).draws)


def test_what_the_optimiser_gets_of_an_ensemble_is_saved_with_it(fitted, tmp_path):
    one = fitted["ensemble"]
    objectives = ObjectivesConfig(weights={"preference": 2.0})
    scorer = optimised_scorer(one, objectives).less_length(0.25)
    path = save_fitted(one, tmp_path / "rm", metadata={}, objectives=objectives, length_removed=0.25)
    loaded = load_scorer(path)
    assert (loaded.objectives, loaded.length_removed) == (objectives, 0.25)
    assert torch.allclose(loaded(PROMPTS, TEXTS).draws, scorer(PROMPTS, TEXTS).draws, atol=1e-4)
    by_hand = 2 * (one.scorer.every(PROMPTS, TEXTS)[..., 0] - 0.25 * log_lengths(TEXTS) - one.scorer.reference[:, :1])
    assert torch.allclose(loaded(PROMPTS, TEXTS).draws[..., 0], by_hand, atol=1e-4)
    with pytest.raises(ConfigError, match="objectives: found 'kind', for which the reward has no output"):
        optimised_scorer(one, ObjectivesConfig(weights={"kind": 1.0}))


def test_what_cannot_be_is_one_clear_line():
    with pytest.raises(ConfigError, match="models=1; expected at least 2"):
        EnsembleConfig(models=1)
    with pytest.raises(ConfigError, match="n_draws=7"):
        LaplaceConfig(n_draws=7)
    with pytest.raises(ConfigError, match=r"prior_precision=-1\.0"):
        LaplaceConfig(prior_precision=-1.0)
