"""The whole recipe on a toy with a known reward: it learns, repeats to the bit, and resumes to the bit."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from karat.errors import ConfigError, InputError, InvariantError, LedgerError
from karat.lm.adapters import add_lora
from karat.lm.load import load_lm
from karat.policy import ppo
from karat.policy.actor import build_actor
from karat.policy.advantages import gae_advantages
from karat.policy.beside import Beside
from karat.policy.ppo import prompt_batch, rollout_advantages, rollout_rewards, start_at_mean, train_ppo
from karat.policy.rollout import collect_rollout
from karat.policy.settings import PPOConfig, RewardSettings, RolloutSettings, UpdateSettings, ValueSettings
from karat.policy.shaping import token_rewards
from karat.policy.watcher import Watcher, WatchRules
from karat.tensors import masked_mean, masked_variance
from policy_toys import PROMPTS, share_of_w3, toy_lm
from reference import ppo_loops

DOCS = Path(__file__).parents[2] / "docs" / "ppo.md"


def small(n_iterations=6, *, reward=None, value=None, checkpoint_every=0, evaluate_every=100, **update):
    settings = {"n_epochs": 2, "n_minibatches": 2, "learning_rate": 3e-3, "token_budget": 200} | update
    return PPOConfig(
        n_iterations=n_iterations,
        checkpoint_every=checkpoint_every,
        evaluate_every=evaluate_every,
        rollout=RolloutSettings(n_prompts=4, n_samples=4, max_new_tokens=6),
        reward=reward or RewardSettings(kl_controller="adaptive", kl_coef=0.05, kl_target=0.2, kl_horizon=100),
        update=UpdateSettings(**settings),
        value=value or ValueSettings(),
    )


class Rows:
    """A reporter that keeps what it was given."""

    def __init__(self):
        self.rows = []

    def log(self, step, metrics):
        self.rows.append((step, dict(metrics)))


def weights(lm):
    return {name: p.detach().clone() for name, p in lm.model.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def permutation_p(a, b, rng, n_draws=4000):
    """One-sided p-value of mean(b) > mean(a) by shuffling the labels."""
    pooled, observed = np.concatenate([a, b]), b.mean() - a.mean()
    hits = 0
    for _ in range(n_draws):
        rng.shuffle(pooled)
        hits += pooled[len(a) :].mean() - pooled[: len(a)].mean() >= observed
    return (hits + 1) / (n_draws + 1)


def test_learns_a_known_reward_and_stays_within_reach_of_the_reference():
    config = PPOConfig(
        n_iterations=12,
        checkpoint_every=0,
        rollout=RolloutSettings(n_prompts=16, n_samples=4, max_new_tokens=6),
        reward=RewardSettings(kl_coef=0.02),
        update=UpdateSettings(n_epochs=2, n_minibatches=2, learning_rate=3e-3),
    )
    scores = []

    def score_fn(prompts, texts):
        scores.append(share_of_w3(prompts, texts))
        return scores[-1]

    result = train_ppo(toy_lm(), PROMPTS, score_fn, config, seed=0)
    first, last = np.array(scores[0]), np.array(scores[-1])
    assert last.mean() > first.mean() + 0.2
    assert permutation_p(first, last, np.random.default_rng(0)) < 0.001
    assert result.n_skipped == 0
    assert result.n_iterations == 12
    assert 0.5 < result.last_metrics["kl/k1_per_sequence"] < 20


def test_two_seeded_runs_are_equal_to_the_bit_and_another_seed_is_not():
    policies, rows = [], []
    for seed in (0, 0, 1):
        lm, reporter = toy_lm(), Rows()
        train_ppo(lm, PROMPTS, share_of_w3, small(3), seed=seed, reporters=[reporter])
        policies.append(weights(lm))
        rows.append([{k: v for k, v in m.items() if not k.startswith("seconds/")} for _, m in reporter.rows])
    assert equal(policies[0], policies[1])
    assert rows[0] == rows[1]
    assert not equal(policies[0], policies[2])


@pytest.mark.parametrize("critic", ["shared", "separate"])
def test_a_killed_run_resumes_to_the_bit(tmp_path, critic):
    config = small(6, value=ValueSettings(critic=critic, warmup_iterations=1), checkpoint_every=3)
    whole, killed, resumed = toy_lm(), toy_lm(), toy_lm()
    straight = train_ppo(whole, PROMPTS, share_of_w3, config, seed=5)
    calls = []

    def dies(prompts, texts):
        calls.append(1)
        if len(calls) == 5:  # in the fifth iteration: the fourth is lost as well
            raise KeyboardInterrupt
        return share_of_w3(prompts, texts)

    with pytest.raises(KeyboardInterrupt):
        train_ppo(killed, PROMPTS, dies, config, seed=5, directory=tmp_path)
    reporter = Rows()
    continued = train_ppo(resumed, PROMPTS, share_of_w3, config, seed=5, directory=tmp_path, reporters=[reporter])
    assert [step for step, _ in reporter.rows] == [4, 5, 6]
    assert equal(weights(whole), weights(resumed))
    assert torch.equal(straight.actor.value_head.weight, continued.actor.value_head.weight)
    for key in ("kl/coef", "score/mean", "kl/k1_per_sequence", "value/loss", "policy/approx_kl"):
        assert straight.last_metrics[key] == continued.last_metrics[key]
    again = train_ppo(toy_lm(), PROMPTS, share_of_w3, config, seed=5, directory=tmp_path)
    assert again.n_iterations == 6
    assert again.last_metrics == {}  # nothing was left to do


def test_a_checkpoint_of_other_inputs_is_refused(tmp_path):
    config = small(1, checkpoint_every=1)
    train_ppo(toy_lm(), PROMPTS, share_of_w3, config, seed=5, directory=tmp_path)
    changed = toy_lm()
    with torch.no_grad():
        next(changed.model.parameters()).add_(1e-3)
    for lm, prompts, seed in ((toy_lm(), PROMPTS, 6), (toy_lm(), PROMPTS[1:], 5), (changed, PROMPTS, 5)):
        with pytest.raises(LedgerError, match="another configuration"):
            train_ppo(lm, prompts, share_of_w3, config, seed=seed, directory=tmp_path)


def test_a_run_goes_on_only_under_the_rules_it_began_with(tmp_path):
    config = small(1, checkpoint_every=1)
    options = {"seed": 5, "directory": tmp_path}
    train_ppo(toy_lm(), PROMPTS, share_of_w3, config, watcher=Watcher(WatchRules(kl_budget=20.0)), **options)
    with pytest.raises(LedgerError, match=r"watch\.kl_budget: 20\.0 there, 5\.0 here"):
        train_ppo(toy_lm(), PROMPTS, share_of_w3, config, watcher=Watcher(WatchRules(kl_budget=5.0)), **options)


def test_the_watcher_stops_the_run_and_keeps_the_best(tmp_path):
    bounds = iter([0.1, 0.3, 0.2, 0.25])
    watcher = Watcher(WatchRules(patience=2), tmp_path)
    config = small(6, evaluate_every=1)
    reporter = Rows()
    result = train_ppo(
        toy_lm(),
        PROMPTS,
        share_of_w3,
        config,
        seed=0,
        reporters=[reporter],
        watcher=watcher,
        evaluate=lambda _lm, _step: {"validation/lower_bound": next(bounds)},
    )
    assert result.n_iterations == 3
    assert "has not improved in 2 comparisons" in result.stop_reason
    assert result.best_step == 1
    assert [step for step, _ in reporter.rows] == [0, 1, 2, 3]
    best = load_lm(result.best_path)
    assert json.loads((result.best_path / "config.json").read_text())["karat"]["recipe"] == "ppo"
    assert not equal(weights(best), weights(toy_lm()))


def test_the_kl_budget_stops_the_run():
    result = train_ppo(toy_lm(), PROMPTS, share_of_w3, small(6), seed=0, watcher=Watcher(WatchRules(kl_budget=1e-4)))
    assert result.n_iterations < 6
    assert result.stop_reason.startswith("kl_budget: KL")


def test_invariants_hold_and_are_reported():
    reporter = Rows()
    train_ppo(toy_lm(), PROMPTS, share_of_w3, small(3), seed=2, reporters=[reporter])
    first = reporter.rows[0][1]
    assert first["kl/k1_per_sequence"] == pytest.approx(0, abs=1e-4)
    assert first["kl/k3_per_sequence"] == pytest.approx(0, abs=1e-4)
    for _, metrics in reporter.rows:
        assert metrics["policy/ratio_error_first"] <= 1e-4
        assert metrics["policy/sampler_gap_max"] < 1e-4
        assert metrics["update/n_optimiser_steps"] == 4
        assert metrics["update/finite_grad_frac"] == 1
    rates = [m["update/learning_rate"] for _, m in reporter.rows]
    assert rates == pytest.approx([3e-3, 2e-3, 1e-3])  # linear to 0, constant within an iteration


def test_an_optimiser_step_that_is_lost_is_noticed(monkeypatch):
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure=None: None)  # noqa: ARG005
    with pytest.raises(InvariantError, match="made 0 steps; expected 4"):
        train_ppo(toy_lm(), PROMPTS, share_of_w3, small(1), seed=0)


def test_whitening_and_bootstrapping_where_asked(monkeypatch):
    captured = []
    real = ppo.update_on_rollout

    def spy(actor, state, rollout, targets, config, **rest):
        captured.append((rollout, targets, config))
        return real(actor, state, rollout, targets, config, **rest)

    monkeypatch.setattr(ppo, "update_on_rollout", spy)
    reward = RewardSettings(kl_coef=0.1, bootstrap_truncated=True)
    train_ppo(toy_lm(), PROMPTS, share_of_w3, small(2, reward=reward), seed=0)
    rollout, targets, _ = captured[1]
    mask = rollout.response_mask
    assert float(masked_mean(targets.advantages, mask)) == pytest.approx(0, abs=1e-6)
    assert float(masked_variance(targets.advantages, mask)) == pytest.approx(1, abs=1e-3)
    rewards = token_rewards(rollout.scores, rollout.logprobs - rollout.ref_logprobs, mask, kl_coef=0.1)
    after = rollout.last_values * ~rollout.stopped_mask
    options = {"gamma": 1.0, "gae_lambda": 0.95}
    plain = gae_advantages(rewards, rollout.values, mask, bootstrap_values=after, **options)
    torch.testing.assert_close(targets.returns, plain.returns)
    ended = gae_advantages(rewards, rollout.values, mask, **options)
    assert not torch.allclose(plain.returns, ended.returns)
    whitening = small(1, reward=RewardSettings(whiten_rewards=True))
    scaled = rollout_advantages(rollout, rollout_rewards(rollout, rollout.scores, whitening, kl_coef=0.1), whitening)
    variance = masked_variance(rewards, mask)
    white = (rewards - masked_mean(rewards, mask)) / variance.sqrt() + masked_mean(rewards, mask)
    expected = gae_advantages(white, rollout.values, mask, **options)
    torch.testing.assert_close(scaled.returns, expected.returns, atol=1e-5, rtol=1e-4)


CLASS = ("w3", "w5", "w7", "w9", "w11")
"""Words that earn something inside a response."""


def nothing(prompts, texts):
    """A score function that pays nothing."""
    assert len(prompts) == len(texts)
    return [0.0] * len(texts)


@pytest.mark.parametrize("rule", [{}, {"missing_eos_penalty": 0.5}, {"score_clip": 0.2, "whiten_rewards": True}])
def test_a_dense_reward_that_is_all_at_the_end_is_the_scalar_run_to_the_bit(rule):
    reward = RewardSettings(kl_coef=0.05, **rule)
    at_the_end = Beside(
        dense_fn=lambda prompts, texts: [
            [(len(t) + 1, s)] for t, s in zip(texts, share_of_w3(prompts, texts), strict=True)
        ]
    )
    scalar, dense, rows = toy_lm(), toy_lm(), Rows()
    train_ppo(scalar, PROMPTS, share_of_w3, small(2, reward=reward), seed=2)
    train_ppo(dense, PROMPTS, nothing, small(2, reward=reward), seed=2, beside=at_the_end, reporters=[rows])
    assert equal(weights(scalar), weights(dense))
    assert not equal(weights(dense), weights(toy_lm()))
    assert 0 < rows.rows[-1][1]["response/stopped_frac"] < 1  # the rules had something to act on


def test_a_dense_reward_enters_the_advantages_at_the_word_that_earned_it(monkeypatch):
    """Words are tokens here, so what each token earns, and GAE over it, can be written down by hand."""
    captured = []
    real = ppo.update_on_rollout

    def spy(actor, state, rollout, targets, config, **rest):
        captured.append((rollout, targets))
        return real(actor, state, rollout, targets, config, **rest)

    def marks(prompts, texts):  # noqa: ARG001
        found = []
        for text in texts:
            ends = [sum(map(len, text.split()[: n + 1])) + n for n in range(len(text.split()))]
            found.append([(end, 1.0) for end, word in zip(ends, text.split(), strict=True) if word in CLASS])
        return found

    monkeypatch.setattr(ppo, "update_on_rollout", spy)
    reward = RewardSettings(kl_coef=0.1, missing_eos_penalty=0.25)
    lm, rows = toy_lm(), Rows()
    train_ppo(
        lm, PROMPTS, share_of_w3, small(1, reward=reward, whiten_advantages=False), seed=4,
        beside=Beside(dense_fn=marks), reporters=[rows],
    )  # fmt: skip
    rollout, targets = captured[0]
    mask, n_inside = rollout.response_mask.tolist(), 0
    rewards, log_ratio = [], (rollout.logprobs - rollout.ref_logprobs).tolist()
    branches = [branch for tree in rollout.trees for branch in tree.branches]
    for i, (text, branch) in enumerate(zip(rollout.texts, branches, strict=True)):
        n, words = sum(mask[i]), lm.tokenizer.convert_ids_to_tokens(list(branch))  # also those that no text shows
        line = [float(words[t] in CLASS) - 0.1 * log_ratio[i][t] for t in range(n)]
        line[-1] += share_of_w3([PROMPTS[0]], [text])[0] - (0.0 if bool(rollout.stopped_mask[i]) else 0.25)
        rewards.append(line + [0.0] * (len(mask[i]) - n))
        n_inside += sum(word in CLASS for word in words)
    expected, returns = ppo_loops.gae(rewards, rollout.values.tolist(), mask, 1.0, 0.95)
    torch.testing.assert_close(targets.advantages, torch.tensor(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.returns, torch.tensor(returns), atol=1e-5, rtol=0)
    assert n_inside > 10
    assert rows.rows[0][1]["score/inside_mean"] == pytest.approx(n_inside / len(rollout.texts))
    assert rows.rows[0][1]["score/mean"] == pytest.approx(float(rollout.scores.mean()))


def test_a_constant_added_to_every_score_changes_nothing():
    def trained(shift):
        lm = toy_lm()
        train_ppo(lm, PROMPTS, lambda p, texts: [s + shift for s in share_of_w3(p, texts)], small(4), seed=0)
        return [parameter.detach() for parameter in lm.model.parameters()]

    for ours, theirs in zip(trained(0.0), trained(64.0), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_critic_starts_at_the_mean_reward_and_may_start_at_zero():
    for start, expected in ((True, 7.0), (False, 0.0)):
        lm, config = toy_lm(), small(1, reward=RewardSettings(kl_coef=0.1), value=ValueSettings(start_at_mean=start))
        actor = build_actor(lm, critic=None, zero_head=True, generator=torch.Generator())
        rollout = collect_rollout(
            actor, PROMPTS, lambda _, texts: [7.0] * len(texts), settings=config.rollout, token_budget=512, seed=0
        )
        rewards = rollout_rewards(rollout, rollout.scores, config, kl_coef=0.1)
        moved = start_at_mean(actor, rollout, rewards) if start else rollout
        assert float(actor.value_head.bias.detach()) == pytest.approx(expected, abs=1e-4)
        found = rollout_advantages(moved, rewards, PPOConfig(update=UpdateSettings(whiten_advantages=False)))
        # whatever every response earns is no reason to prefer any of its tokens
        assert (float(found.advantages.abs().max()) < 1e-3) is start


def test_prompts_are_passed_over_evenly():
    batches = [prompt_batch(10, 4, i, seed=1) for i in range(10)]  # 40 draws = 4 passes
    drawn = [i for batch in batches for i in batch]
    assert sorted(drawn) == sorted(list(range(10)) * 4)
    assert sorted(drawn[:10]) == list(range(10))
    assert drawn[:10] != drawn[10:20]
    assert len(prompt_batch(3, 8, 0, seed=1)) == 8  # fewer prompts than the rollout has places
    assert batches[3] == prompt_batch(10, 4, 3, seed=1)


def test_every_logged_metric_is_documented():
    reporter = Rows()
    config = small(1, reward=RewardSettings())
    rollout = RolloutSettings(n_prompts=4, n_samples=4, max_new_tokens=6, exact_entropy=True)
    config = PPOConfig(1, 0, 1, rollout, config.reward, replace(config.update, max_step_kl=1.0), config.value)
    train_ppo(toy_lm(), PROMPTS, share_of_w3, config, seed=0, reporters=[reporter], evaluate=lambda _l, _i: {"x": 1.0})
    documented = set(re.findall(r"^\| `([a-z_0-9/]+)` \|", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE))
    logged = set(reporter.rows[-1][1]) - {"x"}
    assert logged - documented == set()
    assert documented - logged == set()


def test_refuses_bad_input():
    with pytest.raises(InputError, match="found no prompts"):
        train_ppo(toy_lm(), [], share_of_w3, small(1), seed=0)
    with pytest.raises(ConfigError, match=r"set value\.critic = separate"):
        train_ppo(toy_lm(), PROMPTS, share_of_w3, small(1), seed=0, critic=toy_lm().model.base_model)


def test_under_lora_only_the_adapter_learns_and_what_is_saved_is_merged(tmp_path):
    lm = toy_lm()
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    adapted = replace(lm, model=add_lora(lm.model, 2, 8.0))
    watcher = Watcher(WatchRules(), tmp_path / "watch")
    config = small(2, checkpoint_every=1)
    bounds = iter([0.0, 1.0])
    result = train_ppo(
        adapted,
        PROMPTS,
        share_of_w3,
        config,
        seed=0,
        directory=tmp_path / "checkpoints",
        watcher=watcher,
        evaluate=lambda _lm, _step: {"validation/lower_bound": next(bounds)},
    )
    plain = adapted.model.get_base_model()
    base = {name.replace("base_layer.", ""): p for name, p in plain.named_parameters() if "lora_" not in name}
    assert equal(before, base)
    assert result.best_step == 2
    assert not equal(weights(load_lm(result.best_path)), before)
    trained = [p for name, p in plain.named_parameters() if "lora_B" in name]
    assert all(bool(p.any()) for p in trained)
