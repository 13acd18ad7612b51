"""Training on any mixture of feedback: comparisons alone as before, every other kind, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from karat.errors import InputError
from karat.lm.load import load_lm
from karat.reward.data import check_objectives, feedback_data, split_votes, spoken_objectives
from karat.reward.model import HeadConfig
from karat.reward.train import RewardConfig, train_reward
from karat.reward.trunk import DecoderTrunk
from reward_worlds import gold, planted_feedback, planted_votes
from tiny_models import tiny_checkpoint

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "reward_comparisons.json").read_text())
SMALL = RewardConfig(
    heads=HeadConfig(n_heads=2), learning_rate=3e-3, head_learning_rate=1e-2, batch_responses=16, n_epochs=2, patience=2
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


def trunk(path):
    return DecoderTrunk(load_lm(path, for_training=True))


@pytest.mark.parametrize("length_term", [False, True])
def test_comparisons_alone_train_as_before_there_were_other_kinds(llama, length_term):
    votes, prompts, responses = planted_votes(n_prompts=6)
    config = dataclasses.replace(SMALL, heads=HeadConfig(n_heads=2, length_term=length_term), batch_responses=6)
    fit = train_reward(trunk(llama), votes, prompts, responses, config=config, seed=7)
    before = GOLDEN["length" if length_term else "plain"]
    assert fit.model.weight.detach()[:, :4].tolist() == [pytest.approx(row, abs=1e-5) for row in before["weight"]]
    assert fit.raters.competence.tolist() == pytest.approx(before["competence"], abs=1e-5)
    assert fit.raters.cutpoints.tolist() == pytest.approx(before["cutpoints"], abs=1e-5)
    assert {name: fit.metrics[name] for name in before["metrics"]} == pytest.approx(before["metrics"], abs=1e-5)


@pytest.fixture(scope="module")
def mixture(llama):
    said, prompts, responses = planted_feedback(n_prompts=14)
    config = dataclasses.replace(SMALL, n_epochs=5, patience=5, n_refits=1)
    return train_reward(trunk(llama), said, prompts, responses, config=config, seed=1), said, prompts, responses


def test_every_kind_together_trains_one_reward_with_an_output_for_each_objective(mixture):
    fit, said, *_ = mixture
    assert fit.model.objectives == ("preference", "bold")
    assert spoken_objectives(said) == fit.model.objectives
    kinds = {one.kind for one in fit.contributions if one.objective == "preference"}
    assert kinds == {"comparison", "ranking", "best_of", "rating", "label", "correction", "demonstration"}
    for objective in fit.model.objectives:
        shares = [one.information_frac for one in fit.contributions if one.objective == objective]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0
    assert sum(one.n_judgements for one in fit.contributions if one.objective == "preference") == len(
        {(one.judgement_id) for one in fit.held_out + tuple(said) if one.objective == "preference"}
        - {one.judgement_id for one in fit.held_out}
    )


def test_held_out_figures_of_each_kind_have_intervals_or_say_why_not(mixture):
    fit, *_ = mixture
    held = {(one.kind, one.objective) for one in fit.held_out}
    for one in fit.contributions:
        if (one.kind, one.objective) in held:
            assert one.nll.value is not None
            assert one.gain.n > 0
        else:
            assert one.nll.value is None
            assert "no judgement of this kind was held out" in one.gain.method


def test_the_mixture_ranks_texts_as_gold_does_and_its_second_output_as_boldness(mixture):
    fit, _, prompts, responses = mixture
    texts = [one for one in responses.values() if one.source == "planted"]
    encoded = fit.model.trunk.encode([prompts[one.prompt_id] for one in texts], [one.text for one in texts])
    with torch.no_grad():
        features = fit.model.features(encoded, token_budget=4096)
        scores = fit.model.every(features, torch.zeros(len(texts))).mean(0)
    for column, truth in ((0, gold), (1, lambda text: text.count("b"))):
        right = [
            float((scores[i, column] > scores[j, column]) == (truth(texts[i].text) > truth(texts[j].text)))
            for i in range(len(texts))
            for j in range(i)
            if texts[i].prompt_id == texts[j].prompt_id and truth(texts[i].text) != truth(texts[j].text)
        ]
        assert sum(right) / len(right) > 0.75


def test_a_virtual_rater_prefers_what_was_written_and_no_rater_is_invented(mixture):
    fit, said, *_ = mixture
    n_raters = len({one.annotator for one in said} - {one.annotator for one in fit.held_out})
    assert len(fit.annotators) == len(fit.raters.competence) == n_raters
    assert len(fit.params.competence) == n_raters + 3
    assert set(fit.params.cutpoints) == {"comparison/3", "comparison/5", "correction", "demonstration"}
    assert fit.vote_model.n_levels == 3


@pytest.mark.parametrize("kind", ["ranking", "rating", "correction"])
def test_each_kind_trains_alone(llama, kind):
    said, prompts, responses = planted_feedback(n_prompts=4)
    own = [one for one in said if one.kind == kind and one.objective == "preference"]
    config = dataclasses.replace(SMALL, n_epochs=1)
    fit = train_reward(trunk(llama), own, prompts, responses, config=config, seed=1)
    assert [one.kind for one in fit.contributions] == [kind]
    assert fit.vote_model.cutpoints == (0.0,)
    temperature = next(finding for finding in fit.findings if finding.name == "reward.temperature")
    assert (temperature.status == "not measured") == (kind != "ranking")
    if kind == "ranking":
        found = temperature.estimate
        assert 1 / 20 <= found.low <= found.value <= found.high <= 20 < 20 * found.high / found.low
        assert found.n == sum(one.kind == kind for one in fit.held_out)
        assert "profile likelihood" in found.method


def test_two_seeded_runs_on_a_mixture_are_equal_to_the_bit_and_a_killed_one_continues(llama, tmp_path):
    said, prompts, responses = planted_feedback(n_prompts=3)
    config = dataclasses.replace(SMALL, checkpoint_every=1, batch_responses=8, n_epochs=1)
    run = {"config": config, "seed": 2}
    whole = train_reward(trunk(llama), said, prompts, responses, **run, directory=tmp_path / "whole")

    class Kill:
        def log(self, step, _metrics):
            if step == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_reward(trunk(llama), said, prompts, responses, **run, directory=tmp_path / "cut", reporters=[Kill()])
    cut = train_reward(trunk(llama), said, prompts, responses, **run, directory=tmp_path / "cut")
    assert torch.equal(whole.model.weight, cut.model.weight)
    assert torch.equal(whole.model.further_weight, cut.model.further_weight)
    assert torch.equal(
        whole.params.labels["label/preference"].threshold, cut.params.labels["label/preference"].threshold
    )
    assert whole.contributions == cut.contributions


def test_the_cut_into_micro_batches_never_changes_a_step_on_a_mixture(llama):
    said, prompts, responses = planted_feedback(n_prompts=2)
    fits = []
    for budget in (1, 4096):
        config = dataclasses.replace(SMALL, token_budget=budget, n_refits=0, holdout_frac=0, batch_responses=64)
        wide = DecoderTrunk(load_lm(llama, dtype=torch.float64, for_training=True))
        fits.append(train_reward(wide, said, prompts, responses, config=config, seed=0))
    assert torch.allclose(fits[0].model.weight, fits[1].model.weight, atol=1e-6, rtol=0)
    assert torch.allclose(fits[0].model.further_weight, fits[1].model.further_weight, atol=1e-6, rtol=0)


def test_a_judgement_that_says_several_things_counts_once():
    said, prompts, responses = planted_feedback(n_prompts=4)
    data = feedback_data(said, prompts, responses)
    assert data.n_judgements == len({one.judgement_id for one in said})


def test_an_objective_that_only_held_out_raters_speak_about_is_trained_on():
    said, *_ = planted_feedback(n_prompts=3)
    train, held, _ = split_votes(said, holdout_frac=0.3)
    only = held[0].annotator
    said = [one for one in said if one.objective == "preference" or one.annotator == only]
    train, held, _ = split_votes(said, holdout_frac=0.3)
    assert {one.annotator for one in train if one.objective == "bold"} == {only}
    assert all(one.objective == "preference" for one in held)
    assert len(train) + len(held) == len(said)


def test_an_objective_without_data_is_named():
    said, *_ = planted_feedback(n_prompts=3)
    check_objectives(said, ["preference", "bold"])
    with pytest.raises(InputError, match=r"objective 'honest': found no feedback .* about preference, bold"):
        check_objectives(said, ["preference", "honest"])


def test_a_rating_between_two_steps_cannot_be_ordinal(llama):
    said, prompts, responses = planted_feedback(n_prompts=4)
    own = [dataclasses.replace(one, value=2.5) for one in said if one.kind == "rating"]
    config = dataclasses.replace(SMALL, ratings="ordinal")
    with pytest.raises(InputError, match=r"found 2\.5, between two steps"):
        train_reward(trunk(llama), own, prompts, responses, config=config, seed=0)
