"""The steps of reward training: minibatch, loss, rater fit, held-out epoch, with all state that a checkpoint needs.

Knows a model, votes as columns and an optimiser; knows nothing about splits, temperatures or reports.

Dimension letters: S heads, C comparisons, N texts, A annotators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from karat.choice import RaterParams, VoteBatch, comparison_loglik
from karat.errors import InvariantError
from karat.lm.loop import TrainState, linear_warmup_decay, optimiser_step
from karat.reward.calibration import VoteModel, predicted_probs, vote_nll
from karat.reward.data import Minibatch, VoteData
from karat.reward.model import RewardModel, log_lengths
from karat.reward.raters import fit_raters
from karat.reward.settings import RewardConfig
from karat.reward.trunk import Encoded, micro_batches
from karat.seeding import child_seed


class RaterTable(nn.Module):
    """Rater parameters and the scores last seen, as buffers, so that a checkpoint holds them."""

    def __init__(self, start: RaterParams, n_texts: int) -> None:
        super().__init__()
        for name in ("competence", "side_bias", "lapse", "cutpoints"):
            self.register_buffer(name, getattr(start, name).clone())
        self.register_buffer("latest", torch.zeros(n_texts))
        self.register_buffer("seen", torch.zeros(n_texts, dtype=torch.bool))

    def params(self) -> RaterParams:
        """The current parameters."""
        return RaterParams(self.competence, self.side_bias, self.lapse, self.cutpoints)

    def take(self, params: RaterParams) -> None:
        """Replace the parameters."""
        for name in ("competence", "side_bias", "lapse", "cutpoints"):
            getattr(self, name).copy_(getattr(params, name))


class BestEpoch:
    """Remembers the best epoch; its state is in the checkpoint, its weights in a module of buffers."""

    def __init__(self) -> None:
        self.nll = math.inf
        self.n_worse = 0
        self.epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"nll": None if math.isinf(self.nll) else self.nll, "n_worse": self.n_worse, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the values of `state_dict`."""
        self.nll = math.inf if state["nll"] is None else state["nll"]
        self.n_worse, self.epoch = state["n_worse"], state["epoch"]


class WeightCopy(nn.Module):
    """The best epoch's trained weights, as buffers."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.names = tuple(tensors)
        for index, tensor in enumerate(tensors.values()):
            self.register_buffer(f"t{index}", tensor.detach().clone())

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors in."""
        for index, name in enumerate(self.names):
            getattr(self, f"t{index}").copy_(tensors[name].detach())

    def give(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors out."""
        for index, name in enumerate(self.names):
            tensors[name].data.copy_(getattr(self, f"t{index}"))


@dataclass(eq=False)
class TrainingRun:
    """One training run: what its step reads and writes. All that changes is in `state`."""

    model: RewardModel
    """The model in training."""
    data: VoteData
    """The votes trained on, and their texts."""
    held: VoteData | None
    """Held-out votes for early stopping; None = train for all epochs."""
    config: RewardConfig
    """What was asked for."""
    seed: int
    """Dropout follows from it and the step."""
    encoded: list[Encoded]
    """The texts of `data` as the trunk reads them."""
    log_length: Float[Tensor, " N"]
    """log(1 + characters) of each text."""
    weights: Float[Tensor, "S A"]
    """How much each rater counts in each head's bootstrap."""
    table: RaterTable
    """Rater parameters, and the last score of each text."""
    best: BestEpoch
    """Which epoch was best on the held-out votes."""
    copy: WeightCopy
    """The weights of that epoch."""
    state: TrainState
    """Weights, optimiser and the above, as a checkpoint holds them."""
    plans: list[list[Minibatch]]
    """The minibatches of each epoch."""
    one_rater: bool
    """True = all votes are by one rater."""
    held_scores: Float[Tensor, "S N"] | None = None
    """Scores of the held-out texts after the best epoch, in this process."""

    @property
    def n_steps(self) -> int:
        """Optimiser steps of all epochs."""
        return sum(map(len, self.plans))

    def place_of(self, index: int) -> tuple[int, int]:
        """Epoch and number within it of step `index`."""
        for epoch, plan in enumerate(self.plans):
            if index < len(plan):
                return epoch, index
            index -= len(plan)
        raise InvariantError(f"reward: found step {index} beyond the last epoch")

    def step(self, index: int) -> dict[str, float]:
        """One optimiser step; after some of them the raters are fitted, after an epoch it is held out."""
        config = self.config
        epoch, number = self.place_of(index)
        n_steps = len(self.plans[epoch])
        minibatch = self.plans[epoch][number]
        rate = linear_warmup_decay(
            index, n_steps=self.n_steps, peak=1.0, n_warmup=int(config.warmup_frac * self.n_steps)
        )
        totals = {"loss": 0.0}
        self.model.train(config.dropout > 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(child_seed(self.seed, "reward", "dropout", index))
            norm = optimiser_step(
                self.state, "reward", self.losses(minibatch, totals), max_grad_norm=config.max_grad_norm,
                learning_rate=rate,
            )  # fmt: skip
        self.model.eval()
        metrics = {"loss": totals["loss"], "grad_norm": norm, "learning_rate": rate * config.learning_rate}
        if config.n_refits and (number + 1) % max(1, n_steps // config.n_refits) == 0:
            self.refit_raters()
        if number + 1 == n_steps and self.held is not None:
            metrics["held_out_nll"] = self.hold_out(epoch)
        return metrics

    def losses(self, minibatch: Minibatch, totals: dict[str, float]) -> Iterator[Tensor]:
        """The losses of the micro-batches, each divided by the votes of the whole minibatch."""
        n_votes = len(minibatch.votes)
        votes = self.data.columns.select(minibatch.votes)
        place = torch.full((len(self.encoded),), -1)
        for texts in micro_batches(
            minibatch.groups, lambda i: self.encoded[i].n_tokens, token_budget=self.config.token_budget
        ):
            index = torch.tensor(texts)
            place.fill_(-1)
            place[index] = torch.arange(len(texts))
            scores = self.scores([self.encoded[i] for i in texts], self.log_length[index])
            self.table.latest[index] = scores.detach().mean(0).to(self.table.latest)
            self.table.seen[index] = True
            part = local_votes(votes, place, minibatch.groups, texts)
            loss = comparison_loss(scores, part, self.table.params(), self.weights) * (len(part) / n_votes)
            totals["loss"] += float(loss.detach())
            yield loss

    def scores(self, items: Sequence[Encoded], log_length: Tensor) -> Float[Tensor, "S n"]:
        """Raw scores of some texts, with gradients."""
        features = self.model.features(items, token_budget=self.config.token_budget)
        return self.model(features, log_length).cpu()

    def refit_raters(self) -> None:
        """Fit the raters to the votes whose texts have been scored."""
        columns = self.data.columns
        known = self.table.seen[columns.a] & self.table.seen[columns.b]
        if bool(known.any()):
            fitted = fit_raters(self.table.latest, columns.select(known), self.table.params(), self.config.raters)
            self.table.take(fitted)

    def hold_out(self, epoch: int) -> float:
        """Held-out likelihood after an epoch; keeps the weights when it is the best so far."""
        assert self.held is not None
        scores = score_data(self.model, self.held, token_budget=self.config.token_budget)
        model = VoteModel(self.config.raters, tuple(self.table.cutpoints.tolist()))
        nll = float(vote_nll(predicted_probs(scores, self.held.columns, model), self.held.columns).mean())
        if nll < self.best.nll:
            self.best.nll, self.best.n_worse, self.best.epoch = nll, 0, epoch
            self.copy.take(trained_weights(self.model))
            self.held_scores = scores
        else:
            self.best.n_worse += 1
        return nll

    def should_stop(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """A reason once the held-out likelihood has not improved for `patience` epochs."""
        if "held_out_nll" in metrics and self.best.n_worse >= self.config.patience and step < self.n_steps:
            return f"held-out likelihood best after epoch {self.best.epoch + 1}"
        return None


def comparison_loss(
    scores: Float[Tensor, "S N"], votes: VoteBatch, raters: RaterParams, weights: Float[Tensor, "S A"]
) -> Float[Tensor, ""]:
    """Mean negative log-likelihood over heads and votes, each rater weighted by the head's bootstrap.

    −(1/(S·C))·Σ_s Σ_c ω_{s,w(c)}·log P(y_c | scores_s, rater w(c))
    """
    loglik = torch.stack([comparison_loglik(head, votes, raters) for head in scores])
    return -(weights[:, votes.annotator] * loglik).mean()


@torch.no_grad()
def score_data(model: RewardModel, data: VoteData, *, token_budget: int) -> Float[Tensor, "S N"]:
    """Raw scores of every text of some votes, in eval mode."""
    encoded = model.trunk.encode(data.prompts, data.texts)
    return score_encoded(model, encoded, log_lengths(data.texts), data.groups, token_budget=token_budget)


@torch.no_grad()
def score_encoded(
    model: RewardModel,
    encoded: Sequence[Encoded],
    log_length: Float[Tensor, " N"],
    groups: Sequence[Sequence[int]],
    *,
    token_budget: int,
    with_length: bool = True,
) -> Float[Tensor, "S N"]:
    """Raw scores of encoded texts, prompt by prompt; `with_length` = False leaves the length term out."""
    model.eval()
    scores = torch.zeros(model.n_heads, len(encoded))
    for texts in micro_batches(groups, lambda i: encoded[i].n_tokens, token_budget=token_budget):
        features = model.features([encoded[i] for i in texts], token_budget=token_budget)
        scores[:, texts] = model(features, log_length[texts], with_length=with_length).float().cpu()
    return scores


def local_votes(
    votes: VoteBatch, place: Int[Tensor, " N"], groups: Sequence[Sequence[int]], texts: Sequence[int]
) -> VoteBatch:
    """The votes of a minibatch whose texts are in this micro-batch, indexed by their place in it."""
    if len(texts) == sum(map(len, groups)):
        mine = votes
    else:
        mine = votes.select(place[votes.a] >= 0)
    return VoteBatch(place[mine.a], place[mine.b], mine.level, mine.side, mine.annotator, mine.n_levels)


def trained_weights(model: RewardModel) -> dict[str, Tensor]:
    """The parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
