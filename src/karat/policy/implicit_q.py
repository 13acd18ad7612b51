"""Implicit Q-learning over tokens: values learned from a fixed data set, and the policy that they guide.

Pure; knows Q-values, values and token ids as tensors. Knows nothing about models or texts.

Dimension letters: n response tokens of a batch, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from karat.errors import ConfigError, InputError


class ImplicitQLosses(NamedTuple):
    """The parts of the loss, each already divided by the denominator."""

    q: Float[Tensor, ""]
    """½·Σ (Q(s, a) − r − γ·V(s′))²."""
    v: Float[Tensor, ""]
    """½·Σ |τ − 1[Q̂ < V]|·(Q̂(s, a) − V(s))²."""
    conservative: Float[Tensor, ""]
    """−Σ log softmax(Q(s, ·))[a]: keeps actions that the data never took from looking good."""


def implicit_q_losses(
    q: Float[Tensor, "n V"],
    target_q: Float[Tensor, "n"],
    values: Float[Tensor, "n"],
    next_values: Float[Tensor, "n"],
    rewards: Float[Tensor, "n"],
    token_ids: Int[Tensor, "n"],
    *,
    gamma: float,
    expectile: float,
    denominator: float,
    weights: Float[Tensor, "n"] | None = None,
) -> ImplicitQLosses:
    """The losses of implicit Q-learning, one term for each response token of the data.

        V(s) → the τ-expectile of Q̂(s, a) over the data's actions        Q(s, a) → r + γ·V(s′)

    τ = ½ gives the value of the policy that wrote the data; τ → 1 that of the best continuation found in it.

    Args:
        q: of every token at each state; carries the gradient.    target_q: slow copy's Q of the token taken.
        values: V(s), carries the gradient.    next_values: V(s′), 0 after the last token of a response; detached here.
        rewards: of each token.    token_ids: the tokens taken.
        gamma: (0, 1].    expectile: τ in (0, 1).    denominator: counted tokens of the minibatch, > 0.
        weights: how much each token counts, ≥ 0; None = 1 each.
    Raises: ConfigError for γ or τ out of range; InputError for shapes that differ or a denominator ≤ 0.
    Source: Snell et al. 2022, arXiv:2206.11871 §4 (ILQL); Kostrikov et al. 2021, arXiv:2110.06169 eqs. 5–6 (IQL).
    Differs: one Q with a slow copy instead of the smaller of two.
    """
    n = token_ids.shape
    if q.ndim != 2 or any(t.shape != n for t in (target_q, values, next_values, rewards)) or q.shape[:1] != n:
        raise InputError(
            f"implicit_q_losses: found q {tuple(q.shape)} for {tuple(n)} tokens; expected [n, V] and [n] for everything else"
        )
    if not (0 < gamma <= 1 and 0 < expectile < 1):
        raise ConfigError(f"implicit_q_losses: found γ={gamma}, τ={expectile}; expected (0, 1] and (0, 1)")
    if not denominator > 0:
        raise InputError(f"implicit_q_losses: found the denominator {denominator}; expected counted tokens, > 0")
    taken = q.gather(1, token_ids.unsqueeze(1)).squeeze(1)
    q_loss = 0.5 * (taken - rewards - gamma * next_values.detach()).square()
    gap = target_q.detach() - values
    weight = torch.where(gap.detach() < 0, 1 - expectile, expectile)
    v_loss = 0.5 * weight * gap.square()
    conservative = q.logsumexp(1) - taken
    each = torch.stack([q_loss, v_loss, conservative])
    return ImplicitQLosses(*((each if weights is None else weights * each).sum(1) / denominator))


def value_guided_logits(
    logits: Float[Tensor, "*rows V"], q: Float[Tensor, "*rows V"], *, strength: float
) -> Float[Tensor, "*rows V"]:
    """Logits of the policy that prefers tokens of high advantage: log π_b + strength·(Q − V) up to a constant a row.

        π(a | s) ∝ π_b(a | s)·exp(strength·(Q(s, a) − V(s)))

    V(s) is the same for every token, so it drops out. Where Q is linear in the hidden state, so is the sum: a policy
    guided like this is one output layer.

    Raises: ConfigError for a strength < 0.
    Source: Snell et al. 2022, arXiv:2206.11871 eq. 4.
    """
    if strength < 0:
        raise ConfigError(f"value_guided_logits: found strength={strength}; expected ≥ 0")
    return logits + strength * q
