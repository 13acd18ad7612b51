"""Each method, by enumeration and without whitening, comes to rest where theory says: all nine responses of two words
out of three, every one weighted by its probability, so that nothing is sampled."""

import itertools

import numpy as np
import pytest
import torch

from karat.lm.losses import token_nll
from karat.policy.controllers import LagrangeMultiplier
from karat.policy.group_advantages import STD_FLOOR, grpo_advantages, reinforce_pp_advantages, rloo_advantages
from karat.policy.implicit_q import implicit_q_losses, value_guided_logits
from karat.policy.objectives import kl_penalty_loss, ppo_policy_loss
from karat.policy.preference_objectives import dpo_loss, ipo_loss, kto_loss
from karat.policy.selection import best_indices
from karat.policy.shaping import token_rewards
from reference import fixed_points, ppo_loops

WORDS, BETA = 3, 0.7
SEQUENCES = list(itertools.product(range(WORDS), repeat=2))
N = len(SEQUENCES)
LEFT, RIGHT = (torch.tensor(x) for x in zip(*itertools.product(range(N), repeat=2), strict=True))  # all ordered pairs


def numbers(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REF = numbers(3, 4, WORDS)
REWARD = numbers(4, N)


FIRST, SECOND = torch.tensor(SEQUENCES).T


def token_logprobs(logits):
    """[9, 2]: log-probability of both words of each response."""
    table = logits.log_softmax(-1)
    return torch.stack([table[0, FIRST], table[1 + FIRST, SECOND]], dim=1)


def sequence_logprobs(logits):
    return token_logprobs(logits).sum(1)


def probs_of(logits):
    return sequence_logprobs(logits).exp().detach().numpy()


REF_PROBS = probs_of(REF)
REF_LOGPROBS = sequence_logprobs(REF)
EVERY = torch.ones(N, dtype=torch.bool)


def settled(loss_of, *, start=REF, n_steps=150, rate=5.0, each=None, adam=False):
    """Gradient descent, one step on loss_of(logits, the logits before it) after the other; Adam's rate falls to 0."""
    logits = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=rate) if adam else torch.optim.SGD([logits], lr=rate)
    for step in range(n_steps):
        if adam:
            optimiser.param_groups[0]["lr"] = rate * (1 - step / n_steps) ** 2 + 1e-5
        optimiser.zero_grad()
        loss_of(logits, logits.detach().clone()).backward()
        optimiser.step()
        if each is not None:
            each(logits.detach())
    return logits.detach()


def assert_close(logits, expected):
    """Total variation below a thousandth, and the reference policy is not there already."""
    assert 0.5 * np.abs(probs_of(logits) - expected).sum() < 1e-3
    assert 0.5 * np.abs(REF_PROBS - expected).sum() > 0.05


def pair_weights(logits):
    p = sequence_logprobs(logits).exp().detach()
    return p[LEFT] * p[RIGHT]


def test_leave_one_out_settles_at_the_tilted_reference():
    def loss(logits, old):
        new, before = sequence_logprobs(logits), sequence_logprobs(old)
        paid = REWARD - BETA * (before - REF_LOGPROBS)
        advantages = rloo_advantages(torch.stack([paid[LEFT], paid[RIGHT]], dim=1))
        weighted = pair_weights(old).unsqueeze(1) * advantages
        both = torch.stack([new[LEFT], new[RIGHT]], dim=1), torch.stack([before[LEFT], before[RIGHT]], dim=1)
        return ppo_policy_loss(*both, weighted, torch.ones_like(weighted, dtype=torch.bool), denominator=2).loss

    assert_close(settled(loss), fixed_points.tilted(REF_PROBS, REWARD.numpy(), BETA))


def test_reinforce_pp_unnormalised_settles_at_the_tilted_reference():
    mask = torch.ones(N, 2, dtype=torch.bool)

    def loss(logits, old):
        new, before = token_logprobs(logits), token_logprobs(old)
        rewards = token_rewards(REWARD, before - token_logprobs(REF), mask, kl_coef=BETA)
        advantages = reinforce_pp_advantages(rewards, mask, n_samples=1, group_baseline=False, normalise=False)
        weight = before.sum(1, keepdim=True).exp()
        return ppo_policy_loss(new, before, weight * advantages, mask, denominator=1).loss

    assert_close(settled(loss), fixed_points.tilted(REF_PROBS, REWARD.numpy(), BETA))


def group_loss(logits, old, scale, estimator="k2"):
    """GRPO over all pairs that the policy may draw, the KL in the loss."""
    new, before = sequence_logprobs(logits), sequence_logprobs(old)
    advantages = grpo_advantages(torch.stack([REWARD[LEFT], REWARD[RIGHT]], dim=1), scale=scale)
    weighted = pair_weights(old).unsqueeze(1) * advantages
    both = torch.stack([new[LEFT], new[RIGHT]], dim=1), torch.stack([before[LEFT], before[RIGHT]], dim=1)
    policy = ppo_policy_loss(*both, weighted, torch.ones_like(weighted, dtype=torch.bool), denominator=2).loss
    # a weight of π before each response is its probability of being drawn
    penalty = kl_penalty_loss(
        new, before, REF_LOGPROBS, EVERY, estimator=estimator, denominator=1, weights=before.exp()
    )
    return policy + BETA * penalty.loss


def test_grpo_without_std_settles_where_its_own_mean_puts_it():
    found = settled(lambda logits, old: group_loss(logits, old, "none"))
    # the group's mean contains the response itself: with two responses β acts as 2β
    assert_close(found, fixed_points.tilted(REF_PROBS, REWARD.numpy(), 2 * BETA))


def test_grpo_with_std_rescales_beta_by_sigma():
    """All nine responses as one group drawn by the uniform policy: off-policy, with importance weights and no clip."""
    uniform = torch.full((N,), -np.log(N), dtype=torch.float64)
    advantages = grpo_advantages(REWARD.unsqueeze(0), scale="group").squeeze(0)

    def loss(logits, _):
        new = sequence_logprobs(logits)
        policy = ppo_policy_loss(new, uniform, advantages, EVERY, denominator=N, clip_range=None).loss
        return policy + BETA * kl_penalty_loss(new, uniform, REF_LOGPROBS, EVERY, estimator="k2", denominator=N).loss

    sigma = float(REWARD.std()) + STD_FLOOR
    assert abs(sigma - 1) > 0.1
    assert_close(settled(loss), fixed_points.tilted(REF_PROBS, REWARD.numpy(), BETA * sigma))


def test_grpo_with_std_in_small_groups_settles_at_its_stationary_point():
    # one word, three responses, groups of four: all 81 groups
    ref, reward = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log(), torch.tensor([0.0, 1.0, 0.4]).double()
    groups = torch.tensor(list(itertools.product(range(3), repeat=4)))
    advantages = grpo_advantages(reward[groups], scale="group")
    logits = ref.clone().requires_grad_()
    optimiser = torch.optim.Adam([logits], lr=0.05)
    for step in range(400):
        for entry in optimiser.param_groups:
            entry["lr"] = 0.05 * (1 - step / 400) ** 2 + 1e-5
        new = logits.log_softmax(0)
        old = new.detach()
        chance = old[groups].sum(1).exp().unsqueeze(1)
        mask = torch.ones_like(groups, dtype=torch.bool)
        policy = ppo_policy_loss(new[groups], old[groups], chance * advantages, mask, denominator=4).loss
        pull = (old.exp() * 0.5 * (new - ref).square()).sum()
        optimiser.zero_grad()
        (policy + BETA * pull).backward()
        optimiser.step()
    expected = fixed_points.group_scaled_fixed_point(ref.exp().numpy(), reward.numpy(), BETA, 4, STD_FLOOR)
    assert np.abs(logits.detach().softmax(0).numpy() - expected).sum() / 2 < 1e-3
    assert np.abs(ref.exp().numpy() - expected).sum() / 2 > 0.05


def test_k1_in_the_reward_and_k2_in_the_loss_have_one_gradient_and_k3_another():
    logits = numbers(7, 4, WORDS)
    old = logits.clone()
    weight = sequence_logprobs(old).exp()

    def gradient(loss_of):
        x = logits.clone().requires_grad_()
        loss_of(x).backward()
        return x.grad

    def in_reward(x):
        paid = -(sequence_logprobs(old) - REF_LOGPROBS)
        return ppo_policy_loss(sequence_logprobs(x), sequence_logprobs(old), weight * paid, EVERY, denominator=1).loss

    def in_loss(estimator):
        def loss_of(x):
            new, before = sequence_logprobs(x), sequence_logprobs(old)
            options = {"estimator": estimator, "denominator": 1, "weights": weight}
            return kl_penalty_loss(new, before, REF_LOGPROBS, EVERY, **options).loss

        return loss_of

    def exact(x):
        new = sequence_logprobs(x)
        return (new.exp() * (new - REF_LOGPROBS)).sum()

    torch.testing.assert_close(gradient(in_reward), gradient(exact), atol=1e-10, rtol=0)
    torch.testing.assert_close(gradient(in_loss("k2")), gradient(exact), atol=1e-10, rtol=0)
    reverse = gradient(lambda x: (REF_LOGPROBS.exp() * (REF_LOGPROBS - sequence_logprobs(x))).sum())
    torch.testing.assert_close(gradient(in_loss("k3")), reverse, atol=1e-10, rtol=0)
    assert float((reverse - gradient(exact)).abs().max()) > 0.05


def test_a_weighted_k3_keeps_its_gradient_once_the_policy_has_moved():
    logits, old = numbers(7, 4, WORDS), numbers(8, 4, WORDS)

    def gradient(loss_of):
        x = logits.clone().requires_grad_()
        loss_of(sequence_logprobs(x)).backward()
        return x.grad

    def in_loss(importance):
        before = sequence_logprobs(old)
        options = {"estimator": "k3", "denominator": 1, "weights": before.exp(), "importance": importance}
        return lambda new: kl_penalty_loss(new, before, REF_LOGPROBS, EVERY, **options).loss

    reverse = gradient(lambda new: (REF_LOGPROBS.exp() * (REF_LOGPROBS - new)).sum())
    torch.testing.assert_close(gradient(in_loss(True)), reverse, atol=1e-10, rtol=0)
    assert float((gradient(in_loss(False)) - reverse).abs().max()) > 0.05


def test_k3_in_the_loss_settles_elsewhere():
    expected = fixed_points.forward_kl_optimum(REF_PROBS, REWARD.numpy() / 2, BETA)
    assert_close(settled(lambda logits, old: group_loss(logits, old, "none", "k3")), expected)
    assert 0.5 * np.abs(expected - fixed_points.tilted(REF_PROBS, REWARD.numpy(), 2 * BETA)).sum() > 0.01


@pytest.mark.parametrize(("estimator", "rest"), [("k2", "tilted"), ("k3", "forward_kl_optimum")])
def test_grpo_over_tokens_settles_prefix_by_prefix(estimator, rest):
    """`level: token`, as published: token KLs leave out what a word costs later, so the rest point is another one."""
    mask = torch.ones(N, 2, dtype=torch.bool)
    both = torch.ones(len(LEFT), 2, 2, dtype=torch.bool)
    ref = token_logprobs(REF)
    advantages = grpo_advantages(torch.stack([REWARD[LEFT], REWARD[RIGHT]], dim=1), scale="none")

    def loss(logits, old):
        new, before = token_logprobs(logits), token_logprobs(old)
        weighted = (pair_weights(old).unsqueeze(1) * advantages).unsqueeze(2).expand(-1, 2, 2)
        pairs = (torch.stack([x[LEFT], x[RIGHT]], dim=1) for x in (new, before))
        policy = ppo_policy_loss(*pairs, weighted, both, denominator=2).loss
        drawn = before.sum(1, keepdim=True).exp().expand(-1, 2)
        penalty = kl_penalty_loss(new, before, ref, mask, estimator=estimator, denominator=1, weights=drawn)
        return policy + BETA * penalty.loss

    # with two responses a group β acts as 2β: as 2β for the tilt, as a reward of half for the other
    scale, beta = (1.0, 2 * BETA) if estimator == "k2" else (0.5, BETA)
    tables = REF.softmax(-1).numpy()
    law, paid = getattr(fixed_points, rest), scale * REWARD.numpy()
    expected = fixed_points.by_token(law, tables[0], tables[1:], paid.reshape(WORDS, WORDS), beta)
    assert_close(settled(loss, n_steps=400), expected)
    assert 0.5 * np.abs(expected - law(REF_PROBS, paid, beta)).sum() > 0.03  # not where whole responses settle


def log_ratios(logits):
    return sequence_logprobs(logits) - REF_LOGPROBS


@pytest.mark.parametrize("online", [False, True])
def test_dpo_settles_at_the_tilted_reference_whatever_was_compared(online):
    p = torch.sigmoid(REWARD[LEFT] - REWARD[RIGHT])
    beta = 1.5 if online else BETA

    def loss(logits, old):
        f = log_ratios(logits)
        # offline the pairs come from anywhere; online from the policy itself
        weights = pair_weights(old) if online else numbers(9, N * N).abs()
        return dpo_loss(f[LEFT], f[RIGHT], beta=beta, denominator=1, better_prob=p, weights=weights).loss

    found = settled(loss, n_steps=400, rate=0.1 if online else 0.5, adam=True)
    assert_close(found, fixed_points.tilted(REF_PROBS, REWARD.numpy(), beta))


def test_votes_and_their_expectation_are_one_dpo_loss():
    f, p = numbers(5, N), torch.sigmoid(REWARD[LEFT] - REWARD[RIGHT])
    options = {"beta": BETA, "denominator": 1}
    soft = dpo_loss(f[LEFT], f[RIGHT], better_prob=p, **options).loss
    won = dpo_loss(f[LEFT], f[RIGHT], weights=p, **options).loss
    lost = dpo_loss(f[RIGHT], f[LEFT], weights=1 - p, **options).loss
    assert float(soft) == pytest.approx(float(won + lost))
    smoothed = dpo_loss(f[LEFT], f[RIGHT], label_smoothing=0.1, **options).loss
    assert float(smoothed) == pytest.approx(
        float(dpo_loss(f[LEFT], f[RIGHT], better_prob=torch.full_like(p, 0.9), **options).loss)
    )


def test_ipo_settles_where_the_mean_chance_to_win_puts_it():
    # preferences that no score explains: a cycle on top of noise
    raw = numbers(11, N, N)
    chance = torch.sigmoid(raw - raw.T)
    mu = numbers(12, N).softmax(0)

    def loss(logits, _):
        f = log_ratios(logits)
        # an ordered pair (y, y′) ends as "y better" with its probability; both orders are in the sum
        weights = mu[LEFT] * mu[RIGHT] * chance[LEFT, RIGHT]
        return ipo_loss(f[LEFT], f[RIGHT], beta=0.3, denominator=1, weights=weights).loss

    expected = fixed_points.identity_optimum(REF_PROBS, chance.numpy(), mu.numpy(), 0.3)
    assert_close(settled(loss, n_steps=150, rate=0.2, adam=True), expected)


def test_kto_settles_at_its_stationary_point():
    mu, good = (
        numbers(13, N).softmax(0),
        0.55 + 0.4 * torch.rand(N, generator=torch.Generator().manual_seed(1)).double(),
    )
    sides = {"good_weight": 1.2, "bad_weight": 1.0}

    def loss(logits, _):
        f = log_ratios(logits)
        kl = (sequence_logprobs(logits).exp() * f).sum()
        twice, chance = torch.cat([f, f]), torch.cat([mu * good, mu * (1 - good)])
        return kto_loss(twice, torch.cat([EVERY, ~EVERY]), kl, beta=0.5, denominator=1, weights=chance, **sides).loss

    expected = fixed_points.labelled_fixed_point(REF_PROBS, mu.numpy(), good.numpy(), 0.5, 1.2, 1.0)
    assert_close(settled(loss, n_steps=400, rate=0.2, adam=True), expected)


def imitate(start, weights):
    """Maximum likelihood of whole responses, each counted by its weight."""

    def loss(logits, _):
        return token_nll(weights.unsqueeze(1) * token_logprobs(logits)).total

    return settled(loss, start=start, n_steps=250, rate=0.2, adam=True)


def test_expert_iteration_follows_the_law_of_order_statistics():
    scores = torch.tensor([0.0, 1.0, 1.0, -0.5, 2.0, 0.3, 0.3, 0.3, -1.0], dtype=torch.float64)  # ties
    logits = REF
    for n in (2, 4):
        draws = pair_weights(logits)
        chosen = best_indices(torch.stack([scores[LEFT], scores[RIGHT]], dim=1))
        picked = torch.where(chosen == 0, LEFT, RIGHT)
        target = torch.zeros(N, dtype=torch.float64).index_add(0, picked, draws)
        logits = imitate(logits, target)
        # best of 2 of best of 2 is best of 4
        assert_close(logits, ppo_loops.best_of_n_probs(REF_PROBS.tolist(), scores.tolist(), n))


def policy_gradient(logits, old, paid):
    """The exact policy gradient of E[paid] at `old`."""
    new, before = sequence_logprobs(logits), sequence_logprobs(old)
    return ppo_policy_loss(new, before, before.exp() * paid, EVERY, denominator=1).loss


def test_ptx_settles_between_reward_and_data():
    data = numbers(15, N).softmax(0)

    def loss(logits, old):
        paid = REWARD - BETA * (sequence_logprobs(old) - REF_LOGPROBS)
        return policy_gradient(logits, old, paid) + 0.4 * token_nll(data.unsqueeze(1) * token_logprobs(logits)).total

    expected = fixed_points.mixed_optimum(REF_PROBS, REWARD.numpy(), BETA, data.numpy(), 0.4)
    assert_close(settled(loss, n_steps=250, rate=0.1, adam=True), expected)
    assert 0.5 * np.abs(expected - fixed_points.tilted(REF_PROBS, REWARD.numpy(), BETA)).sum() > 0.02


@pytest.mark.parametrize(("limit", "active"), [(-0.2, True), (5.0, False)])
def test_the_constrained_policy_pays_a_price_only_where_the_limit_binds(limit, active):
    cost = REWARD * 0.5 + numbers(16, N)
    multiplier = LagrangeMultiplier(0.5, limit=limit, learning_rate=0.3)

    def loss(logits, old):
        paid = REWARD - multiplier.coef * cost - BETA * (sequence_logprobs(old) - REF_LOGPROBS)
        return policy_gradient(logits, old, paid)

    def each(logits):
        multiplier.update(float((sequence_logprobs(logits).exp() * cost).sum()))

    logits = settled(loss, n_steps=400, each=each)
    expected, price = fixed_points.constrained_optimum(REF_PROBS, REWARD.numpy(), cost.numpy(), BETA, limit)
    assert_close(logits, expected)
    assert (price > 0) is active
    assert multiplier.coef == pytest.approx(price, abs=1e-3)
    slack = limit - probs_of(logits) @ cost.numpy()
    assert multiplier.coef * slack == pytest.approx(0, abs=1e-3)
    assert slack > -1e-3


@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_value_guided_decoding_follows_backward_induction(tau):
    data = numbers(17, 4, WORDS).softmax(-1)  # what the data does: first word, then after each first word
    reward = REWARD.view(WORDS, WORDS)
    state = torch.stack([torch.zeros_like(FIRST), 1 + FIRST], dim=1).flatten()
    taken = torch.tensor(SEQUENCES).flatten()
    chance = (data[0, FIRST] * data[1 + FIRST, SECOND]).repeat_interleave(2)
    rewards = torch.stack([torch.zeros(N).double(), REWARD], dim=1).flatten()  # paid at the end

    def parts(table):
        q, v = table[state, :WORDS], table[:, WORDS]
        after = torch.stack([v[1 + FIRST], torch.zeros(N).double()], dim=1).flatten()
        slow = q.gather(1, taken.unsqueeze(1)).squeeze(1)
        found = implicit_q_losses(
            q, slow, v[state], after, rewards, taken, gamma=1.0, expectile=tau, denominator=1, weights=chance
        )
        return found.q + found.v

    table = settled(lambda x, _: parts(x), start=torch.zeros(4, WORDS + 1).double(), n_steps=200, rate=0.1, adam=True)
    strength = 1.5
    guided = value_guided_logits(data.log(), table[:, :WORDS], strength=strength).softmax(-1).numpy()
    first, second = fixed_points.guided_policy(data[0].numpy(), data[1:].numpy(), reward.numpy(), tau, strength)
    np.testing.assert_allclose(guided[0], first, atol=1e-3)
    np.testing.assert_allclose(guided[1:], second, atol=1e-3)
    assert np.abs(first - data[0].numpy()).max() > 0.05
