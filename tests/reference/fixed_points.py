"""Where each method of policy optimisation comes to rest on a finite set of responses, solved without any gradient
descent: closed forms, bisection and root finding on the stationarity conditions. Never calls karat."""

from __future__ import annotations

import itertools

import numpy as np
from scipy import optimize


def softmax(free):
    """Probabilities of logits whose first is 0 and not given."""
    logits = np.concatenate([[0.0], free])
    weight = np.exp(logits - logits.max())
    return weight / weight.sum()


def rooted(gap, start):
    """The point where all gaps are 0, or an error."""
    found = optimize.root(gap, start, tol=1e-12)
    assert np.abs(gap(found.x)).max() < 1e-9, found.message
    return found.x


def tilted(ref, reward, beta):
    """π_ref·e^{r/β}, normalised: the optimum of E[r] − β·KL(π ‖ π_ref)."""
    weight = np.log(ref) + np.asarray(reward) / beta
    weight = np.exp(weight - weight.max())
    return weight / weight.sum()


def identity_optimum(ref, preference, mu, beta):
    """Azar et al. 2023 eq. 9 with Ψ the identity: the reward is the mean probability to win against μ."""
    return tilted(ref, np.asarray(preference) @ np.asarray(mu), beta)


def forward_kl_optimum(ref, reward, beta):
    """The optimum of E[r] − β·KL(π_ref ‖ π): π = β·π_ref/(β + r̄ − r), with r̄ the mean reward under π."""
    ref, reward = np.asarray(ref), np.asarray(reward)
    low = reward.max() - beta + 1e-12
    mean = optimize.brentq(lambda m: (beta * ref / (beta + m - reward)).sum() - 1, low, reward.max() + 1e3)
    return beta * ref / (beta + mean - reward)


def by_token(rest, first, second, reward, beta):
    """Where a penalty of token KLs puts two words: each prefix at its own rest point, its reward the mean of what follows.

    The gradient at a prefix h is P(h)·(E[r | h, a] − E[r | h]) against β·P(h)·∇KL at h: P(h) cancels, and what the next
    word's KL will cost is nowhere in it, so that prefixes are solved from the last to the first.

    Args:
        rest: `tilted` or `forward_kl_optimum`.    first: [W] reference of the first word.    second: [W, W] of the second.
        reward: [W, W].
    Returns: [W·W] probabilities.
    """
    later = np.array([rest(ref, paid, beta) for ref, paid in zip(second, reward, strict=True)])
    begun = rest(first, (later * reward).sum(1), beta)
    return (begun[:, None] * later).ravel()


def mixed_optimum(ref, reward, beta, data, coef):
    """The optimum of E[r] − β·KL(π ‖ π_ref) + c·E_data[log π]: for each multiplier of Σπ = 1 every π is one root."""
    ref, reward, data = (np.asarray(x) for x in (ref, reward, data))

    def probs(multiplier):
        def logprob(i):
            slope = lambda x: reward[i] - beta * (x - np.log(ref[i]) + 1) + coef * data[i] * np.exp(-x) - multiplier  # noqa: E731
            return optimize.brentq(slope, -200, 200)

        return np.exp([logprob(i) for i in range(len(ref))])

    multiplier = optimize.brentq(lambda m: np.log(probs(m).sum()), -50, 50)
    return probs(multiplier)


def constrained_optimum(ref, reward, cost, beta, limit):
    """(π, λ) of max E[r] − β·KL subject to E[c] ≤ limit: λ = 0 if that will do, else the λ that meets the limit."""

    def mean_cost(price):
        return tilted(ref, np.asarray(reward) - price * np.asarray(cost), beta) @ np.asarray(cost)

    price = 0.0 if mean_cost(0.0) <= limit else optimize.brentq(lambda x: mean_cost(x) - limit, 0, 1e3)
    return tilted(ref, np.asarray(reward) - price * np.asarray(cost), beta), price


def labelled_fixed_point(ref, mu, good_prob, beta, good_weight, bad_weight):
    """Ethayarajh et al. 2024 eq. 8 in expectation: responses from μ, labelled good with given probabilities.

    ∂/∂f of the loss is −w·β·σ′(β(f − z₀)) with w = μ·(λ_D·d − λ_U·(1 − d)) and f = log(π/π_ref), z₀ = KL(π ‖ π_ref);
    under Σπ = 1 it must be proportional to π. Where every w > 0 that is π ∝ w·σ′(β(f − z₀)).
    """
    ref, good = np.asarray(ref), np.asarray(good_prob)
    weight = np.asarray(mu) * (good_weight * good - bad_weight * (1 - good))
    assert (weight > 0).all()

    def gap(free):
        probs = softmax(free)
        f = np.log(probs / ref)
        start = probs @ f
        s = 1 / (1 + np.exp(-beta * (f - start)))
        pull = weight * s * (1 - s)
        return (np.log(probs) - np.log(pull / pull.sum()))[1:]

    return softmax(rooted(gap, np.log(weight[1:] / weight[0])))


def expectile(values, probs, tau):
    """The m with Σ p·|τ − 1[v < m]|·(v − m) = 0, by bisection."""
    values, probs = np.asarray(values), np.asarray(probs)

    def slope(m):
        return (probs * np.where(values < m, 1 - tau, tau) * (values - m)).sum()

    return values[0] if np.ptp(values) == 0 else optimize.brentq(slope, values.min(), values.max())


def guided_policy(first, second, reward, tau, strength):
    """Backward induction of implicit Q-learning on responses of two words, and the policy it guides.

    first: probabilities of the first word in the data; second[a]: of the second after a; reward[a][b]: of the pair.
    Returns the guided probabilities of the first word, and of the second word after each first.
    """
    values = [expectile(reward[a], second[a], tau) for a in range(len(first))]
    return tilted(first, values, 1 / strength), [tilted(second[a], reward[a], 1 / strength) for a in range(len(first))]


def group_scaled_fixed_point(ref, reward, beta, n_samples, floor):
    """Where group-relative advantages with the group's own σ come to rest: the expected gradient over all groups.

    For each response y: Σ over groups P(group)·Σᵢ Âᵢ·(1[yᵢ = y] − π(y))/K = β·π(y)·(log π/π_ref(y) − KL).
    """
    ref, reward = np.asarray(ref), np.asarray(reward)
    groups = np.array(list(itertools.product(range(len(ref)), repeat=n_samples)))
    earned = reward[groups]
    advantages = (earned - earned.mean(1, keepdims=True)) / (earned.std(1, ddof=1, keepdims=True) + floor)

    def gap(free):
        probs = softmax(free)
        chance = probs[groups].prod(1)
        pull = np.zeros(len(ref))
        for place in range(n_samples):
            np.add.at(pull, groups[:, place], chance * advantages[:, place] / n_samples)
        pull -= probs * (chance[:, None] * advantages).sum() / n_samples
        f = np.log(probs / ref)
        # per unit of probability, so that the corners, where nothing is ever drawn, are no solutions
        return (pull / probs - beta * (f - probs @ f))[1:]

    return softmax(rooted(gap, np.log(ref[1:] / ref[0])))
