import dataclasses
import math

import numpy as np
import pytest
import torch

from karat.choice import RaterParams, VoteBatch
from karat.errors import ConfigError, InputError
from karat.feedback_columns import Channel, FeedbackBatch, FeedbackParams
from karat.lm.load import load_lm
from karat.lm.loop import JsonlReporter
from karat.records import user_prompt
from karat.reward.data import feedback_data, plan_epoch, split_votes, topic_folds, vote_data
from karat.reward.model import HeadConfig, RewardModel, bootstrap_weights, log_lengths
from karat.reward.raters import RaterPriors, fit_raters, prior_raters
from karat.reward.train import RewardConfig, feedback_loss, train_reward
from karat.reward.trunk import DecoderTrunk, micro_batches
from reference.reward_loops import ensemble_loss
from reward_worlds import gold, planted_votes
from tiny_models import tiny_checkpoint

SMALL = RewardConfig(heads=HeadConfig(n_heads=2), learning_rate=3e-3, head_learning_rate=1e-2, batch_responses=12)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("llama"))


def comparison_loss(scores, votes, raters, weights):
    """The loss of comparisons alone."""
    count = torch.arange(len(votes))
    channel = Channel("c", "comparison", 0, votes, votes.annotator, torch.ones(len(votes)).to(scores), count)
    params = FeedbackParams(raters.competence, raters.side_bias, raters.lapse, {"c": raters.cutpoints})
    return feedback_loss(
        scores.unsqueeze(-1), FeedbackBatch((channel,)), params, weights, n_judgements=float(len(votes))
    )


def trunk(path, **options):
    return DecoderTrunk(load_lm(path, for_training=True), **options)


def test_training_recovers_the_planted_preference_on_prompts_never_seen(llama):
    votes, prompts, responses = planted_votes(n_prompts=16)
    config = dataclasses.replace(SMALL, n_epochs=4, patience=4, batch_responses=16)
    fit = train_reward(trunk(llama), votes, prompts, responses, config=config, seed=1)
    _, new_prompts, new_responses = planted_votes(n_prompts=10, seed=99)
    items = list(new_responses.values())
    encoded = fit.model.trunk.encode([new_prompts[r.prompt_id] for r in items], [r.text for r in items])
    with torch.no_grad():
        scores = fit.model.features(encoded, token_budget=4096) @ fit.model.mean_weight()
    pairs = [
        (i, j)
        for i in range(len(items))
        for j in range(i)
        if items[i].prompt_id == items[j].prompt_id and gold(items[i].text) != gold(items[j].text)
    ]
    right = sum((scores[i] > scores[j]).item() == (gold(items[i].text) > gold(items[j].text)) for i, j in pairs)
    assert right / len(pairs) > 0.8
    assert fit.metrics["held_out_nll"] < math.log(3)


def test_two_seeded_runs_are_equal_to_the_bit_and_another_seed_is_not(llama):
    votes, prompts, responses = planted_votes(n_prompts=4)
    weights = [
        train_reward(trunk(llama), votes, prompts, responses, config=SMALL, seed=seed).model.weight.detach()
        for seed in (3, 3, 4)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_cut_into_micro_batches_never_changes_the_step(llama):
    votes, prompts, responses = planted_votes(n_prompts=6)
    fits = []
    for budget in (1, 4096):
        config = dataclasses.replace(SMALL, token_budget=budget, n_refits=0, holdout_frac=0, batch_responses=64)
        path_trunk = DecoderTrunk(load_lm(llama, dtype=torch.float64, for_training=True))
        fits.append(train_reward(path_trunk, votes, prompts, responses, config=config, seed=0))
    assert torch.allclose(fits[0].model.weight, fits[1].model.weight, atol=1e-6, rtol=0)
    first, second = (next(fit.model.trunk_module.parameters()) for fit in fits)
    assert torch.allclose(first, second, atol=1e-6, rtol=0)


def test_trees_and_padded_rows_give_the_same_features(llama):
    prompts = [user_prompt("what?")] * 3 + [user_prompt("a longer question")]
    texts = ["yes", "no, never", "a", "perhaps"]
    features = []
    for use_trees in (True, False):
        one = DecoderTrunk(load_lm(llama, dtype=torch.float64), use_trees=use_trees)
        features.append(one.features(one.encode(prompts, texts), token_budget=20))
    assert torch.allclose(features[0], features[1], atol=1e-5)


def test_a_run_that_was_killed_continues_to_the_same_bits(llama, tmp_path):
    votes, prompts, responses = planted_votes(n_prompts=6)
    config = dataclasses.replace(SMALL, n_epochs=2, patience=2, checkpoint_every=1)
    whole = train_reward(trunk(llama), votes, prompts, responses, config=config, seed=5, directory=tmp_path / "whole")

    class Kill:
        def log(self, step, _metrics):
            if step == 3:
                raise KeyboardInterrupt

    run = {"config": config, "seed": 5, "directory": tmp_path / "cut"}
    with pytest.raises(KeyboardInterrupt):
        train_reward(trunk(llama), votes, prompts, responses, **run, reporters=[Kill()])
    cut = train_reward(
        trunk(llama), votes, prompts, responses, **run, reporters=[JsonlReporter(tmp_path / "m.jsonl", resumed_step=2)]
    )
    assert torch.equal(whole.model.weight, cut.model.weight)
    assert torch.equal(whole.raters.competence, cut.raters.competence)
    assert whole.metrics == cut.metrics
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == whole.metrics["n_steps"] - 2


def test_bradley_terry_without_raters_is_the_plain_pairwise_loss():
    scores = torch.tensor([[0.3, -0.2, 1.0, 4.0]])
    columns = torch.tensor([0, 2]), torch.tensor([1, 3])
    votes = VoteBatch(*columns, torch.tensor([1, 0]), torch.zeros(2), torch.tensor([0, 0]), 2)
    priors = RaterPriors(modelled=False)
    loss = comparison_loss(scores, votes, prior_raters(1, 2, priors), torch.ones(1, 1))
    expected = -(torch.nn.functional.logsigmoid(torch.tensor([0.5, 3.0]))).mean()
    assert torch.allclose(loss, expected, atol=1e-7)


def test_plain_settings_take_the_steps_of_pairwise_training_in_the_order_given(llama):
    votes, prompts, responses = planted_votes(6, 2, 3, 1, n_levels=2)
    config = RewardConfig(
        heads=HeadConfig(n_heads=1, prior_scale=0, init_scale=1), raters=RaterPriors(modelled=False), bootstrap="none",
        n_refits=0, holdout_frac=0, shuffle=False, warmup_frac=0, batch_responses=4, weight_decay=0,
    )  # fmt: skip
    untrained = RewardModel(trunk(llama), config.heads, seed=0)
    first = votes[:2]
    chosen = [vote.a if vote.level == 1 else vote.b for vote in first]
    rejected = [vote.b if vote.level == 1 else vote.a for vote in first]
    encoded = untrained.trunk.encode(
        [prompts[vote.prompt_id] for vote in first] * 2, [responses[i].text for i in chosen + rejected]
    )
    scores = (untrained.features(encoded, token_budget=4096) @ untrained.weight[0]).detach()
    losses = []

    class Losses:
        def log(self, _step, metrics):
            losses.append(metrics["loss"])

    fit = train_reward(trunk(llama), votes, prompts, responses, config=config, seed=0, reporters=[Losses()])
    expected = -torch.nn.functional.logsigmoid(scores[:2] - scores[2:]).mean()
    assert losses[0] == pytest.approx(float(expected), abs=1e-5)
    assert len(losses) == 3
    assert fit.vote_model.cutpoints == (0.0,)
    assert float(fit.model.temperature) == 1.0


def test_the_loss_is_the_weighted_mean_of_the_reference_loop():
    rng = np.random.default_rng(0)
    scores, weights = rng.normal(size=(3, 6)), rng.exponential(size=(3, 4))
    raters = [(rng.normal(1, 0.5), rng.normal(0, 0.5), rng.beta(1, 19)) for _ in range(4)]
    cutpoints = [-1.2, -0.3, 0.3, 1.2]
    pairs = [rng.choice(6, 2, replace=False).tolist() for _ in range(30)]
    votes = [(a, b, int(rng.integers(5)), int(rng.integers(-1, 2)), int(rng.integers(4))) for a, b in pairs]
    a, b, level, side, rater = (torch.tensor(column) for column in zip(*votes, strict=True))
    params = RaterParams(
        *(torch.tensor(column) for column in zip(*raters, strict=True)), torch.tensor(cutpoints).double()
    )
    found = comparison_loss(
        torch.tensor(scores), VoteBatch(a, b, level, side.double(), rater, 5), params, torch.tensor(weights)
    )
    expected = ensemble_loss(scores.tolist(), votes, (raters, cutpoints), weights.tolist())
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_the_loss_has_the_gradient_of_finite_differences():
    scores = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    a, b = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 4, 0])
    votes = VoteBatch(
        a, b, torch.tensor([0, 1, 2, 2]), torch.tensor([1.0, -1, 0, 1]).double(), torch.tensor([0, 1, 1, 0]), 3
    )
    raters = prior_raters(2, 3, RaterPriors())
    raters = type(raters)(*(getattr(raters, f).double() for f in ("competence", "side_bias", "lapse", "cutpoints")))
    weights = torch.tensor([[0.5, 1.5], [2.0, 0.1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: comparison_loss(s, votes, raters, weights), (scores,))


def test_rater_fit_recovers_competence_and_finds_the_contrarian():
    truth = {f"rater{i}": (-1.0 if i == 0 else 0.2 if i == 1 else 1.2) for i in range(6)}
    votes, prompts, responses = planted_votes(60, 4, 6, 6, competence=truth)
    data = vote_data(votes, prompts, responses)
    scores = torch.tensor([gold(text) for text in data.texts])
    start = prior_raters(6, 3, RaterPriors())
    fitted = fit_raters(scores, data.columns, start, RaterPriors())
    found = {name: float(fitted.competence[i]) for i, name in enumerate(data.annotators)}
    assert found["rater0"] < -0.5
    assert abs(found["rater1"] - 0.2) < 0.2
    assert all(0.8 < found[f"rater{i}"] < 1.6 for i in range(2, 6))
    assert abs(float(fitted.cutpoints[1]) - 0.5) < 0.15


def test_a_rater_without_votes_stays_at_the_prior():
    votes, prompts, responses = planted_votes(4)
    data = vote_data(votes, prompts, responses, annotators=[*(f"rater{i}" for i in range(10)), "silent"])
    fitted = fit_raters(torch.zeros(len(data.texts)), data.columns, prior_raters(11, 3, RaterPriors()), RaterPriors())
    assert float(fitted.competence[10]) == pytest.approx(1.0, abs=1e-6)
    assert float(fitted.side_bias[10]) == pytest.approx(0.0, abs=1e-6)


def test_every_vote_occurs_once_an_epoch_even_in_a_prompt_larger_than_a_minibatch():
    votes, prompts, responses = planted_votes(3, 9, 5, 2)
    data = feedback_data(votes, prompts, responses)
    for limit in (4, 9, 40):
        plan = plan_epoch(data, batch_responses=limit, rng=None)
        positions = torch.cat([minibatch.statements for minibatch in plan])
        assert sorted(positions.tolist()) == list(range(len(votes)))
        for minibatch in plan:
            texts = [t for group in minibatch.groups for t in group]
            assert len(texts) == len(set(texts)) <= limit
            assert {i for position in minibatch.statements.tolist() for i in data.texts_of[position]} <= set(texts)


def test_micro_batches_keep_groups_whole():
    assert micro_batches([(0, 1), (2,), (3, 4)], lambda _i: 10, token_budget=30) == [[0, 1, 2], [3, 4]]
    assert micro_batches([(0, 1)], lambda _i: 10, token_budget=5) == [[0, 1]]


def test_held_out_raters_and_training_raters_are_disjoint_and_chosen_questions_are_not_held_out():
    votes, _, _ = planted_votes(4)
    votes = [dataclasses.replace(v, strategy="bald") if i % 2 else v for i, v in enumerate(votes)]
    train, held, how = split_votes(votes, holdout_frac=0.3)
    assert {v.annotator for v in train}.isdisjoint({v.annotator for v in held})
    assert held
    assert all(vote.strategy == "random" for vote in held)
    assert how == "3 of 10 raters held out by hash"


def test_topic_folds_cover_every_topic_once_whatever_the_order():
    folds = topic_folds(["x", "y", "z", "x", "w"], 2)
    assert sorted(topic for fold in folds for topic in fold) == ["w", "x", "y", "z"]
    assert folds == topic_folds(["w", "z", "y", "x"], 2)
    with pytest.raises(InputError, match="found 1 topics for 4 folds"):
        topic_folds(["x"], 4)


def test_bootstrap_weights_depend_on_head_and_name_only_and_average_to_one():
    names = [f"r{i}" for i in range(50)]
    weights = bootstrap_weights(3, names, kind="exponential", seed=0)
    assert torch.allclose(weights.mean(1), torch.ones(3), atol=1e-5)
    assert not torch.allclose(weights[0], weights[1])
    again = bootstrap_weights(3, names[::-1], kind="exponential", seed=0)
    assert torch.allclose(again.flip(1), weights)
    assert torch.equal(bootstrap_weights(2, names, kind="none", seed=0), torch.ones(2, 50))
    with pytest.raises(ConfigError, match="Poisson weights left a head"):
        bootstrap_weights(20, names[:1], kind="poisson", seed=0)


def test_the_length_term_is_reported_and_removable(llama):
    model = RewardModel(trunk(llama), HeadConfig(n_heads=2, length_term=True), seed=0)
    model.length_coef.data.fill_(0.7)
    features, texts = torch.randn(2, 32, generator=torch.Generator().manual_seed(1)), ["ab", "abcdef"]
    difference = model(features, log_lengths(texts)) - model(features, log_lengths(texts), with_length=False)
    expected = 0.7 * torch.tensor([math.log(3), math.log(7)])
    assert torch.allclose(difference, expected.expand(2, 2), atol=1e-6)


@pytest.mark.parametrize("change", ["none", "tied", "prompt", "response", "level"])
def test_votes_that_cannot_be_used_are_one_clear_line(llama, change):
    votes, prompts, responses = planted_votes(2)
    if change == "none":
        votes = []
    elif change == "tied":
        votes = [dataclasses.replace(vote, level=1) for vote in votes]
    elif change == "prompt":
        prompts = {}
    elif change == "response":
        responses = {}
    else:
        votes = [*votes, dataclasses.replace(votes[0], level=5)]
    expected = {
        "none": "found no votes",
        "tied": "votes are ties",
        "prompt": "prompt .* is unknown",
        "response": "response .* is unknown",
        "level": "found level 5; expected 0 … 2",
    }[change]
    with pytest.raises(InputError, match=expected) as caught:
        train_reward(trunk(llama), votes, prompts, responses, config=SMALL, seed=0)
    assert "\n" not in str(caught.value)


def test_one_rater_has_competence_one_and_the_findings_say_so(llama):
    votes, prompts, responses = planted_votes(6, n_raters=1, votes_per_pair=1)
    fit = train_reward(trunk(llama), votes, prompts, responses, config=SMALL, seed=0)
    assert float(fit.raters.competence[0]) == 1.0
    by_name = {finding.name: finding for finding in fit.findings}
    assert by_name["reward.one_rater"].status == "warn"
    assert "one rater only" in by_name["reward.held_out"].detail
    assert fit.held_out


def test_contradictory_settings_are_refused(llama):
    with pytest.raises(ConfigError, match="holdout_frac=1"):
        RewardConfig(holdout_frac=1)
    with pytest.raises(ConfigError, match="n_epochs=0"):
        RewardConfig(n_epochs=0)
    votes, prompts, responses = planted_votes(2)
    with pytest.raises(ConfigError, match="with a decoder; expected 0"):
        train_reward(trunk(llama), votes, prompts, responses, config=RewardConfig(dropout=0.1), seed=0)
    with pytest.raises(ConfigError, match="n_heads=0"):
        HeadConfig(n_heads=0)
    with pytest.raises(ConfigError, match=r"raters\.competence_sd: found 0; expected a number > 0"):
        RaterPriors(competence_sd=0)


def test_one_epoch_ends_at_a_learning_rate_near_zero(llama):
    votes, prompts, responses = planted_votes(12)
    rates: list[float] = []

    class Rates:
        def log(self, _, metrics):
            if "learning_rate" in metrics:
                rates.append(metrics["learning_rate"])

    config = dataclasses.replace(SMALL, warmup_frac=0.0)
    train_reward(trunk(llama), votes, prompts, responses, config=config, seed=0, reporters=[Rates()])
    assert config.n_epochs == RewardConfig().n_epochs == 1
    n = len(rates)
    assert n > 2
    assert rates == pytest.approx([config.learning_rate * (n - index) / n for index in range(n)])
