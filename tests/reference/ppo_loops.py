"""Slow loops for PPO written from the papers' equations, in plain Python floats; never calls karat."""

from __future__ import annotations

import itertools
import math


def gae(rewards, values, mask, gamma, lam, bootstrap=None):
    """Schulman et al. 2016 eq. 16 as the explicit double sum over future residuals, not as a recursion."""
    advantages, returns = [], []
    for i, row in enumerate(mask):
        n = sum(row)
        v = [values[i][t] for t in range(n)] + [0.0 if bootstrap is None else bootstrap[i]]
        delta = [rewards[i][t] + gamma * v[t + 1] - v[t] for t in range(n)]
        adv = [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, n)) for t in range(n)]
        pad = [0.0] * (len(row) - n)
        advantages.append(adv + pad)
        returns.append([a + v[t] for t, a in enumerate(adv)] + pad)
    return advantages, returns


def policy_loss(new, old, adv, mask, denominator, eps, dual=None):
    """Schulman et al. 2017 eq. 7 (negated) by cases; Ye et al. 2020 eq. 5 for the dual clip."""
    total, clipped = 0.0, 0
    for n, o, a, m in zip(new, old, adv, mask, strict=True):
        if not m:
            continue
        ratio = math.exp(n - o)
        if a >= 0:
            objective = a * min(ratio, 1 + eps)
            clipped += a > 0 and ratio > 1 + eps
        else:
            objective = a * max(ratio, 1 - eps)
            was = ratio < 1 - eps
            if dual is not None and objective < dual * a:
                objective, was = dual * a, True
            clipped += was
        total -= objective
    return total / denominator, clipped


def value_loss(new, old, target, mask, denominator, eps):
    """Half the larger of plain and clipped squared error, token by token."""
    total = 0.0
    for v, o, r, m in zip(new, old, target, mask, strict=True):
        if m:
            plain = (v - r) ** 2
            limited = v if eps is None else o + max(-eps, min(eps, v - o))
            total += 0.5 * max(plain, (limited - r) ** 2)
    return total / denominator


def rewards(scores, new, ref, mask, beta):
    """Ziegler et al. 2019 eq. 2 spread over tokens: −β·(log π − log π_ref), plus the score at the end."""
    out = []
    for i, row in enumerate(mask):
        n = sum(row)
        line = [-beta * (new[i][t] - ref[i][t]) for t in range(n)]
        line[-1] += scores[i]
        out.append(line + [0.0] * (len(row) - n))
    return out


def rewards_inside(paid, inside, log_ratio, mask, beta):
    """The same where tokens earn parts of what is paid: whatever they have not earned by then is paid at the end."""
    out = []
    for i, row in enumerate(mask):
        n, earned, line = sum(row), 0.0, []
        for t in range(n):
            part = inside[i][t] if t < n - 1 else paid[i] - earned
            earned += part
            line.append(part - beta * log_ratio[i][t])
        out.append(line + [0.0] * (len(row) - n))
    return out


def adaptive_beta(beta, kls, n, target, horizon):
    """Ziegler et al. 2019 §2.2, one update a rollout."""
    for kl in kls:
        error = kl / target - 1
        error = -0.2 if error < -0.2 else 0.2 if error > 0.2 else error
        beta = beta * (1 + error * n / horizon)
    return beta


def tilted(ref_logits, reward, beta):
    """The optimum of E[r] − β·KL over all sequences of fixed length: π* ∝ π_ref·exp(r/β), by enumeration.

    ref_logits: {prefix: list of logits}; reward: {sequence: number}. Returns {prefix: list of probabilities}.
    """
    n_tokens = 1 + max(len(prefix) for prefix in ref_logits)
    n_words = len(next(iter(ref_logits.values())))

    def ref_prob(sequence):
        p = 1.0
        for t, word in enumerate(sequence):
            logits = ref_logits[sequence[:t]]
            p *= math.exp(logits[word]) / sum(math.exp(x) for x in logits)
        return p

    weight = {s: ref_prob(s) * math.exp(reward[s] / beta) for s in itertools.product(range(n_words), repeat=n_tokens)}
    result = {}
    for prefix in ref_logits:
        mass = [sum(w for s, w in weight.items() if s[: len(prefix) + 1] == (*prefix, word)) for word in range(n_words)]
        result[prefix] = [m / sum(mass) for m in mass]
    return result


def best_of_n_probs(probs, scores, n):
    """Best-of-n's distribution over responses by enumerating all n-tuples; ties broken uniformly."""
    out = [0.0] * len(probs)
    for draw in itertools.product(range(len(probs)), repeat=n):
        p = math.prod(probs[i] for i in draw)
        top = max(scores[i] for i in draw)
        winners = [i for i in draw if scores[i] == top]
        for i in winners:
            out[i] += p / len(winners)
    return out
