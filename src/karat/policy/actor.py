"""The networks: policy, reference and, for PPO, a critic; and the one forward pass that serves policy and critic together.

Knows models and batches of trees; knows nothing about rewards, advantages or losses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from karat.errors import ConfigError
from karat.lm.adapters import reference_mode
from karat.lm.heads import ScalarHead
from karat.lm.load import LoadedLM
from karat.lm.logprobs import (
    hidden_at,
    response_logprobs,
    token_logprobs,
    trunk_of,
    vocabulary_logprobs,
)
from karat.lm.memory import rows_at_a_time
from karat.lm.trees import Tree, TreeBatch, pack_trees
from karat.policy.kl import full_kl


@dataclass(frozen=True)
class Policy:
    """What runs forward in the methods without a critic."""

    lm: LoadedLM
    """The policy, trained in place."""
    reference: nn.Module | None
    """Frozen copy of the policy as it started; None = the policy with its adapter off."""


@dataclass(frozen=True)
class ActorCritic:
    """Everything that runs forward in PPO."""

    lm: LoadedLM
    """The policy, trained in place."""
    value_head: ScalarHead
    """From a hidden state to the value before the token that it predicts."""
    critic: nn.Module | None
    """A trunk of the critic's own; None = the head reads the policy's trunk."""
    reference: nn.Module | None
    """Frozen copy of the policy as it started; None = the policy with its adapter off."""


@dataclass(frozen=True)
class TokenScores:
    """What one forward pass says about the response tokens of a batch, in batch order."""

    logprobs: Float[Tensor, " n"]
    """log π(token), float32 or wider."""
    values: Float[Tensor, " n"]
    """Value before each token."""
    entropy: Float[Tensor, " n"] | None
    """Full-vocabulary entropy in nats, if asked for."""
    last_values: Float[Tensor, " B"] | None
    """Value after each branch's last token, if asked for."""


def build_actor(lm: LoadedLM, *, critic: nn.Module | None, zero_head: bool, generator: torch.Generator) -> ActorCritic:
    """Policy, critic head and reference around a loaded model.

    The reference is the adapter switched off where the model carries one (`lm.adapters.add_lora`), else a frozen copy.

    Args:
        lm: loaded for training; some parameters require gradients.
        critic: a trunk of its own (a reward model's, or a copy of the policy's), or None to share the policy's.
        zero_head: True = the head starts at 0; False = N(0, 1/√(d+1)), drawn from the generator.
    Raises: ConfigError when no parameter of the policy is trainable.
    """
    policy = build_policy(lm)
    trunk = trunk_of(lm.model) if critic is None else trunk_of(critic)
    head = ScalarHead(trunk.config.get_text_config().hidden_size, 1, generator=None if zero_head else generator)
    head.to(device=lm.model.device, dtype=torch.float64 if lm.model.dtype == torch.float64 else torch.float32)
    return ActorCritic(lm, head, critic, policy.reference)


def build_policy(lm: LoadedLM) -> Policy:
    """Policy and reference around a loaded model: its adapter switched off where it has one, else a frozen copy.

    Raises: ConfigError when no parameter of the policy is trainable.
    """
    if not any(parameter.requires_grad for parameter in lm.model.parameters()):
        raise ConfigError(
            f"{lm.path}: found no trainable parameter; expected load_lm(…, for_training=True) or add_lora"
        )
    return Policy(lm, None if isinstance(lm.model, PeftModel) else copy.deepcopy(lm.model).requires_grad_(False).eval())


def pack(trees: Sequence[Tree], token_budget: int, device: torch.device) -> list[TreeBatch]:
    """Micro-batches of whole trees, on the model's device."""
    return [batch.to(device) for batch in pack_trees(trees, token_budget=token_budget)]


def token_scores(
    actor: ActorCritic,
    batch: TreeBatch,
    *,
    temperature: float,
    with_entropy: bool = False,
    with_last: bool = False,
) -> TokenScores:
    """Log-probabilities and values of a batch; one trunk pass where the trunk is shared.

    Args:
        temperature: that of the sampler.    with_last: also the value after each branch's last token.
    """
    n = len(batch.predict_index)
    read = torch.cat([batch.predict_index, batch.last_index]) if with_last else batch.predict_index
    hidden = hidden_at(actor.lm.model, batch, read)
    logprobs, entropy = token_logprobs(
        actor.lm.model, hidden[:n], batch.target_ids, temperature=temperature, with_entropy=with_entropy
    )
    seen = hidden if actor.critic is None else hidden_at(actor.critic, batch, read)
    values = head_values(actor, seen[:n])
    last = head_values(actor, seen[n:]) if with_last else None
    return TokenScores(logprobs, values, entropy, last)


def token_values(actor: ActorCritic, batch: TreeBatch) -> Float[Tensor, " n"]:
    """Values alone, without logits. A shared trunk gets no gradient from here: this is for the critic's warm-up."""
    if actor.critic is not None:
        return head_values(actor, hidden_at(actor.critic, batch, batch.predict_index))
    with torch.no_grad():
        hidden = hidden_at(actor.lm.model, batch, batch.predict_index)
    return head_values(actor, hidden)


def policy_logprobs(lm: LoadedLM, batch: TreeBatch, *, temperature: float) -> Float[Tensor, " n"]:
    """log π of the response tokens by the policy as it is now."""
    return response_logprobs(lm.model, batch, temperature=temperature).logprobs


def reference_logprobs(actor: ActorCritic | Policy, batch: TreeBatch, *, temperature: float) -> Float[Tensor, " n"]:
    """log π_ref of the response tokens, without gradient."""
    with torch.no_grad():
        if actor.reference is not None:
            return response_logprobs(actor.reference, batch, temperature=temperature).logprobs
        with reference_mode(actor.lm.model):
            return response_logprobs(actor.lm.model, batch, temperature=temperature).logprobs


def exact_kl(actor: ActorCritic | Policy, batch: TreeBatch, *, temperature: float) -> Float[Tensor, " n"]:
    """KL(π ‖ π_ref) of the next token before each response token, over the whole vocabulary; no gradient.

    One more pass of policy and reference; the logits are made for a few rows at a time.
    """
    rows = rows_at_a_time(actor.lm.model.get_input_embeddings().weight.shape[0])

    def predicting(model: nn.Module) -> Float[Tensor, "n d"]:
        return hidden_at(model, batch, batch.predict_index)

    with torch.no_grad():
        mine = predicting(actor.lm.model)
        if actor.reference is not None:
            theirs = predicting(actor.reference)
        else:
            with reference_mode(actor.lm.model):
                theirs = predicting(actor.lm.model)
        # adapters leave the output layer alone, so that the policy's serves its reference
        ref_model = actor.lm.model if actor.reference is None else actor.reference
        return torch.cat(
            [
                full_kl(
                    vocabulary_logprobs(actor.lm.model, a, temperature=temperature),
                    vocabulary_logprobs(ref_model, b, temperature=temperature),
                )
                for a, b in zip(mine.split(rows), theirs.split(rows), strict=True)
            ]
        )


def head_values(actor: ActorCritic, hidden: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """The head in its own precision (float32 or wider), whatever the trunk's."""
    return actor.value_head(hidden).squeeze(-1)
