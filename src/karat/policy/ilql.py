"""Implicit Q-learning: the recipe of learning values from scored responses, and of the policy that they guide.

Reads top to bottom in the order things happen. Both heads are linear in the last hidden state, so the guided policy is
the language model with another output layer: it is saved, loaded and sampled like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from karat.errors import CheckpointError, InputError
from karat.lm import parallel
from karat.lm.adapters import merged
from karat.lm.load import LoadedLM
from karat.lm.logprobs import head_of, hidden_at, logit_scale_of, token_logprobs, trunk_of
from karat.lm.loop import Reporter, TrainState, linear_warmup_decay, optimiser_step
from karat.lm.loop_identity import identity_of
from karat.lm.losses import total_nll
from karat.lm.sharding import whole_tensor
from karat.lm.trees import Tree, TreeBatch
from karat.policy.course import Around, Evaluate, PolicyResult, Rhythm, run_course
from karat.policy.epochs import POLICY, StepCounts, check_optimiser_steps, check_steps, my_batches
from karat.policy.implicit_q import implicit_q_losses, value_guided_logits
from karat.policy.method_settings import ImplicitQConfig
from karat.policy.offline_data import ScoredResponse, dealt, tree_of
from karat.policy.watcher import Watcher


class QHeads(nn.Module):
    """Q of every token, its slow copy, and V, from a hidden state; all start at 0."""

    slow_weight: Tensor
    slow_bias: Tensor

    def __init__(self, n_hidden: int, n_tokens: int) -> None:
        super().__init__()
        self.q = nn.Linear(n_hidden, n_tokens)
        self.v = nn.Linear(n_hidden, 1)
        for layer in (self.q, self.v):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        # buffers: not trained, but part of the checkpoint
        self.register_buffer("slow_weight", torch.zeros(n_tokens, n_hidden))
        self.register_buffer("slow_bias", torch.zeros(n_tokens))

    def slow_q(self, hidden: Float[Tensor, "n d"], token_ids: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The slow copy's Q of one token a row; no gradient."""
        with torch.no_grad():
            return torch.linalg.vecdot(hidden, self.slow_weight[token_ids]) + self.slow_bias[token_ids]

    def follow(self, rate: float) -> None:
        """The slow copy takes over a share of the Q head."""
        with torch.no_grad():
            self.slow_weight.lerp_(whole_tensor(self.q.weight), rate)
            self.slow_bias.lerp_(whole_tensor(self.q.bias), rate)


@dataclass(frozen=True)
class ImplicitQResult:
    """What a run of implicit Q-learning ended with."""

    guided: LoadedLM
    """The guided policy: the trained model with the output layer that the values make."""
    heads: QHeads
    """Q, its slow copy and V."""
    run: PolicyResult
    """How the run ended, in optimiser steps."""


def train_ilql(
    lm: LoadedLM,
    responses: Sequence[ScoredResponse],
    config: ImplicitQConfig,
    *,
    seed: int,
    directory: Path | None = None,
    reporters: Sequence[Reporter] = (),
    watcher: Watcher | None = None,
    evaluate: Evaluate | None = None,
) -> ImplicitQResult:
    """Learn values from scored responses and guide a policy by them; `lm` is trained in place and not guided itself.

    Args:
        lm: loaded for training, its output layer linear, without a cap on its logits.
        responses: their scores are paid at their last token.    seed: decides the order of the data.
        evaluate: is given the guided policy.    directory, reporters, watcher: as in `ppo.train_ppo`.
    Raises: InputError for no data or scores that are not finite; CheckpointError for a model whose output layer cannot
        take the values in.
    Source: Snell et al. 2022, arXiv:2206.11871.
    Differs: linear heads on a trained trunk instead of deeper ones; `implicit_q` lists what else.
    """
    # 1. data as trees, heads, the optimiser
    if not responses or not all(torch.isfinite(torch.tensor(one.score)) for one in responses):
        raise InputError(
            f"ilql: found {len(responses)} responses, or a score that is not finite; expected at least one"
        )
    check_guidable(lm)
    data = [[one.prompt.id, one.text, one.score] for one in responses]
    identity = identity_of(config, seed, {"responses": data}, lm.model)
    trees = [tree_of(lm, one.prompt, one.text) for one in responses]
    scores = torch.tensor([one.score for one in responses], device=lm.model.device)
    head, _ = head_of(lm.model)
    n_tokens, n_hidden = head.weight.shape
    heads = QHeads(n_hidden, n_tokens).to(device=lm.model.device)
    state = _train_state(lm, heads, config)
    batch_of = dealt(len(trees), config.batch_size, seed=seed, shuffle=True)
    n_steps = config.n_steps(len(trees))
    n_warmup = round(config.warmup_frac * n_steps)

    # 2. one step: a minibatch, its losses, one update, the slow copy's share
    def step(index: int) -> dict[str, float]:
        rate = linear_warmup_decay(index, n_steps=n_steps, peak=config.learning_rate, n_warmup=n_warmup)
        chosen = batch_of(index)
        figures: dict[str, float] = {}
        losses = q_losses(lm, heads, [trees[i] for i in chosen], scores[chosen], config, figures)
        norm = optimiser_step(
            state, POLICY, losses, max_grad_norm=config.max_grad_norm, learning_rate=rate, shared=True
        )
        counts = state.controllers["steps"]
        assert isinstance(counts, StepCounts)
        counts.add(POLICY, skipped=norm != norm)
        heads.follow(config.target_rate)
        metrics = figures | {"update/grad_norm": norm, "update/learning_rate": rate}
        return metrics | check_steps(state, config.max_skipped_frac)

    # 3. the loop; who looks at the policy sees the guided one
    watch = evaluate and (lambda model, done: evaluate(guided(model, heads, config.strength), done))
    run = run_course(
        "ilql",
        lm,
        state,
        step,
        Rhythm(n_steps, config.checkpoint_every, config.evaluate_every),
        around=Around(directory, reporters, watcher, watch),
        identity=identity,
        kept=lambda model: guided(model, heads, config.strength),
    )
    check_optimiser_steps(state, expected=state.step)
    return ImplicitQResult(guided(lm, heads, config.strength), heads, run)


def q_losses(
    lm: LoadedLM,
    heads: QHeads,
    trees: Sequence[Tree],
    scores: Float[Tensor, " B"],
    config: ImplicitQConfig,
    figures: dict[str, float],
) -> Iterator[Tensor]:
    """The loss of each micro-batch of responses, divided by the minibatch's tokens; sums go into `figures`."""
    n_tokens = sum(len(branch) for tree in trees for branch in tree.branches)
    names = [f"ilql/{part}" for part in ("q", "v", "conservative", "nll", "value_mean")]
    figures.update(dict.fromkeys(names, 0.0) | {"data/n_tokens": float(n_tokens)})
    for batch in my_batches(trees, config.token_budget, lm.model.device):
        predicting = hidden_at(lm.model, batch, batch.predict_index)
        wide = predicting.float()
        values = heads.v(wide).squeeze(1)
        found = implicit_q_losses(
            heads.q(wide),
            heads.slow_q(wide, batch.target_ids),
            values,
            next_values(values, batch),
            end_rewards(scores, batch),
            batch.target_ids,
            gamma=config.gamma,
            expectile=config.expectile,
            denominator=n_tokens,
        )
        logprobs, _ = token_logprobs(lm.model, predicting, batch.target_ids)
        nll = total_nll(logprobs) / n_tokens
        parts = {"q": found.q, "v": found.v, "conservative": found.conservative, "nll": nll}
        for name, part in parts.items():
            figures[f"ilql/{name}"] += float(part.detach())
        figures["ilql/value_mean"] += float(values.detach().sum()) / n_tokens
        yield found.q + found.v + config.conservative_coef * found.conservative + config.data_coef * nll
    figures.update(zip(names, parallel.totals([figures[name] for name in names]), strict=True))


def next_values(values: Float[Tensor, " n"], batch: TreeBatch) -> Float[Tensor, " n"]:
    """The value after each response token: that before the next one, 0 after the last."""
    last = batch.offset_of == batch.lengths[batch.branch_of] - 1
    following = torch.cat([values[1:], values.new_zeros(min(1, len(values)))])
    return torch.where(last, torch.zeros_like(values), following)


def end_rewards(scores: Float[Tensor, " B"], batch: TreeBatch) -> Float[Tensor, " n"]:
    """Each response's score at its last token, 0 elsewhere."""
    last = batch.offset_of == batch.lengths[batch.branch_of] - 1
    paid = scores[batch.branch_id[batch.branch_of]]
    return torch.where(last, paid, torch.zeros_like(paid))


def guided(lm: LoadedLM, heads: QHeads, strength: float) -> LoadedLM:
    """A copy of the model whose output layer prefers tokens of high Q (`implicit_q.value_guided_logits`)."""
    check_guidable(lm)
    plain = merged(lm)
    model = copy.deepcopy(plain.model) if plain is lm else plain.model
    head, _ = head_of(model)
    strength /= logit_scale_of(model)  # what the layer says is scaled afterwards
    with torch.no_grad():
        weight = value_guided_logits(head.weight.float(), heads.q.weight, strength=strength)
        bias = torch.zeros_like(heads.q.bias) if head.bias is None else head.bias.float()
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = nn.Parameter(weight.to(head.weight.dtype), requires_grad=False)
        shift = value_guided_logits(bias, heads.q.bias, strength=strength)
        if head.bias is not None:
            layer.bias = nn.Parameter(shift.to(head.weight.dtype), requires_grad=False)
    model.set_output_embeddings(layer)
    model.config.tie_word_embeddings = False
    return replace(lm, model=model.eval())


def check_guidable(lm: LoadedLM) -> None:
    """Raise CheckpointError where values cannot be added into the output layer."""
    head, softcap = head_of(lm.model)
    if not isinstance(head, nn.Linear) or softcap is not None:
        raise CheckpointError(
            f"{lm.path}: found an output layer {type(head).__name__} with a cap of {softcap} on its logits; expected a "
            "linear one without a cap: value-guided decoding adds Q to it"
        )


def _train_state(lm: LoadedLM, heads: QHeads, config: ImplicitQConfig) -> TrainState:
    trunk = [p for p in trunk_of(lm.model).parameters() if p.requires_grad]
    known = {id(p) for p in trunk}
    rest = [p for p in lm.model.parameters() if p.requires_grad and id(p) not in known]
    groups = [
        {"params": [*trunk, *rest], "lr_scale": 1.0},
        {"params": [*heads.q.parameters(), *heads.v.parameters()], "lr_scale": config.head_lr_scale},
    ]
    optimiser = torch.optim.Adam(groups, lr=config.learning_rate, eps=config.adam_eps, fused=True)
    return TrainState({"policy": lm.model, "heads": heads}, {POLICY: optimiser}, {"steps": StepCounts()})
